"""A picture painted larger than it was: so many times its width and height, and how much of it is walked there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from controlkit.errors import RequestError
from controlkit.generation.strength import problem_of


@dataclass(frozen=True, kw_only=True)
class Enlarged:
    """What `--hires` and `--upscale` say; each has scales and a usual strength of its own."""

    scale: float
    strength: float  # the share of the steps that is walked at the large size

    option: ClassVar[str]
    scales: ClassVar[str]  # in words

    @classmethod
    def parse(cls, text: str) -> Self:
        """`SCALE[:STRENGTH]`."""
        match = re.fullmatch(r"(\d*\.?\d+)(?::(\d*\.?\d+))?", text)
        if not match:
            raise RequestError(f"--{cls.option} {text!r}: expected SCALE or SCALE:STRENGTH, e.g. 2 or 2:0.5")
        numbers = {"scale": float(match[1])} | ({"strength": float(match[2])} if match[2] else {})
        return cls(**numbers)

    def problems(self, steps: int) -> list[str]:
        """Of a walk of this share of the steps."""
        said = f"{self.option}={self.scale:g}:{self.strength:g}"
        found = []
        if not self.is_possible:
            found.append(f"{said}: expected a SCALE {self.scales}")
        if problem := problem_of(self.strength, steps, said=said, option=f"--{self.option} {self.scale:g}:"):
            found.append(problem)
        return found

    @property
    def is_possible(self) -> bool:
        """Whether the scale is one of these."""
        raise NotImplementedError
