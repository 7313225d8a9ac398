"""Does a ControlNet obey? Each row of a dataset is painted under its map, annotated again, and compared with the map.

Beside the figure of the pictures painted under control stand four that give it meaning:

    no_control   the same prompts and noise without control
    chance       what was painted, held against another row's map
    vae          the real pictures through the base's autoencoder: the best that it could paint
    real         the real pictures: the best that this annotator can see

Obedience is where control lies between no_control (0) and vae (1), by the leading metric.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators.contract import parameters_of
from controlkit.data.geometry import Geometry, fit_map
from controlkit.data.pictures import cover, read_picture, resize_picture
from controlkit.data.rows import held_out, read_datasets
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.evaluation.contents import CONTENT_JUDGES
from controlkit.evaluation.obedience import judge_of_rows
from controlkit.evaluation.scores import Score, paired_share
from controlkit.files import atomic_write_bytes
from controlkit.generation.settings import encode_picture, library_versions, read_settings, weights_sha256
from controlkit.models.bases import DEFAULT_BASE, USUAL_CFG, find_base
from controlkit.models.controlnets import find_controlnet
from controlkit.models.devices import able
from controlkit.models.map_hint import map_hint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.evaluation.metrics import Metric
    from controlkit.evaluation.obedience import Judge
    from controlkit.models.bases import Base
    from controlkit.models.controlnets import ControlNet
    from controlkit.processes import Processes

    Picture = NDArray[np.uint8]

ROWS = ("control", "no_control", "chance", "vae", "real")
PICTURES = "pictures"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a ControlNet, or of pictures that are there: the first `num` rows of a dataset (None: all)."""

    controlnet: str | None = None
    pictures: str | None = None  # a folder
    condition: str | None = None  # None: what the ControlNet's folder says
    data: str
    base: str = DEFAULT_BASE
    num: int | None = None
    held_out: float | None = None  # only the rows that a training with that data.held_out kept back
    sampler: str = "dpmpp_2m_karras"
    steps: int = 20
    cfg: float = USUAL_CFG
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
    """A row: where its pictures are, and metric -> row of the report -> score."""

    number: int
    content: str
    prompt: str
    scores: dict[str, dict[str, float]]
    files: dict[str, str] = field(default_factory=dict)
    place: int = 0  # among the cases

    @staticmethod
    def of(
        number: int, row: Row, judge: Judge, seen: dict[str, dict[str, Any]], files: dict[str, str], place: int
    ) -> Case:
        return Case(number, row.content, row.caption, scores_of(judge.metrics, seen), files, place)


@dataclass(frozen=True)
class Answer:
    """What came of it. `scores` is metric -> row -> score; `metric` the leading one; `obedience` where control lies
    between no_control and vae by it."""

    question: Question
    metric: str
    lower_is_better: bool
    judge: dict[str, Any]
    models: dict[str, Any]
    scores: dict[str, dict[str, Score]]
    obedience: Score | None
    cases: list[Case]
    processes: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"format": 2, **asdict(self)}

    @property
    def leading(self) -> dict[str, Score]:
        return self.scores[self.metric]


@dataclass(frozen=True)
class Trial:
    """A question whose every part was found and checked, before a weight is loaded."""

    question: Question
    base: Base
    net: ControlNet
    scheduler: Any
    rows: list[Row]
    judge: Judge


def prepare(question: Question, *, processes: Processes, say: Callable[[str], None] = lambda text: None) -> Trial:
    """Refuse what can be refused."""
    assert question.controlnet is not None
    base = find_base(question.base)
    net = find_controlnet(question.controlnet).on(base)
    condition = question.condition or net.condition
    if net.is_union and condition not in net.conditions:
        raise RequestError(
            f"ControlNet {question.controlnet!r} reads {' and '.join(net.conditions)}, each of which is looked at "
            f"alone; say which: --controlnet {net.conditions[0]}={question.controlnet}"
        )
    if condition is None:
        raise RequestError(
            f"ControlNet {question.controlnet!r} does not say what it was trained on; "
            f"say it: --controlnet canny={question.controlnet}"
        )
    scheduler = make_sampler(question.sampler, base.scheduler, steps=question.steps)
    rows = questioned_rows(question, condition, say, processes)
    return Trial(
        question, base, net, scheduler, rows, judge_of_rows(f"--controlnet {question.controlnet}", condition, rows)
    )


