"""The camera of the world `rooms`. It never moves, so that the same distance always has the same brightness.

World: x to the right, y up, z away from the camera; the floor is y = 0, the wall is z = WALL, the eye at (0, EYE, 0).
Picture: u to the right, v down, both shares of its side. The lens is shifted instead of tilted: verticals stay
vertical, and z is at once the depth along the optical axis.

    u = 1/2 + FOCAL x / z        v = HORIZON + FOCAL (EYE - y) / z        ray: (0, EYE, 0) + z (dx, dy, 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

Number = TypeVar("Number", float, "NDArray[np.float64]")

FOCAL = 3.3  # in sides of the picture
EYE = 3.4
WALL = 14.6
SKIRTING = 0.5  # the v at which the wall meets the floor
HORIZON = SKIRTING - FOCAL * EYE / WALL  # above the picture: the room is seen from above
NEAREST = FOCAL * EYE / (1 - HORIZON)  # z of the floor at the lower edge of the picture


@dataclass(frozen=True)
class Rays:
    """Rays (x, y, z) + t (dx, dy, 1), begun in the plane at `z`.

    For a picture x and dx are (1, W), y and dy (H, 1): what depends on one axis only costs next to nothing.
    """

    x: Floats
    y: Floats
    z: float
    dx: Floats
    dy: Floats

    @staticmethod
    def of(dx: Floats, dy: Floats, z: float) -> Rays:
        """Rays from the eye, begun in the plane at `z`: close to what they meet float32 is exact enough."""
        return Rays(dx * np.float32(z), dy * np.float32(z) + np.float32(EYE), z, dx, dy)


def project(x: Number, y: Number, z: Number) -> tuple[Number, Number]:
    """The (u, v) at which a point is seen."""
    return 0.5 + FOCAL * x / z, HORIZON + FOCAL * (EYE - y) / z


def rectangles(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rectangles (u0, v0, u1, v1), (..., 4), around what lies in the boxes from `low` to `high`, each (..., 3)."""
    near, far = low[..., 2], high[..., 2]
    below, above = EYE - low[..., 1], EYE - high[..., 1]  # the eye
    return np.stack(
        [
            0.5 + FOCAL * np.minimum(low[..., 0] / near, low[..., 0] / far),
            HORIZON + FOCAL * np.minimum(above / near, above / far),
            0.5 + FOCAL * np.maximum(high[..., 0] / near, high[..., 0] / far),
            HORIZON + FOCAL * np.maximum(below / near, below / far),
        ],
        axis=-1,
    )


@lru_cache(maxsize=4)
def directions(side: int) -> tuple[Floats, Floats]:
    """dx (1, side) and dy (side, 1) of the rays through the centres of side x side pixels."""
    centres = ((np.arange(side) + 0.5) / side).astype(np.float32)
    dx = (centres - np.float32(0.5)) / np.float32(FOCAL)
    dy = (np.float32(HORIZON) - centres) / np.float32(FOCAL)
    return dx[None, :], dy[:, None]


@lru_cache(maxsize=4)
def empty_depth(side: int) -> Floats:
    """Depth of the empty room, (side, 1): a row sees either the wall or one line of the floor."""
    floor: Floats = np.float32(EYE) / -directions(side)[1]
    return np.minimum(floor, np.float32(WALL))


def brightness(depth: Floats) -> Floats:
    """Depth as a map shows it, 0 to 1: the nearer the brighter, linear in 1/z as estimators of depth give it.

    The wall is 0 and the nearest floor 1, in every scene; on the floor it is linear in v.
    """
    share: Floats = (np.float32(1) / depth - np.float32(1 / WALL)) / np.float32(1 / NEAREST - 1 / WALL)
    return np.clip(share, np.float32(0), np.float32(1))
