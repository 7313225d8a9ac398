"""Which maps of a row are emptied: all of them, or of several types some, so that a net learns to follow each alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlkit.training.draws import uniform

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ControlDropout:
    """`whole`: the share of rows whose maps are all emptied. `each`: of the others the share of each type's maps; one
    at least stays, the one whose draw lay farthest from being emptied."""

    whole: float = 0.0
    each: float = 0.0

    def emptied(self, types: Sequence[str], *draw: object) -> set[str]:
        """The types whose maps are emptied, of the row and epoch that the draw is named for."""
        if uniform(*draw, "control") < self.whole:
            return set(types)
        drawn = {type: uniform(*draw, "control", type) for type in types if self.each}
        kept = max(drawn, key=drawn.__getitem__, default=None)
        return {type for type, value in drawn.items() if value < self.each and type != kept}
