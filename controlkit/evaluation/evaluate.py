"""Does a ControlNet obey? Each row of a dataset is painted under its map, annotated again, and compared with the map.

Beside the figure of the pictures painted under control stand four that give it meaning:

    no_control   the same prompts and noise without control
    chance       what was painted, held against another row's map
    vae          the real pictures through the base's autoencoder: the best that it could paint
    real         the real pictures: the best that this annotator can see

Obedience is where control lies between no_control (0) and vae (1), by the leading metric.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators.contract import parameters_of
from controlkit.data.pictures import read_picture
from controlkit.data.rows import held_out, read_datasets
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.evaluation.contents import CONTENT_JUDGES
from controlkit.evaluation.easel import Easel, Hint, files_of
from controlkit.evaluation.obedience import judge_of_rows
from controlkit.evaluation.presets import find_preset
from controlkit.evaluation.quality import quality_judge
from controlkit.evaluation.reading import Reader
from controlkit.evaluation.scores import Score, paired_share
from controlkit.evaluation.sets import FeatureFiles
from controlkit.generation.settings import library_versions, weights_sha256
from controlkit.models.bases import DEFAULT_BASE, USUAL_CFG, find_base
from controlkit.models.controlnets import find_controlnet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

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
    control_every: int = 1  # the steps for which an answer of the ControlNet stands
    negative: str = ""
    size: int | None = None  # pixels a side; None: the base's own
    per_row: int = 1  # pictures; a row's figure is over all of them
    seed: int = 0
    preset: str | None = None
    batch_size: int = 1  # pictures painted together; another one rounds otherwise
    also: tuple[str, ...] = ()  # measures by networks of others: NAME=WEIGHTS

    def __post_init__(self) -> None:
        problems = []
        for name, pictures in (("--per-row", self.per_row), ("--batch-size", self.batch_size)):
            if pictures < 1:
                problems.append(f"{name} {pictures}: expected at least 1 picture")
        if self.num is not None and self.num < 2:
            problems.append(f"--num {self.num}: expected at least 2 pictures, or there is no interval to give")
        if self.held_out is not None and not 0 < self.held_out < 1:
            problems.append(f"--held-out {self.held_out:g}: expected a share between 0 and 1")
        if self.steps < 1:
            problems.append(f"--steps {self.steps}: expected at least 1")
        if self.control_every < 1:
            problems.append(f"--control-every {self.control_every}: expected at least 1 step")
        if problems:
            raise RequestError("\n".join(problems))


@dataclass(frozen=True)
class Case:
    """A row of the dataset: where its pictures are, and metric -> row of the report -> score."""

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
    stated: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What figures cannot be read without, by what it is about: the preset, or a figure."""

    warnings: tuple[str, ...] = ()

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
    make_maps: bool
    """From the rows' pictures, whatever maps they have."""

    @property
    def side(self) -> int:
        return self.question.size or self.base.native_size

    @property
    def stated(self) -> dict[str, dict[str, Any]]:
        if self.question.preset is None:
            return {}
        return {"preset": find_preset(self.question.preset).stated(self.judge.annotator.type)}


