"""Two passes: a picture is painted, enlarged in pixels, and walked again at the large size, where details find room.

A base that paints far above its native size repeats itself. Here the first pass says what is where, and the second,
img2img under the same prompt and controls, only what it looks like from near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from controlkit.generation.enlarged import Enlarged

MOST = 4.0


@dataclass(frozen=True, kw_only=True)
class Hires(Enlarged):
    """The second pass."""

    strength: float = 0.5

    option: ClassVar[str] = "hires"
    scales: ClassVar[str] = f"above 1, at most {MOST:g}"

    @property
    def is_possible(self) -> bool:
        return 1 < self.scale <= MOST
