"""A scene: what a world draws, and everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Names that a caption can use, far enough apart to be told apart in a small picture.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (243, 146, 32),
    "yellow": (246, 216, 48),
    "green": (46, 160, 67),
    "cyan": (64, 201, 214),
    "blue": (38, 84, 204),
    "purple": (132, 60, 178),
    "pink": (243, 140, 186),
    "brown": (121, 76, 44),
    "white": (242, 242, 242),
    "grey": (136, 136, 136),
    "black": (26, 26, 26),
}


@dataclass(frozen=True)
class Scene:
    """A picture with its caption and its control maps, uint8 (H, W, 3) RGB; `facts` describe it in JSON's types."""

    image: NDArray[np.uint8]
    caption: str
    maps: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
