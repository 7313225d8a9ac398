"""How well the small readers read drawn scenes that they have not seen."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators.keypoints import People
from controlkit.evaluation.scores import Score
from controlkit.toybox.backends import ToyboxDepth, ToyboxPose
from controlkit.toybox.classifier import Contents
from controlkit.toybox.lessons import load_network
from controlkit.toybox.measure import UNSEEN, fidelity, judge
from controlkit.toybox.worlds import find_world

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

NEAR = 0.1  # of the longer side of a doll: so close to its place a joint is found


def measure_reader(
    learn: str,
    folder: Path | None = None,
    *,
    num: int = 500,
    seed: int = UNSEEN,
    size: int = 64,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """metric -> score of the reader in that folder (None: the one that comes with the package)."""
    worlds = ("rooms", "circles") if learn == "scenes" else ("rooms",)
    plans = [find_world(world).plan(seed, index) for world in worlds for index in range(num // len(worlds))]
    weights = None if folder is None else str(folder)
    depth, pose = ToyboxDepth(weights=weights), ToyboxPose(weights=weights)
    drawn = []
    for number, plan in enumerate(plans, start=1):
        drawn.append(plan.draw(size))
        progress(number, len(plans))
    images = [scene.image for scene in drawn]
    scores: dict[str, Score] = {}
    if learn == "scenes":
        seen = judge(load_network("scenes", folder), images)
        asked = [Contents.of(plan.facts) for plan in plans]
        scores = fidelity([plan.caption for plan in plans], asked, seen)
        exact = [set(was.things) == set(found.things) for was, found in zip(asked, seen.contents, strict=True)]
        scores["things_exact"] = Score.of_share(exact)
    elif learn == "depth":
        pairs = zip(depth.batch(images), drawn, strict=True)
        scores["depth_rmse"] = Score.of_values([_rmse(made, scene.maps["depth"]) for made, scene in pairs])
    else:
        people = [(pose.keypoints(scene.image), People.from_json(scene.keypoints)) for scene in drawn]
        scores["pose_pck_0.1"] = Score.of_share([hit for made, true in people for hit in joints_found(made, true)])
        scores["dolls_right"] = Score.of_share([len(made.persons) == len(true.persons) for made, true in people])
    return {metric: asdict(score) for metric, score in scores.items()}


def joints_found(made: People, true: People) -> list[bool]:
    """For each joint that can be seen whether it was found: each doll by the person whose joints are nearest to its,
    each person for one doll."""
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


def _distances(found: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Infinite where nothing was found."""
    distances: NDArray[np.float64] = np.linalg.norm(found[:, :2] - places, axis=1)
    return np.where(found[:, 2] > 0, distances, np.inf)


def _rmse(made: NDArray[np.uint8], true: NDArray[np.uint8]) -> float:
    """In shares of the range."""
    return float(np.sqrt(np.square((made.astype(np.float64) - true) / 255).mean()))
