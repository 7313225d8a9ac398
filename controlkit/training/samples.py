"""The sample grid of a run: control map, real picture, and what the net makes of the map. A row each.

Every picture made is annotated again and scored against its map, where an annotator of the condition works here.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import ControlNetModel

from controlkit.data.geometry import fit_map
from controlkit.data.pictures import read_picture
from controlkit.diffusion.samplers import make_sampler
from controlkit.evaluation.obedience import Judge, find_judge
from controlkit.evaluation.scores import Score
from controlkit.files import atomic_write_bytes
from controlkit.training.low_rank import LowRankControlNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.processes import Processes
    from controlkit.training.batches import ControlRows
    from controlkit.training.config import SampleConfig, TrainConfig
    from controlkit.training.objective import Models

    Picture = NDArray[np.uint8]

GAP = 2
HOLE = 127
"""The grey in which a hole is shown."""


@dataclass(frozen=True)
class Shown:
    """What a row of the grid is made from. A map of the user's own has no real picture; the ControlNet reads the map,
    or a `hint` that no picture can hold."""

    prompt: str
    control: Picture
    picture: Picture | None
    hint: torch.Tensor | None = None


@dataclass(frozen=True)
class Sampled:
    """A row of the grid, and the scores of what was made: against its own map, against another row's (which is
    chance), and of the real picture against its map (the best that this annotator can see)."""

    cells: list[Picture]
    own: float | None
    chance: float | None
    real: float | None


def prepare_samples(
    config: TrainConfig, data: ControlRows, rows: list[Row], say: Callable[[str], None]
) -> tuple[list[Shown], Judge | None]:
    """What the grids of a run show, and who scores them; that nobody does is said."""
    if not config.samples.every:
        return [], None
    chosen = rows[: config.samples.count]
    shown = shown_rows(data, chosen, config.samples)
    judge = judge_of(config.data.condition, chosen, shown) if config.watch.fidelity else None
    if isinstance(judge, str):
        say(f"samples are painted, but not scored: {judge}")
        return shown, None
    return shown, judge


def shown_rows(data: ControlRows, rows: list[Row], config: SampleConfig) -> list[Shown]:
    """The rows of the dataset to be shown, then the user's own maps with their prompts."""
    shown = []
    for row in rows:
        picture, control, _ = data.picture_and_map(row)
        if data.inpaints:
            holes = np.where(control > 127, HOLE, picture).astype(np.uint8)
            shown.append(Shown(row.captions[0], holes, picture, data.hint(row)))
        else:
            shown.append(Shown(row.captions[0], control, picture))
    for name, prompt in zip(config.maps, config.prompts, strict=True):
        control = read_picture(Path(name).expanduser())
        size = data.geometry.size(control.shape[1], control.shape[0])
        shown.append(Shown(prompt, fit_map(control, size, data.values), None))
    return shown


def sample_grid(
    models: Models,
    nets: dict[str, Any],
    shown: list[Shown],
    judge: Judge | None,
    config: SampleConfig,
    seed: int,
    processes: Processes,
) -> tuple[Picture, dict[str, Any] | None] | None:
    """The grid and its score on the first process, None on the others; each process paints its share of the rows.

    `nets` are the parts of the pipeline that learn, by name, as they are to be shown.
    The noise of row i comes from seed + i alone, so that grids of one run differ by what was learned, and nothing here
    touches the random draws of the training.
    """
    from PIL import Image

    pipeline = models.pipeline
    pipeline.scheduler = make_sampler(config.sampler, models.scheduler, steps=config.steps)
    trained = {name: getattr(pipeline, name) for name in nets}
    for name, net in nets.items():
        setattr(pipeline, name, for_use(net, models.dtype))
    sampled = []
    for number, row in processes.slice(list(enumerate(shown))):
        painted = pipeline(
            prompt=row.prompt,
            image=Image.fromarray(row.control) if row.hint is None else row.hint[None],
            num_inference_steps=config.steps,
            guidance_scale=config.cfg,
            generator=torch.Generator().manual_seed(seed + number),
            output_type="np",
        ).images[0]
        made = (np.clip(painted, 0, 1) * 255).round().astype(np.uint8)
        sampled.append(_scored(row, made, shown[(number + 1) % len(shown)], judge))
    for name, net in trained.items():
        setattr(pipeline, name, net)
    gathered = processes.gather(sampled)
    if not processes.first:
        return None
    return grid([each.cells for each in gathered]), fidelity(judge, gathered)


def fidelity(judge: Judge | None, sampled: list[Sampled]) -> dict[str, Any] | None:
    """The mean score of the samples with its interval, beside chance and the best there can be."""
    scores = [each.own for each in sampled if each.own is not None]
    if judge is None or not scores:
        return None
    others = {name: [value for each in sampled if (value := getattr(each, name)) is not None] for name in _BESIDE}
    beside = {name: round(float(np.mean(values)), 6) for name, values in others.items() if values}
    rounded = {key: round(value, 6) for key, value in asdict(Score.of_values(scores)).items()}
    return {"metric": judge.metric, **rounded, **beside}


_BESIDE = ("chance", "real")


def judge_of(condition: str, rows: list[Row], shown: list[Shown]) -> Judge | str:
    """Who scores the samples; else why nobody does. One that knows another world than these pictures is refused."""
    control = rows[0].control if rows else None
    judge = find_judge(condition, control if isinstance(control, Path) else None)
    real = [(row.picture, row.control) for row in shown if row.picture is not None]
    if isinstance(judge, str) or len(real) < 2:
        return judge
    own, chance = judge.on_real_pictures(real)
    if not (own < chance if judge.lower_is_better else own > chance):
        name = f"{judge.annotator.type}={judge.annotator.backend}"
        return f"{name} reads these pictures no better than chance ({own:.2f}, {chance:.2f}): fetch another backend"
    return judge


def _scored(row: Shown, made: Picture, other: Shown, judge: Judge | None) -> Sampled:
    real = row.picture if row.picture is not None else np.full_like(made, 255)
    cells = [row.control, real, made]
    if judge is None:
        return Sampled(cells, None, None, None)
    return Sampled(
        cells,
        own=judge.score(made, row.control, row.picture),
        chance=None if other is row else judge.score(made, other.control, other.picture),
        real=None if row.picture is None else judge.on_real_pictures([(row.picture, row.control)])[0],
    )


def for_use(net: Any, dtype: torch.dtype) -> Any:
    """The net as others will run it, all of it in one precision. What learns is kept in float32, what does not may not
    be; and what learns may run through wrappers that sampling does not want. Tensors of that precision are shared."""
    kind, state = type(net), net.state_dict
    if isinstance(net, LowRankControlNet):
        kind, state = ControlNetModel, net.whole
    with torch.device("meta"):
        plain = kind.from_config(net.config)
    plain.load_state_dict({key: value.to(dtype) for key, value in state().items()}, assign=True)
    return plain.eval()


def grid(cells: list[list[Picture]]) -> Picture:
    """Rows of pictures on white, a gap between them; each has the room of the largest."""
    height, width = (max(cell.shape[axis] for row in cells for cell in row) for axis in (0, 1))
    sheet = np.full((len(cells) * (height + GAP) - GAP, len(cells[0]) * (width + GAP) - GAP, 3), 255, np.uint8)
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            top, left = y * (height + GAP), x * (width + GAP)
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


def save_png(path: Path, image: Picture) -> None:
    """The picture as PNG, whole or not at all."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    atomic_write_bytes(path, buffer.getvalue())
