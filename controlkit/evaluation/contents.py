"""Does a picture hold what its row says? Only for datasets that say it exactly, and only where something reads it.

Nothing here knows such a dataset: what reads pictures of one is told from above, under the name of the column that says
what each of them holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from annotators.contract import Image
    from controlkit.evaluation.metrics import Metric


@dataclass(frozen=True)
class ContentJudge:
    """`read` says what a picture holds, `wanted` what the value of a column says that it should; `metrics` compare."""

    read: Callable[[Image], Any]
    wanted: Callable[[str], Any]
    metrics: tuple[Metric, ...]

    def measure(self, made: Image, says: str) -> dict[str, Any]:
        found, wanted = self.read(made), self.wanted(says)
        return {metric.name: metric.measure(found, wanted) for metric in self.metrics}


CONTENT_JUDGES: dict[str, Callable[[], ContentJudge]] = {}
"""By column; made when they are needed."""
