"""Two passes: a picture is painted, enlarged in pixels, and walked again at the large size, where details find room.

A base that paints far above its native size repeats itself. Here the first pass says what is where, and the second,
img2img under the same prompt and controls, only what it looks like from near.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from controlkit.errors import RequestError
from controlkit.generation.strength import problem_of

MOST = 4.0


@dataclass(frozen=True, kw_only=True)
class Hires:
    """The second pass: so many times the width and the height, and the share of the steps that it walks."""

    scale: float
    strength: float = 0.5

    @staticmethod
    def parse(text: str) -> Hires:
        """`SCALE[:STRENGTH]`."""
        match = re.fullmatch(r"(\d*\.?\d+)(?::(\d*\.?\d+))?", text)
        if not match:
            raise RequestError(f"--hires {text!r}: expected SCALE or SCALE:STRENGTH, e.g. 2 or 2:0.5")
        scale = float(match[1])
        return Hires(scale=scale, strength=float(match[2])) if match[2] else Hires(scale=scale)

    def problems(self, steps: int) -> list[str]:
        """Of a second pass of which this share of the steps is walked."""
        said = f"hires={self.scale:g}:{self.strength:g}"
        found = []
        if not 1 < self.scale <= MOST:
            found.append(f"{said}: expected a SCALE above 1, at most {MOST:g}")
        if problem := problem_of(self.strength, steps, said=said, option=f"--hires {self.scale:g}:"):
            found.append(problem)
        return found
