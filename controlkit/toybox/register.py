"""Tells the rooms below what the toybox has: its worlds can be named where a dataset is expected, its readers are
backends of depth and pose."""

from functools import partial

import controlkit.toybox.backends  # noqa: F401  (registers them)
from controlkit.data.rows import WORLDS as NAMED_DATASETS
from controlkit.toybox.make import cached_world
from controlkit.toybox.worlds import WORLDS

for _name in WORLDS:
    NAMED_DATASETS.setdefault(_name, partial(cached_world, _name))
