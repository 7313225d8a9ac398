"""The world `circles`: a coloured disc on a coloured ground; the caption names both colours.

The tutorial task of the original ControlNet, drawn here: an outline goes in, the colours come from the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.toybox.scene import COLOURS, GROUNDS, Scene, contrast

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NAMES = COLOURS | GROUNDS
_CONTRAST = 110  # at least, between disc and ground


@dataclass(frozen=True)
class Circle:
    """Centre and radius are shares of the picture."""

    disc: str
    ground: str
    x: float
    y: float
    radius: float

    @property
    def caption(self) -> str:
        return f"{'an' if self.disc[0] in 'aeiou' else 'a'} {self.disc} circle on a {self.ground} ground"

    @property
    def facts(self) -> dict[str, Any]:
        return {"disc": self.disc, "ground": self.ground, "x": self.x, "y": self.y, "radius": self.radius}

    def draw(self, size: int) -> Scene:
        centres = (np.arange(size) + 0.5) / size
        distance = np.hypot(centres[None, :] - self.x, centres[:, None] - self.y)
        inside = _share((self.radius - distance) * size)
        image = inside * _NAMES[self.disc] + (1 - inside) * _NAMES[self.ground]
        half = max(1.0, size / 128) / 2  # of the line, in pixels
        line = _share(half - np.abs(distance - self.radius) * size) * [255, 255, 255]
        return Scene(
            image=np.round(image).astype(np.uint8),
            caption=self.caption,
            maps={"outline": np.round(line).astype(np.uint8)},
            facts=self.facts,
        )


def plan(seed: int, index: int) -> Circle:
    """Scene `index` of that seed."""
    random = np.random.default_rng([seed, index])
    radius = random.uniform(0.15, 0.35)
    x, y = random.uniform(radius + 0.05, 0.95 - radius, 2)
    disc = list(COLOURS)[random.integers(len(COLOURS))]
    others = [name for name in _NAMES if contrast(_NAMES[name], _NAMES[disc]) >= _CONTRAST]
    ground = others[random.integers(len(others))]
    return Circle(disc, ground, round(float(x), 6), round(float(y), 6), round(float(radius), 6))


def _share(pixels_inside: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of a pixel that is covered, (H, W, 1), from how far its centre lies within the edge."""
    return np.clip(pixels_inside + 0.5, 0, 1)[:, :, None]
