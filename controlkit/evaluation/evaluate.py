"""Does a ControlNet obey? Each row of a dataset is painted under its map, annotated again, and compared with the map.

Beside the figure of the pictures painted under control stand four that give it meaning:

    silent   the same prompts and noise without control
    chance   what was painted, held against another row's map
    vae      the real pictures through the base's autoencoder: the best that it could paint
    real     the real pictures: the best that this annotator can see

Obedience is where control lies between silent (0) and vae (1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators.contract import parameters_of
from controlkit.data.geometry import Geometry, fit_map
from controlkit.data.pictures import cover, read_picture, resize_picture
from controlkit.data.rows import held_out, read_datasets
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.evaluation.obedience import Judge, find_judge
from controlkit.evaluation.scores import Score, paired_share
from controlkit.files import atomic_write_bytes, need_writable
from controlkit.generation.settings import encode_picture, library_versions, read_settings, weights_sha256
from controlkit.models.bases import DEFAULT_BASE, find_base
from controlkit.models.controlnets import find_controlnet
from controlkit.models.devices import able

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.processes import Processes

    Picture = NDArray[np.uint8]

ROWS = ("control", "silent", "chance", "vae", "real")
PICTURES = "pictures"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a ControlNet: pictures of the first `num` rows of a dataset (None: of all)."""

    controlnet: str
    condition: str | None = None  # None: what its folder says
    data: str
    base: str = DEFAULT_BASE
    num: int | None = None
    held_out: float | None = None  # only the rows that a training with that data.held_out kept back
    sampler: str = "dpmpp_2m_karras"
    steps: int = 20
    cfg: float = 7.5
    weight: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.num is not None and self.num < 2:
            problems.append(f"--num {self.num}: expected at least 2 pictures, or there is no interval to give")
        if self.held_out is not None and not 0 < self.held_out < 1:
            problems.append(f"--held-out {self.held_out:g}: expected a share between 0 and 1")
        if self.steps < 1:
            problems.append(f"--steps {self.steps}: expected at least 1")
        if problems:
            raise RequestError("\n".join(problems))


