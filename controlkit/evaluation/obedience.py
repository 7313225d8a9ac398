"""Does a picture follow its map? It is annotated again, and what comes out is compared with what went in.

    canny, lineart, mlsd, scribble, softedge   F1 of the edge pixels, met within one pixel     1 is best
    depth                                      root mean square error in shares of the range   0 is best
    pose                                       share of the joints that are found (PCK)        1 is best

Which annotator reads the pictures is told by the map, if it was made here, else it is one of its type that works here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators import ANNOTATORS, MissingWeights
from controlkit.data.check import LINES
from controlkit.data.geometry import fit_map
from controlkit.data.ledger import read_entry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from annotators.contract import Image
    from annotators.keypoints import People, Points

NEAR = 0.1
"""Of the longer side of a person: so close to its place a joint is found."""


def edge_f1(found: Image, wanted: Image, tolerance: int = 1) -> float:
    """Harmonic mean of precision and recall over the pixels brighter than half, each met if the other map has one at
    most `tolerance` pixels away along each axis. Two maps without an edge agree."""
    import cv2

    one, other = (each.max(axis=2) >= 128 for each in (found, wanted))
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    reach = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    near_one, near_other = (cv2.dilate(each.astype(np.uint8), reach) > 0 for each in (one, other))
    precision, recall = near_other[one].mean(), near_one[other].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def depth_rmse(found: Image, wanted: Image) -> float:
    """In shares of the range from 0 to 255."""
    return float(np.sqrt(np.square((found.astype(np.float64) - wanted) / 255).mean()))


def joints_found(made: People, true: People) -> list[bool]:
    """For each joint that can be seen whether it was found: each person by the one whose joints are nearest to its,
    each of those for one person."""
    left = list(made.persons)
    hits: list[bool] = []
    for person in true.persons:
        seen = person.body[:, 2] > 0
        if not seen.any():
            continue
        places = person.body[seen, :2]
        reach = NEAR * np.ptp(places, axis=0).max() if len(places) > 1 else 1.0
        distances = [_distances(each.body[seen], places) for each in left]
        if not distances:
            hits += [False] * len(places)
            continue
        best = int(np.argmin([np.minimum(each, 10 * reach).mean() for each in distances]))
        hits += (distances[best] <= reach).tolist()
        left.pop(best)
    return hits


@dataclass(frozen=True)
class Judge:
    """Reads pictures of one condition with an annotator, and scores them against what they should have been."""

    annotator: Any

    @property
    def metric(self) -> str:
        if self.annotator.type == "depth":
            return "depth_rmse"
        return f"pose_pck_{NEAR:g}" if self.annotator.type == "pose" else f"{self.annotator.type}_f1_1px"

    @property
    def lower_is_better(self) -> bool:
        return bool(self.annotator.type == "depth")

    def score(self, made: Image, control: Image, picture: Image | None) -> float | None:
        """Of a picture made under `control`. Poses are compared as points with those read in the real `picture`; None
        where there is none, or nobody in it."""
        if self.annotator.type != "pose":
            return self._compare(self.annotator(made), control)
        if picture is None:
            return None
        hits = joints_found(self.annotator.keypoints(made), self.annotator.keypoints(picture))
        return sum(hits) / len(hits) if hits else None

    def on_real_pictures(self, pairs: Sequence[tuple[Image, Image]]) -> tuple[float, float]:
        """How well pictures that are known to follow their maps do so, compared as maps, and how well they follow the
        next one's: the best that can be reached, and chance."""
        read = [self.annotator(picture) for picture, _ in pairs]
        maps = [control for _, control in pairs]
        own = [self._compare(*pair) for pair in zip(read, maps, strict=True)]
        chance = [self._compare(*pair) for pair in zip(read, maps[1:] + maps[:1], strict=True)]
        return float(np.mean(own)), float(np.mean(chance))

    def _compare(self, found: Image, wanted: Image) -> float:
        """The map of another picture, which tells chance, may have another size."""
        wanted = fit_map(wanted, (found.shape[1], found.shape[0]), self.annotator.values)
        return depth_rmse(found, wanted) if self.annotator.type == "depth" else edge_f1(found, wanted)


def find_judge(condition: str, control: Path | None = None) -> Judge | str:
    """The judge of a condition, reading as the map `control` was made if that can be told; else why there is none.

    Nothing is downloaded for it.
    """
    if condition not in LINES and condition not in ("depth", "pose"):
        return f"there is no score for {condition}: known for {', '.join(sorted([*LINES, 'depth', 'pose']))}"
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


def _distances(found: Points, places: Points) -> Points:
    """Infinite where nothing was found."""
    distances: Points = np.linalg.norm(found[:, :2] - places, axis=1)
    return np.where(found[:, 2] > 0, distances, np.inf)
