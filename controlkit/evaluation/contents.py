"""What else can be seen in pictures: whether one holds what its row says, how near all of them are to the real ones.

Nothing here knows what a row can say. What reads it is told from above, under the name of the column that says it, or
asked for by name (`quality.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from annotators.contract import Image
    from controlkit.data.rows import Row
    from controlkit.evaluation.metrics import Metric
    from controlkit.evaluation.sets import SetFigure


@dataclass(frozen=True)
class ContentJudge:
    """`read` says what a picture holds, `wanted` what a row and its real picture say that it should; `metrics` compare.
    `features` makes a vector of what was read, and `figures` compare the vectors of all pictures with the real ones'.
    `about`: what the figures cannot be read without."""

    read: Callable[[Image], Any]
    wanted: Callable[[Row, Image], Any] | None = None
    metrics: tuple[Metric, ...] = ()
    features: Callable[[Any], Any] | None = None
    figures: tuple[SetFigure, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)


CONTENT_JUDGES: dict[str, Callable[[], ContentJudge]] = {}
"""By column; made when they are needed."""
