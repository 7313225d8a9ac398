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
from controlkit.data.check import LINES
from controlkit.data.geometry import fit_map
from controlkit.data.ledger import read_entry
from controlkit.errors import RequestError
from controlkit.evaluation.contents import CONTENT_JUDGES, ContentJudge
from controlkit.evaluation.metrics import Metric, edge_f1, map_metrics
from controlkit.evaluation.pose_metrics import NEAR, average_precision, matches, share_found

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annotators.contract import Image
    from controlkit.data.rows import Row
SCORED = sorted([*LINES, "depth", "pose", "segmentation"])

POSE_METRICS = (
    Metric(f"pose_pck_{NEAR:g}", share_found),
    Metric("pose_oks_ap", matches, pool=average_precision),
)


@dataclass(frozen=True)
class Judge:
    """Reads pictures of one condition with an annotator, and scores them against what they should have been. Where the
    rows say exactly what they hold, in the column `contents[0]`, that is scored too."""

    annotator: Any
    contents: tuple[str, ContentJudge] | None = None

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The leading one first."""
        return (*self._of_maps, *(self.contents[1].metrics if self.contents else ()))

    @property
    def _of_maps(self) -> tuple[Metric, ...]:
        return POSE_METRICS if self.annotator.type == "pose" else map_metrics(self.annotator.type)

    @property
    def metric(self) -> str:
        return self.metrics[0].name

    @property
    def lower_is_better(self) -> bool:
        return self.metrics[0].lower_is_better

    def measure_row(self, row: Row, made: Image, control: Image, picture: Image | None) -> dict[str, Any]:
        """What a picture made for a row shows by each metric that says something of it."""
        shown = self.measure(made, control, picture)
        if self.contents:
            column, judge = self.contents
            shown |= judge.measure(made, row.columns[column])
        return shown

    def measure(self, made: Image, control: Image, picture: Image | None) -> dict[str, Any]:
        """What a picture made under `control` shows of it. Poses are compared with those that are read in the real
        `picture`."""
        if self.annotator.type != "pose":
            found = self.annotator(made)
            wanted = self._fitted(control, found)
        elif picture is None:
            return {}
        else:
            found, wanted = self.annotator.keypoints(made), self.annotator.keypoints(picture)
        shown = {metric.name: metric.measure(found, wanted) for metric in self._of_maps}
        return {name: value for name, value in shown.items() if value is not None}

    def score(self, made: Image, control: Image, picture: Image | None) -> float | None:
        """By the leading metric; None where it says nothing."""
        shown = self.measure(made, control, picture)
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
    for column, make in CONTENT_JUDGES.items():
        if all(column in row.columns for row in rows):
            return replace(judge, contents=(column, make()))
    return judge
