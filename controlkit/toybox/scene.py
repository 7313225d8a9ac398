"""A scene: what a world draws, and everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Colour = tuple[int, int, int]

# Names that a caption can use, far enough apart to be told apart in a small picture, in shadow too.
COLOURS: dict[str, Colour] = {
    "red": (220, 36, 40),
    "orange": (248, 128, 16),
    "yellow": (252, 222, 40),
    "green": (34, 164, 62),
    "cyan": (48, 206, 220),
    "blue": (36, 82, 220),
    "purple": (136, 58, 190),
    "pink": (250, 136, 190),
    "white": (250, 250, 250),
    "black": (40, 40, 44),
}

# What things stand on and before: quieter, so that nothing is lost against them.
GROUNDS: dict[str, Colour] = {
    "grey": (146, 148, 152),
    "beige": (232, 208, 170),
    "brown": (146, 104, 70),
    "light blue": (176, 210, 238),
    "dark blue": (50, 66, 122),
    "light green": (166, 216, 148),
    "dark green": (46, 98, 68),
    "dark red": (124, 38, 50),
}


@dataclass(frozen=True)
class Scene:
    """A picture with its caption and its control maps, all uint8 (H, W, 3) RGB; `facts` describe it in JSON's types.

    Where the world has them: `keypoints` in OpenPose's JSON format, and at the centres of the pixels `depth` float32
    (H, W), the distance along the optical axis, and `owners` int16 (H, W), the number of the object or -1.
    """

    image: NDArray[np.uint8]
    caption: str
    maps: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    keypoints: dict[str, Any] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    depth: NDArray[np.float32] | None = None
    owners: NDArray[np.int16] | None = None


class Plan(Protocol):
    """A scene before it is drawn: positions are shares of the picture, so that it is the same at every size."""

    @property
    def caption(self) -> str: ...

    @property
    def facts(self) -> dict[str, Any]: ...

    def draw(self, size: int) -> Scene: ...


def contrast(one: Colour, other: Colour) -> float:
    """The distance of two colours in RGB."""
    return float(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5)
