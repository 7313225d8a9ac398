"""What stands in a room: a solid or a doll, its bodies, and where the camera sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from controlkit.toybox import dolls
from controlkit.toybox.camera import EYE, Rays, project, rectangles
from controlkit.toybox.solids import Box, Cone, Cylinder, Ellipsoid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from controlkit.toybox.solids import Body

    Rectangle = tuple[float, float, float, float]

SIZES = ("small", "big")  # far enough apart that a small thing in front is not taken for a big one at the back
SOLIDS = ("ball", "box", "cone", "cylinder")

_OVERLAP = 0.22  # the share of a thing's rectangle in the picture that another's may cover
_GAP = 0.06  # on the floor, between things


@dataclass(frozen=True)
class Outline:
    """What a thing takes up: (u0, v0, u1, v1) of the picture, (x0, z0, x1, z1) of the floor."""

    rectangle: Rectangle
    footprint: Rectangle

    def clear_of(self, other: Outline) -> bool:
        """Whether neither stands in the other nor hides much of it."""
        if _common(self.footprint, other.footprint, gap=_GAP) > 0:
            return False
        smaller = min(_area(self.rectangle), _area(other.rectangle))
        return _common(self.rectangle, other.rectangle) <= _OVERLAP * smaller


@dataclass(frozen=True)
class Thing:
    """`bodies` with their tints and `keypoints` (18, 4), x, y, z and 1 where the point can be seen, stand at (x, z)."""

    shape: str
    size: str
    bodies: tuple[tuple[Body, str], ...]
    colour: str = ""
    shiny: bool = False
    gesture: str | None = None
    keypoints: NDArray[np.float64] | None = None
    x: float = 0
    z: float = 0

    def moved(self, x: float, z: float) -> Thing:
        """The same thing elsewhere on the floor."""
        bodies = tuple((body.moved(x, z), tint) for body, tint in self.bodies)
        keypoints = None if self.keypoints is None else self.keypoints + np.array([x, 0, z, 0])
        return replace(self, bodies=bodies, keypoints=keypoints, x=self.x + x, z=self.z + z)

    @cached_property
    def outline(self) -> Outline:
        return self.outlines_at(np.zeros(1), np.zeros(1))[0]

    def outlines_at(self, x: NDArray[np.float64], z: NDArray[np.float64]) -> list[Outline]:
        """What it would take up if it were moved by (x, z), for K such steps at once."""
        steps = np.stack([x, np.zeros_like(x), z], axis=1)[:, None]
        low, high = np.array([body.bounds() for body, _ in self.bodies]).transpose(1, 0, 2)
        low, high = low + steps, high + steps  # (K, N, 3), of N bodies
        around = rectangles(low, high)
        in_picture = np.concatenate([around[..., :2].min(axis=1), around[..., 2:].max(axis=1)], axis=1)
        on_floor = np.concatenate([low[..., ::2].min(axis=1), high[..., ::2].max(axis=1)], axis=1)
        return [Outline(*each) for each in zip(in_picture.tolist(), on_floor.tolist(), strict=True)]


def solid(shape: str, size: str, yaw: float) -> Thing:
    """A ball, box, cone or cylinder at the origin; `yaw` in degrees turns a box."""
    big = size == "big"
    body: Body
    if shape == "ball":
        radius = 0.62 if big else 0.36
        body = Ellipsoid.ball((0, radius, 0), radius)
    elif shape == "box":
        half = 0.5 if big else 0.29
        body = Box((0, half, 0), (half, half, half), float(np.radians(yaw)))
    elif shape == "cone":
        body = Cone((0, 0, 0), *((0.6, 1.4) if big else (0.35, 0.82)))
    else:
        body = Cylinder((0, 0, 0), *((0.46, 1.15) if big else (0.27, 0.67)))
    return Thing(shape, size, ((body, dolls.PLAIN),))


def doll(size: str, gesture: dolls.Gesture, *, yaw: float, lean: float, mirrored: bool, jitter: dolls.Vector) -> Thing:
    """A doll at the origin; for the parameters see `dolls.pose`."""
    height = 1.95 if size == "big" else 1.35
    made = dolls.pose(gesture, height=height, yaw=yaw, lean=lean, mirrored=mirrored, jitter=jitter)
    keypoints = np.column_stack([made.keypoints, made.facing])
    return Thing("doll", size, tuple(made.bodies), gesture=gesture.words, keypoints=keypoints)


def seen_keypoints(thing: Thing, others: Sequence[Thing]) -> NDArray[np.float64] | None:
    """The points of a doll as the camera sees them, (18, 3): u, v, and 1 or 0 for a point that is out of the picture,
    on the far side of the head, or behind another thing. Found by a ray to each point, not from pixels."""
    if thing.keypoints is None:
        return None
    x, y, z, visible = thing.keypoints.T
    u, v = project(x, y, z)
    visible = (visible > 0) & (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    dx, dy = (direction.astype(np.float32)[None, :] for direction in (x / z, (y - EYE) / z))
    for other in others:
        if other is thing or other.outline.footprint[1] > z.max():
            continue
        for body, _ in other.bodies:
            begin = body.bounds()[0][2]
            visible &= ~(body.hit(Rays.of(dx, dy, begin))[0] + begin < z)
    return np.column_stack([u, v, visible])


def _area(rectangle: Rectangle) -> float:
    return (rectangle[2] - rectangle[0]) * (rectangle[3] - rectangle[1])


def _common(one: Rectangle, other: Rectangle, gap: float = 0) -> float:
    """The area that two rectangles share if there must be a gap between them."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + gap
    height = min(one[3], other[3]) - max(one[1], other[1]) + gap
    return max(width, 0) * max(height, 0)
