"""How well the small readers read drawn scenes that they have not seen."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from annotators.keypoints import People
from controlkit.evaluation.metrics import depth_rmse
from controlkit.evaluation.pose_metrics import joints_found
from controlkit.evaluation.scores import Score
from controlkit.toybox.backends import ToyboxDepth, ToyboxPose
from controlkit.toybox.classifier import Contents
from controlkit.toybox.lessons import load_network
from controlkit.toybox.measure import UNSEEN, fidelity, judge
from controlkit.toybox.worlds import find_world

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
        scores["depth_rmse"] = Score.of_values([depth_rmse(made, scene.maps["depth"]) for made, scene in pairs])
    else:
        people = [(pose.keypoints(scene.image), People.from_json(scene.keypoints)) for scene in drawn]
        scores["pose_pck_0.1"] = Score.of_share([hit for made, true in people for hit in joints_found(made, true)])
        scores["dolls_right"] = Score.of_share([len(made.persons) == len(true.persons) for made, true in people])
    return {metric: asdict(score) for metric, score in scores.items()}
