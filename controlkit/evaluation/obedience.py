"""Does a picture follow its map? It is annotated again, and what comes out is compared with what went in: as maps
(`metrics.py`), poses as points (`pose_metrics.py`).

Which annotator reads the pictures is told by the map, if it was made here, else it is one of its type that works here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators import ANNOTATORS, MissingWeights
from annotators.depth import DepthAnnotator
from annotators.geometry import resized
from controlkit.data.check import LINES
from controlkit.data.geometry import fit_map
from controlkit.data.ledger import read_entry
from controlkit.errors import RequestError
from controlkit.evaluation.contents import CONTENT_JUDGES, ContentJudge
from controlkit.evaluation.metrics import Metric, edge_f1, map_metrics
from controlkit.evaluation.pose_metrics import NEAR, average_precision, matches, matches_together, share_found

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annotators.contract import Image
    from controlkit.data.rows import Row
SCORED = sorted([*LINES, "depth", "pose", "segmentation"])

POSE_METRICS = (
    Metric(f"pose_pck_{NEAR:g}", share_found),
    Metric("pose_oks_ap", matches, pool=average_precision, join=matches_together),
)


@dataclass(frozen=True)
class Look:
    """What was read from the pictures of one row, each looked at once, however much it is compared with."""

    found: list[Any]  # maps, or people
    said: list[Any]  # by a network, before it was made a map; what was found where there is no more to tell
    contents: list[list[Any]]  # of each judge of contents


@dataclass(frozen=True)
class Judge:
    """Reads pictures of one condition with an annotator, and scores them against what they should have been. What else
    can be seen in them is scored by the judges of `contents`. `leads`: the first metric, where it is not the usual."""

    annotator: Any
    contents: tuple[ContentJudge, ...] = ()
    leads: str | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The leading one first."""
        return (*self._of_maps, *(metric for each in self.contents for metric in each.metrics))

    @property
    def of_people(self) -> bool:
        return bool(self.annotator.type == "pose")

    @property
    def _of_maps(self) -> tuple[Metric, ...]:
        metrics = POSE_METRICS if self.of_people else map_metrics(self.annotator.type)
        return tuple(sorted(metrics, key=lambda metric: metric.name != self.leads))

    @property
    def metric(self) -> str:
        return self.metrics[0].name

    @property
    def lower_is_better(self) -> bool:
        return self.metrics[0].lower_is_better

    def look(self, made: Sequence[Image]) -> Look:
        """At the pictures that were made for one row."""
        readers = dict.fromkeys(each.read for each in self.contents)  # several judges may share one
        read = {reader: [reader(picture) for picture in made] for reader in readers}
        contents = [read[each.read] for each in self.contents]
        if self.of_people:
            people = [self.annotator.keypoints(picture) for picture in made]
            return Look(people, people, contents)
        if not isinstance(self.annotator, DepthAnnotator):
            maps = [self.annotator(picture) for picture in made]
            return Look(maps, maps, contents)
        maps, said = [], []
        for picture in made:
            (raster,) = self.annotator.rasters([picture])
            size = picture.shape[0], picture.shape[1]
            maps.append(self.annotator.finish(raster, *size))
            said.append(resized(self.annotator.nearness(raster), *size)[:, :, 0])
        return Look(maps, said, contents)

    def measure_row(self, row: Row, made: Look, control: Image, real: Image, seen: Look | None) -> dict[str, Any]:
        """What the pictures made for a row show by each metric that says something of them. `real`: its picture;
        `seen`: what is read from that, needed `of_people` alone."""
        shown = self.compare(made, control, seen)
        for judge, found in zip(self.contents, made.contents, strict=True):
            if judge.wanted:
                wanted = judge.wanted(row, real)
                shown |= {metric.name: metric.of_row(found, wanted) for metric in judge.metrics}
        return shown

    def compare(self, made: Look, control: Image, real: Look | None) -> dict[str, Any]:
        """What pictures made under `control` show of it. Poses are compared with those that are read in the real
        picture."""
        if self.of_people and real is None:
            return {}
        wanted = real.found[0] if self.of_people and real else self._fitted(control, made.found[0])
        shown = {
            metric.name: metric.of_row(made.said if metric.raw else made.found, wanted) for metric in self._of_maps
        }
        return {name: value for name, value in shown.items() if value is not None}

    def score(self, made: Image, control: Image, picture: Image | None) -> float | None:
        """One picture by the leading metric; None where it says nothing."""
        real = self.look([picture]) if self.of_people and picture is not None else None
        shown = self.compare(self.look([made]), control, real)
        return self.metrics[0].over([shown[self.metric]]) if self.metric in shown else None

    def on_real_pictures(self, pairs: Sequence[tuple[Image, Image]]) -> tuple[float, float]:
        """How well pictures that are known to follow their maps do so, compared as maps, and how well they follow the
        next one's: the best that can be reached, and chance."""
        read = [self.annotator(picture) for picture, _ in pairs]
        maps = [control for _, control in pairs]
        own = [self._compare(*pair) for pair in zip(read, maps, strict=True)]
        chance = [self._compare(*pair) for pair in zip(read, maps[1:] + maps[:1], strict=True)]
        return float(np.mean(own)), float(np.mean(chance))

    def _compare(self, found: Image, wanted: Image) -> float:
        """As maps, poses too."""
        first, *_ = map_metrics(self.annotator.type) or (Metric("pose_f1_1px", edge_f1),)
        value = first.over([first.measure(found, self._fitted(wanted, found))])
        assert value is not None, f"{first.name} says something of any two maps"
        return value

    def _fitted(self, wanted: Image, found: Image) -> Image:
        """The map of another picture, which tells chance, may have another size."""
        return fit_map(wanted, (found.shape[1], found.shape[0]), self.annotator.values)


def find_judge(condition: str, control: Path | None = None) -> Judge | str:
    """The judge of a condition, reading as the map `control` was made if that can be told; else why there is none.

    Nothing is downloaded for it.
    """
    if condition not in SCORED:
        return f"there is no score for {condition}: known for {', '.join(SCORED)}"
    entry = read_entry(control) if control else None
    made_by = entry.backend or ANNOTATORS.backends(condition)[0] if entry and condition in entry.versions else None
    usual = ANNOTATORS.backends(condition)
    reasons = []
    for backend in sorted(usual, key=lambda name: (name != made_by, usual.index(name))):
        options = entry.parameters if entry and backend == made_by else {}
        known = ANNOTATORS.parameters(condition, backend)
        offline = {"offline": True} if "offline" in known else {}
        annotator: Any = ANNOTATORS.create(
            condition, backend, **{name: value for name, value in options.items() if name in known}, **offline
        )
        try:
            getattr(annotator, "ready", annotator.libraries)()
        except (ImportError, MissingWeights) as reason:
            reasons.append(str(reason))
            continue
        return Judge(annotator)
    return f"no annotator of {condition} works here: {reasons[0]}"


def judge_of_rows(asked: str, condition: str, rows: Sequence[Row]) -> Judge:
    """The judge of rows that have maps, refused in one line if there is none; `asked` names what asks for it."""
    control = rows[0].control
    judge = find_judge(condition, control if isinstance(control, Path) else None)
    if isinstance(judge, str):
        raise RequestError(f"{asked}: {judge}")
    return reading_contents(judge, rows)


def reading_contents(judge: Judge, rows: Sequence[Row]) -> Judge:
    """The same judge, which also reads what all of the rows say that they hold."""
    told = (make() for column, make in CONTENT_JUDGES.items() if all(column in row.columns for row in rows))
    return replace(judge, contents=(*judge.contents, *told))
