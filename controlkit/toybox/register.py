"""Tells the rooms below what the toybox has: its worlds can be named where a dataset is expected, its readers are
backends of depth and pose, and what their scenes hold can be scored."""

from functools import partial

import controlkit.toybox.backends  # noqa: F401  (registers them)
from controlkit.data.rows import WORLDS as NAMED_DATASETS
from controlkit.evaluation.contents import CONTENT_JUDGES, ContentJudge
from controlkit.toybox.make import cached_world
from controlkit.toybox.worlds import WORLDS


def _scene_judge() -> ContentJudge:
    from controlkit.toybox.contents import scene_judge  # loads torch

    return scene_judge()


CONTENT_JUDGES.setdefault("scene", _scene_judge)  # the column of their metadata that holds the facts
for _name in WORLDS:
    NAMED_DATASETS.setdefault(_name, partial(cached_world, _name))
