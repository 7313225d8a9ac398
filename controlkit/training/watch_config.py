"""What a training is told about watching itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

BINS = 4
"""Ranges of timesteps that the held-out loss is told apart by."""

_SHARE = 0.01  # of the run's time that looking may cost
_STEP = 2.5  # times what a forward pass costs: a row that is learned from has a backward pass and the optimizer too


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    every: int | None = None  # steps between looks; null: as often as costs 1 % of the time; 0: never
    rows: int = 8  # held-out rows that are looked at
    expect_by: int | None = None  # step at which missing control is diagnosed; null: at the end
    fidelity: bool = True  # annotate the samples again, and score them against their maps

    def problems(self) -> Iterator[str]:
        if self.every is not None and self.every < 0:
            yield f"watch.every={self.every}: expected 0 (never), a number of steps, or null"
        if self.rows < 2:
            yield f"watch.rows={self.rows}: expected at least 2, since the map of one is tried on another"
        if self.expect_by is not None and self.expect_by < 1:
            yield f"watch.expect_by={self.expect_by}: expected a step, or null"

    def interval(self, rows_a_step: int, types: int = 1) -> int:
        """Steps between looks. Counted in rows, not measured, so that every machine looks at the same steps: a look is
        two forward passes of each row in each range of timesteps, and two more for each of several types alone."""
        if self.every is not None:
            return self.every
        passes = 2 + (2 * types if types > 1 else 0)
        return math.ceil(passes * self.rows * BINS / (_STEP * rows_a_step * _SHARE))