@dataclass(frozen=True)
class Case:
    """A row: where its pictures are, and the score of each."""

    number: int
    content: str
    prompt: str
    scores: dict[str, float]
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What came of it. `scores` is row -> score; `obedience` where control lies between silent and vae."""

    question: Question
    metric: str
    lower_is_better: bool
    judge: dict[str, Any]
    models: dict[str, Any]
    scores: dict[str, Score]
    obedience: Score | None
    cases: list[Case]
    processes: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"format": 1, **asdict(self)}


def evaluate(
    question: Question,
    out: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    processes: Processes,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Answer, Seen]:
    """Paint what is not painted yet below `out`, and score all. Every process paints its share; all get the answer, and
    what shows its pictures."""
    # Everything that can be refused is refused before a weight is loaded.
    need_writable(out, "--out")
    base = find_base(question.base)
    net = find_controlnet(question.controlnet).on(base)
    condition = question.condition or net.condition
    if condition is None:
        raise RequestError(
            f"ControlNet {question.controlnet!r} does not say what it was trained on; "
            f"say it: --controlnet canny={question.controlnet}"
        )
    scheduler = make_sampler(question.sampler, base.scheduler, steps=question.steps)
    rows = read_datasets(question.data, condition, say=say, processes=processes)
    if question.held_out is not None:
        rows = [row for row in rows if held_out(row.content, question.held_out)]
    rows = rows[: question.num]
    if len(rows) < 2:
        raise RequestError(f"--data {question.data}: {len(rows)} rows to look at; expected at least 2")
    control = rows[0].control
    judge = find_judge(condition, control if isinstance(control, Path) else None)
    if isinstance(judge, str):
        raise RequestError(f"--controlnet {question.controlnet}: {judge}")

    from controlkit.generation.pipelines import control_pipeline, load_parts
    from controlkit.generation.silent import silenced

    parts = load_parts(base, dtype=dtype, device=device)
    nets = [net.load(torch_dtype=dtype).to(device).eval()]
    pipeline = control_pipeline(base, parts, [silenced(nets)], scheduler)
    models = {
        "base": {"name": question.base, "sha256": weights_sha256(base.folder)},
        "controlnet": {"name": question.controlnet, "sha256": weights_sha256(net.folder)},
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "versions": library_versions(),
    }
    reader = Reader(Geometry(base.native_size), judge)
    easel = Easel(pipeline, question, models, out)
    cases, mine = [], processes.slice(list(range(len(rows))))
    progress(0, len(mine))
    for done, number in enumerate(mine):
        picture, control_map = reader.read(rows[number])
        other_picture, other_map = reader.read(rows[(number + 1) % len(rows)])
        painted = {
            "control": easel.paint(number, rows[number], control_map, question.weight),
            "silent": easel.paint(number, rows[number], control_map, 0.0),
            "vae": easel.through_vae(picture),
            "real": picture,
        }
        scores = {row: judge.score(made, control_map, picture) for row, made in painted.items()}
        scores["chance"] = judge.score(painted["control"], other_map, other_picture)
        known = {row: round(score, 6) for row, score in scores.items() if score is not None}
        files = {row: easel.name(number, weight) for row, weight in (("control", question.weight), ("silent", 0.0))}
        cases.append(Case(number, rows[number].content, rows[number].caption, known, files))
        progress(done + 1, len(mine))
    cases = processes.gather(cases)
    answer = Answer(
        question=question,
        metric=judge.metric,
        lower_is_better=judge.lower_is_better,
        judge={
            "type": judge.annotator.type,
            "backend": judge.annotator.backend,
            "parameters": parameters_of(judge.annotator),
        },
        models=models,
        scores=summarise(cases),
        obedience=obedience(cases),
        cases=cases,
        processes=processes.count,
    )
    return answer, Seen(rows, reader, out)


def summarise(cases: list[Case]) -> dict[str, Score]:
    """Row -> mean over the cases that have it."""
    values = {row: [case.scores[row] for case in cases if row in case.scores] for row in ROWS}
    return {row: Score.of_values(each) for row, each in values.items() if each}


def obedience(cases: list[Case]) -> Score | None:
    """(control - silent) / (vae - silent), over the cases that have all three; None where the autoencoder leaves
    nothing between the two."""
    whole = [case.scores for case in cases if {"control", "silent", "vae"} <= case.scores.keys()]
    if len(whole) < 2:
        return None
    control, silent, vae = (np.array([each[row] for each in whole]) for row in ("control", "silent", "vae"))
    return paired_share(control - silent, vae - silent)


@dataclass(frozen=True)
class Reader:
    """Reads a row as the networks see it: a square, as training does."""

    geometry: Geometry
    judge: Judge

    def read(self, row: Row) -> tuple[Picture, Picture]:
        assert row.control is not None, "rows are read with their maps"
        image = read_picture(row.picture)
        side = self.geometry.resolution
        to, window = cover(image.shape[1], image.shape[0], side)
        picture = np.ascontiguousarray(resize_picture(image, to)[window])
        return picture, fit_map(read_picture(row.control), (side, side), self.judge.annotator.values)


@dataclass(frozen=True)
class Seen:
    """The pictures of the cases, to look at."""

    rows: list[Row]
    reader: Reader
    out: Path

    def __call__(self, case: Case) -> list[Picture]:
        """The map, what was painted, what is read from that, what was painted without control, and the real picture."""
        real, wanted = self.reader.read(self.rows[case.number])
        painted, silent = (read_picture(self.out / case.files[name]) for name in ("control", "silent"))
        return [wanted, painted, self.reader.judge.annotator(painted), silent, real]


class Easel:
    """Paints, and finds again what was painted under the same settings."""

    def __init__(self, pipeline: Any, question: Question, models: dict[str, Any], out: Path) -> None:
        self.pipeline, self.question, self.models, self.out = pipeline, question, models, out

    def name(self, number: int, weight: float) -> str:
        return f"{PICTURES}/{number:06d}.{'silent' if weight == 0 else 'control'}.png"

    def paint(self, number: int, row: Row, control_map: Picture, weight: float) -> Picture:
        path = self.out / self.name(number, weight)
        question = self.question
        settings = {
            **self.models,
            **{"prompt": row.caption, "picture": row.content, "map": _digest(control_map), "weight": weight},
            **{name: getattr(question, name) for name in ("sampler", "steps", "cfg")},
            "seed": question.seed + number,
        }
        if path.exists() and _same(path, settings):
            return read_picture(path)
        import torch
        from PIL import Image

        painted = self.pipeline(
            prompt=row.caption,
            image=Image.fromarray(control_map),
            num_inference_steps=question.steps,
            guidance_scale=question.cfg,
            controlnet_conditioning_scale=weight,
            generator=torch.Generator().manual_seed(question.seed + number),
            output_type="np",
        ).images[0]
        if not np.isfinite(painted).all():
            raise RequestError(f"a picture is not a number in {self.models['dtype']}; use --dtype float32 or bfloat16")
        made = (painted * 255).round().astype(np.uint8)
        atomic_write_bytes(path, encode_picture(made, settings))
        return np.asarray(made, dtype=np.uint8)

    def through_vae(self, picture: Picture) -> Picture:
        import torch

        from controlkit.generation.inpainting import encode
        from controlkit.generation.unguided import to_pictures

        vae = self.pipeline.vae
        with torch.no_grad():
            latents = encode(vae, picture) / vae.config.scaling_factor + (vae.config.shift_factor or 0)
            with able(vae):
                (picture,) = to_pictures(vae.decode(latents.to(vae.dtype)).sample)
        return np.ascontiguousarray(picture)


def _same(path: Path, settings: dict[str, Any]) -> bool:
    try:
        found = read_settings(path)
    except (RequestError, ValueError, KeyError):
        return False
    return {name: found.get(name) for name in settings} == settings


def _digest(control_map: Picture) -> str:
    from hashlib import sha256

    return sha256(control_map.tobytes()).hexdigest()