def evaluate(
    trial: Trial,
    out: Path,
    *,
    parts: dict[str, Any],
    dtype: torch.dtype,
    processes: Processes,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Answer, Seen]:
    """Paint what is not painted yet below `out`, and score all. `parts` are the networks of the base. Every process
    paints its share; all get the answer, and what shows its pictures."""
    question, base, net, rows, judge = trial.question, trial.base, trial.net, trial.rows, trial.judge
    device = parts["unet"].device
    from controlkit.generation.pipelines import control_pipeline
    from controlkit.generation.silent import silenced

    nets = [net.load(torch_dtype=dtype).to(device).eval()]
    pipeline = control_pipeline(base, parts, [silenced(nets)], trial.scheduler)
    models = {
        "base": {"name": question.base, "sha256": weights_sha256(base.folder)},
        "controlnet": {"name": question.controlnet, "sha256": weights_sha256(net.folder)},
        "dtype": str(dtype).removeprefix("torch."),
        "device": device.type,
        "versions": library_versions(),
    }
    reader = Reader(Geometry(base.native_size), judge)
    hint = Hint(net.conditions if net.is_union else (judge.annotator.type,), judge.annotator.type)
    easel = Easel(pipeline, question, models, base.native_size, hint, out)
    cases, shown, mine = [], [], processes.slice(list(range(len(rows))))
    progress(0, len(mine))
    for done, number in enumerate(mine):
        picture, control_map = reader.read(rows[number])
        other = rows[(number + 1) % len(rows)]
        other_picture, other_map = reader.read(other)
        painted = {
            "control": easel.paint(number, rows[number], control_map),
            "no_control": easel.paint(number, rows[number], None),
            "vae": easel.through_vae(picture),
            "real": picture,
        }
        seen = {row: judge.measure_row(rows[number], made, control_map, picture) for row, made in painted.items()}
        seen["chance"] = judge.measure_row(other, painted["control"], other_map, other_picture)
        files = {row: easel.names[number, row] for row in ("control", "no_control")}
        cases.append(Case.of(number, rows[number], judge, seen, files, number))
        shown.append(seen)
        progress(done + 1, len(mine))
    return conclude(question, judge, models, cases, shown, processes), Seen(rows, reader, out)


def questioned_rows(question: Question, condition: str, say: Callable[[str], None], processes: Processes) -> list[Row]:
    """The rows that are asked about, with their maps."""
    rows = read_datasets(question.data, condition, columns=CONTENT_JUDGES, say=say, processes=processes)
    if question.held_out is not None:
        rows = [row for row in rows if held_out(row.content, question.held_out)]
    rows = rows[: question.num]
    if len(rows) < 2:
        raise RequestError(f"--data {question.data}: {len(rows)} rows to look at; expected at least 2")
    return rows


def conclude(
    question: Question,
    judge: Judge,
    models: dict[str, Any],
    cases: list[Case],
    shown: list[dict[str, dict[str, Any]]],
    processes: Processes,
) -> Answer:
    """The answer, from this process's share of the cases and of what they show."""
    cases, shown = processes.gather(cases), processes.gather(shown)
    if not any(judge.metric in seen["control"] for seen in shown):
        raise RequestError(f"--data {question.data}: {judge.metric} says something of none of the {len(cases)} rows")
    return Answer(
        question=question,
        metric=judge.metric,
        lower_is_better=judge.lower_is_better,
        judge={
            "type": judge.annotator.type,
            "backend": judge.annotator.backend,
            "parameters": parameters_of(judge.annotator),
        },
        models=models,
        scores=summarise(judge.metrics, shown),
        obedience=obedience(cases, judge.metric),
        cases=cases,
        processes=processes.count,
    )