def prepare(
    question: Question,
    *,
    processes: Processes,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Trial:
    """Refuse what can be refused. `device` is for what `question.also` asks."""
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
    multiple = math.lcm(base.vae_factor, 8)  # which diffusers' pipelines for ControlNets ask for, whatever the VAE
    if question.size is not None and (question.size < 1 or question.size % multiple):
        raise RequestError(f"--size {question.size}: expected a multiple of {multiple}")
    scheduler = make_sampler(question.sampler, base.scheduler, steps=question.steps)
    if question.preset is None:
        rows = questioned_rows(question, condition, say, processes)
        judge, make_maps = judge_of_rows(f"--controlnet {question.controlnet}", condition, rows), False
    else:
        preset = find_preset(question.preset)
        make_maps = preset.reading(condition).makes_maps
        rows = questioned_rows(question, None if make_maps else condition, say, processes)
        judge = preset.judge(condition, rows)
    judge = judging_more(judge, question, device)
    need_enough(judge, len(rows))
    return Trial(question, base, net, scheduler, rows, judge, make_maps)


def _painted(
    groups: list[list[int]], rows: list[Row], reader: Reader, easel: Easel
) -> Iterator[tuple[int, list[Picture], list[Picture]]]:
    """Each row's number, its pictures under control, and those without; a group is painted together."""
    for group in groups:
        asked = {number: rows[number] for number in group}
        painted = easel.paint(asked, {number: reader.pictures(number)[1] for number in group})
        without = easel.paint(asked, None)
        for number in group:
            yield number, painted[number], without[number]


def judging_more(judge: Judge, question: Question, device: str) -> Judge:
    """With what `question.also` asks for."""
    names = [each.partition("=")[0] for each in question.also]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RequestError(f"--also {twice[0]}: given twice; its figure can stand once in a report")
    more = tuple(quality_judge(each, device) for each in question.also)
    return replace(judge, contents=(*judge.contents, *more))


def need_enough(judge: Judge, count: int) -> None:
    """Refuse figures of sets that so few pictures cannot have."""
    for figure in (figure for each in judge.contents for figure in each.figures):
        if count < figure.least:
            raise RequestError(f"--also {figure.name}: of {count} rows; expected at least {figure.least}")


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
    at_once = max(1, question.batch_size // question.per_row)
    reader = Reader(rows, trial.side, judge, make_maps=trial.make_maps, together=at_once)
    hint = Hint(net.conditions if net.is_union else (judge.annotator.type,), judge.annotator.type)
    easel = Easel(pipeline, question, models, trial.side, hint, out)
    features = FeatureFiles(judge.contents, out, processes)
    cases: list[Case] = []
    shown = []
    # Whatever the processes, the same rows are painted together.
    groups = processes.slice([range(start, start + at_once) for start in range(0, len(rows), at_once)])
    mine = [[number for number in group if number < len(rows)] for group in groups]
    total = sum(map(len, mine))
    progress(0, total)
    for number, painted, without in _painted(mine, rows, reader, easel):
        row, (picture, control_map) = rows[number], reader.pictures(number)
        looks = {
            "control": judge.look(painted),
            "no_control": judge.look(without),
            "vae": judge.look([easel.through_vae(picture)]),
            "real": reader.look(number),
        }
        seen = {name: judge.measure_row(row, look, control_map, picture, looks["real"]) for name, look in looks.items()}
        other = (number + 1) % len(rows)
        other_picture, other_map = reader.pictures(other)
        others = reader.look(other) if judge.of_people else None
        seen["chance"] = judge.measure_row(rows[other], looks["control"], other_map, other_picture, others)
        files: dict[str, str] = {}
        for name in ("control", "no_control"):
            files |= files_of(easel.names[number, name], name)
        cases.append(Case.of(number, rows[number], judge, seen, files, number))
        shown.append(seen)
        features.add(looks)
        progress(len(cases), total)
    return conclude(question, judge, models, cases, shown, features, trial.stated), Seen(reader, out)


def questioned_rows(
    question: Question, condition: str | None, say: Callable[[str], None], processes: Processes
) -> list[Row]:
    """The rows that are asked about, with their maps of that type."""
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
    features: FeatureFiles,
    stated: dict[str, dict[str, Any]],
) -> Answer:
    """The answer, from this process's share of the cases and of what they show."""
    processes = features.processes
    cases, shown = processes.gather(cases), processes.gather(shown)
    if not any(judge.metric in seen["control"] for seen in shown):
        raise RequestError(f"--data {question.data}: {judge.metric} says something of none of the {len(cases)} rows")
    of_sets = features.figures(ROWS[: ROWS.index("real")])
    figures = {figure.name: figure for each in judge.contents for figure in each.figures}
    warnings = (figures[name].warning(score) for name, rows in of_sets.items() for score in list(rows.values())[:1])
    for each in judge.contents:
        if each.about:
            stated = stated | dict.fromkeys([one.name for one in each.metrics], each.about)
            stated = stated | dict.fromkeys([one.name for one in each.figures], each.about)
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
        scores=summarise(judge.metrics, shown) | of_sets,
        obedience=obedience(cases, judge.metric),
        cases=cases,
        processes=processes.count,
        stated=stated,
        warnings=tuple(each for each in warnings if each),
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
class Seen:
    """The pictures of the cases, to look at."""

    reader: Reader
    out: Path

    def __call__(self, case: Case) -> dict[str, Picture]:
        real, wanted = self.reader.pictures(case.number)
        painted, without = (read_picture(self.out / case.files[name]) for name in ("control", "no_control"))
        read = self.reader.judge.annotator(painted)
        return {"map": wanted, "painted": painted, "read from it": read, "without control": without, "real": real}
