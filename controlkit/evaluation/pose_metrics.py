"""Measures of poses, as points.

pose_pck_0.1   share of the joints within a tenth of the longer side of their person
pose_oks_ap    COCO's average precision at 0.50, 0.55, … 0.95 of object keypoint similarity: its 17 joints and their
               spreads, the area of a person taken for 0.53 of the box around the joints (as in CrowdPose), those
               found ranked by their mean confidence, precision read at 101 recalls
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annotators.keypoints import People, Person, Points

NEAR = 0.1
"""Of the longer side of a person: so close to its place a joint is found."""

THRESHOLDS = np.arange(10) * 0.05 + 0.5

_AREA = 0.53
# COCO's spreads in the order of OpenPose, whose neck COCO does not know.
_SPREADS = np.array(
    [
        *(0.026, np.nan, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062),  # nose, neck, right arm, left arm
        *(0.107, 0.087, 0.089, 0.107, 0.087, 0.089, 0.025, 0.025, 0.035, 0.035),  # legs, eyes, ears
    ]
)

Matches = tuple[int, list[tuple[float, list[bool]]]]
"""Of one picture: how many people there are; of each that was found its confidence, and at each threshold whether it is
one of them."""


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


def share_found(made: People, true: People) -> float | None:
    """None where nobody is."""
    hits = joints_found(made, true)
    return sum(hits) / len(hits) if hits else None


def similarity(found: Person, true: Person) -> float:
    """Object keypoint similarity: 1 where each joint that can be seen is in its place."""
    seen = (true.body[:, 2] > 0) & ~np.isnan(_SPREADS)
    places = true.body[seen, :2]
    area = max(_AREA * float(np.prod(np.ptp(places, axis=0))), 1.0)  # one pixel, where all joints lie on a line
    distances = _distances(found.body[seen], places)
    return float(np.exp(-(distances**2) / (2 * area * (2 * _SPREADS[seen]) ** 2)).mean())


def matches(made: People, true: People) -> Matches:
    """As COCO does it: the surest first, each takes of those that are left the person it is most like."""
    people = [each for each in true.persons if ((each.body[:, 2] > 0) & ~np.isnan(_SPREADS)).any()]
    sure = sorted(made.persons, key=lambda each: -_confidence(each))
    alike = np.array([[similarity(each, person) for person in people] for each in sure]).reshape(len(sure), len(people))
    met = np.zeros((len(sure), len(THRESHOLDS)), bool)
    for column, threshold in enumerate(THRESHOLDS):
        left = set(range(len(people)))
        for row in range(len(sure)):
            best = max(left, key=lambda person: alike[row, person], default=None)
            if best is not None and alike[row, best] >= threshold:
                met[row, column] = True
                left.remove(best)
    return len(people), [(_confidence(each), row.tolist()) for each, row in zip(sure, met, strict=True)]


def matches_together(shown: Sequence[Matches]) -> Matches:
    """Of several pictures."""
    return sum(count for count, _ in shown), [each for _, made in shown for each in made]


def average_precision(shown: Sequence[Matches]) -> float | None:
    """Over all pictures; None where nobody is."""
    people, made = matches_together(shown)
    if not people:
        return None
    found = sorted(made, key=lambda each: -each[0])
    if not found:
        return 0.0
    hits = np.array([met for _, met in found]).cumsum(axis=0)  # (found, thresholds)
    precision = hits / np.arange(1, len(found) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recalls = np.arange(101) / 100
    at = [np.searchsorted(column / people, recalls - 1e-12) for column in hits.T]
    padded = np.vstack([precision, np.zeros(precision.shape[1])])
    return float(np.mean([padded[places, number].mean() for number, places in enumerate(at)]))


def _confidence(person: Person) -> float:
    seen = person.body[person.body[:, 2] > 0, 2]
    return float(seen.mean()) if len(seen) else 0.0


def _distances(found: Points, places: Points) -> Points:
    """Infinite where nothing was found."""
    distances: Points = np.linalg.norm(found[:, :2] - places, axis=1)
    return np.where(found[:, 2] > 0, distances, np.inf)