def scores_of(metrics: Sequence[Metric], seen: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Metric -> row -> score of one picture, from row -> metric -> what it shows."""
    scores: dict[str, dict[str, float]] = {}
    for metric in metrics:
        for row, shown in seen.items():
            if metric.name in shown and (value := metric.over([shown[metric.name]])) is not None:
                scores.setdefault(metric.name, {})[row] = round(value, 6)
    return scores


def summarise(metrics: Sequence[Metric], shown: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Score]]:
    """Metric -> row -> score over the pictures that show something by it."""
    scores: dict[str, dict[str, Score]] = {}
    for metric in metrics:
        for row in ROWS:
            values = [seen[row][metric.name] for seen in shown if metric.name in seen.get(row, {})]
            if not values:
                continue
            score = Score.of_pool(values, metric.pool) if metric.pool else Score.of_values(values)
            if score is not None:
                scores.setdefault(metric.name, {})[row] = score
    return scores


def obedience(cases: list[Case], metric: str) -> Score | None:
    """(control - no_control) / (vae - no_control), over the cases that have all three; None where the autoencoder
    leaves nothing between the two."""
    ends = ("control", "no_control", "vae")
    whole = [scores for case in cases if set(ends) <= (scores := case.scores.get(metric, {})).keys()]
    if len(whole) < 2:
        return None
    control, without, vae = (np.array([each[row] for each in whole]) for row in ends)
    return paired_share(control - without, vae - without)


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

    def __call__(self, case: Case) -> dict[str, Picture]:
        real, wanted = self.reader.read(self.rows[case.number])
        painted, without = (read_picture(self.out / case.files[name]) for name in ("control", "no_control"))
        read = self.reader.judge.annotator(painted)
        return {"map": wanted, "painted": painted, "read from it": read, "without control": without, "real": real}


@dataclass(frozen=True)
class Hint:
    """What a ControlNet for these types reads of a map of one of them, the others black."""

    types: tuple[str, ...]
    type: str

    def __call__(self, control_map: Picture) -> torch.Tensor:
        return map_hint(self.types, {self.type: control_map})[None]


class Easel:
    """Paints, and finds again what was painted under the same settings, by whatever question."""

    def __init__(
        self, pipeline: Any, question: Question, models: dict[str, Any], side: int, hint: Hint, out: Path
    ) -> None:
        self.pipeline, self.question, self.models, self.side, self.out = pipeline, question, models, side, out
        self.hint = hint
        self.names: dict[tuple[int, str], str] = {}  # number and row of the report -> file

    def paint(self, number: int, row: Row, control_map: Picture | None) -> Picture:
        """Under the map; without one the base alone, which is the same for every ControlNet."""
        question = self.question
        settings = {
            **{name: value for name, value in self.models.items() if control_map is not None or name != "controlnet"},
            **{"prompt": row.caption, "picture": row.content},
            **{name: getattr(question, name) for name in ("sampler", "steps", "cfg")},
            "seed": question.seed + number,
        }
        weight = 0.0
        if control_map is not None:
            weight = question.weight
            settings |= {"map": _digest(control_map), "weight": weight}
        which = "no_control" if control_map is None else "control"
        name = f"{PICTURES}/{number:06d}.{which}.{sha256(json.dumps(settings).encode()).hexdigest()[:8]}.png"
        self.names[number, which] = name
        path = self.out / name
        if path.exists() and _same(path, settings):
            return read_picture(path)
        if control_map is None:
            control_map = np.zeros((self.side, self.side, 3), np.uint8)  # of weight 0: it says the size alone
        import torch

        painted = self.pipeline(
            prompt=row.caption,
            image=self.hint(control_map),
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
    return sha256(control_map.tobytes()).hexdigest()
