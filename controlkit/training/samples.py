"""The sample grid of a run: control map, real picture, and what the net makes of the map. A row each.

Every picture made is annotated again and scored against its map, where an annotator of the condition works here; of
several types against each of its maps.
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
from controlkit.models.bases import usual_cfg
from controlkit.models.inpaint_hint import INPAINT
from controlkit.models.map_hint import map_hint
from controlkit.training.config import own_map
from controlkit.training.low_rank import LowRankControlNet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    """What a row of the grid is made from. A map of the user's own has no real picture. The ControlNet reads the
    `hint`; `maps` by type are what can be seen of it."""

    prompt: str
    maps: dict[str, Picture]
    picture: Picture | None
    hint: torch.Tensor


@dataclass(frozen=True)
class Scored:
    """What was made, against its own map, against another row's (which is chance), and the real picture against its
    map (the best that this annotator can see)."""

    own: float | None
    chance: float | None
    real: float | None


@dataclass(frozen=True)
class Sampled:
    """A row of the grid, and by type the scores of what was made."""

    cells: list[Picture]
    scores: dict[str, Scored]


def prepare_samples(
    config: TrainConfig, data: ControlRows, rows: list[Row], say: Callable[[str], None]
) -> tuple[list[Shown], dict[str, Judge]]:
    """What the grids of a run show, and who scores them, by type; that nobody does is said."""
    if not config.samples.every:
        return [], {}
    chosen = rows[: config.samples.count]
    shown = shown_rows(data, chosen, config.samples)
    judges = {}
    for type in data.types if config.watch.fidelity else ():
        judge = judge_of(type, chosen, shown)
        if isinstance(judge, str):
            say(f"samples are painted, but not scored: {judge}")
        else:
            judges[type] = judge
    return shown, judges


def shown_rows(data: ControlRows, rows: list[Row], config: SampleConfig) -> list[Shown]:
    """The rows of the dataset to be shown, then the user's own maps with their prompts."""
    shown = []
    for row in rows:
        picture, maps, _ = data.picture_and_maps(row)
        if data.inpaints:
            maps = {INPAINT: np.where(maps[INPAINT] > 127, HOLE, picture).astype(np.uint8)}
        shown.append(Shown(row.captions[0], maps, picture, data.hint(row)))
    for text, prompt in zip(config.maps, config.prompts, strict=True):
        type, file = own_map(text, data.types)
        control = read_picture(file)
        size = data.geometry.size(control.shape[1], control.shape[0])
        maps = {type: fit_map(control, size, data.values[type])}
        shown.append(Shown(prompt, maps, None, map_hint(data.types, maps)))
    return shown


def sample_grid(
    models: Models,
    nets: dict[str, Any],
    shown: list[Shown],
    judges: dict[str, Judge],
    config: TrainConfig,
    processes: Processes,
) -> tuple[Picture, list[dict[str, Any]]] | None:
    """The grid and its scores on the first process, None on the others; each process paints its share of the rows.

    `nets` are the parts of the pipeline that learn, by name, as they are to be shown.
    The noise of row i comes from the run's seed + i alone, so that grids of one run differ by what was learned, and
    nothing here touches the random draws of the training.
    """
    pipeline, asked = models.pipeline, config.samples
    pipeline.scheduler = make_sampler(asked.sampler, models.scheduler, steps=asked.steps)
    cfg = usual_cfg(config.base) if asked.cfg is None else asked.cfg
    trained = {name: getattr(pipeline, name) for name in nets}
    for name, net in nets.items():
        setattr(pipeline, name, for_use(net, models.dtype))
    types = list(dict.fromkeys(type for row in shown for type in row.maps))
    sampled = []
    for number, row in processes.slice(list(enumerate(shown))):
        painted = pipeline(
            prompt=row.prompt,
            image=row.hint[None],
            num_inference_steps=asked.steps,
            guidance_scale=cfg,
            generator=torch.Generator().manual_seed(config.seed + number),
            output_type="np",
        ).images[0]
        made = (np.clip(painted, 0, 1) * 255).round().astype(np.uint8)
        sampled.append(_sampled(row, made, shown[(number + 1) % len(shown)], judges, types))
    for name, net in trained.items():
        setattr(pipeline, name, net)
    gathered = processes.gather(sampled)
    if not processes.first:
        return None
    found = [
        fidelity(judge, [each.scores[type] for each in gathered if type in each.scores])
        for type, judge in judges.items()
    ]
    return grid([each.cells for each in gathered]), [score for score in found if score is not None]


def fidelity(judge: Judge, scored: list[Scored]) -> dict[str, Any] | None:
    """The mean score of the samples with its interval, beside chance and the best there can be."""
    scores = [each.own for each in scored if each.own is not None]
    if not scores:
        return None
    others = {name: [value for each in scored if (value := getattr(each, name)) is not None] for name in _BESIDE}
    beside = {name: round(float(np.mean(values)), 6) for name, values in others.items() if values}
    rounded = {key: round(value, 6) for key, value in asdict(Score.of_values(scores)).items()}
    return {"metric": judge.metric, **rounded, **beside}


_BESIDE = ("chance", "real")


def judge_of(condition: str, rows: list[Row], shown: list[Shown]) -> Judge | str:
    """Who scores the samples; else why nobody does. One that knows another world than these pictures is refused."""
    control = rows[0].controls.get(condition) if rows else None
    judge = find_judge(condition, control if isinstance(control, Path) else None)
    real = [(row.picture, row.maps[condition]) for row in shown if row.picture is not None]
    if isinstance(judge, str) or len(real) < 2:
        return judge
    own, chance = judge.on_real_pictures(real)
    if not (own < chance if judge.lower_is_better else own > chance):
        name = f"{judge.annotator.type}={judge.annotator.backend}"
        return f"{name} reads these pictures no better than chance ({own:.2f}, {chance:.2f}): fetch another backend"
    return judge


def _sampled(row: Shown, made: Picture, other: Shown, judges: dict[str, Judge], types: Sequence[str]) -> Sampled:
    real = row.picture if row.picture is not None else np.full_like(made, 255)
    maps = [row.maps[type] if type in row.maps else np.zeros_like(made) for type in types]
    scores = {
        type: Scored(
            own=judge.score(made, row.maps[type], row.picture),
            chance=judge.score(made, other.maps[type], other.picture)
            if other is not row and type in other.maps
            else None,
            real=None if row.picture is None else judge.on_real_pictures([(row.picture, row.maps[type])])[0],
        )
        for type, judge in judges.items()
        if type in row.maps
    }
    return Sampled([*maps, real, made], scores)


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
