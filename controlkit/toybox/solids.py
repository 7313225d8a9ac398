"""What scenes are built of: convex bodies that answer where a ray meets them and how their surface is turned there.

All are closed forms. A body stands somewhere in the world; `hit` sees rays from the camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controlkit.toybox.camera import Floats, Rays

Point = tuple[float, float, float]

BEVEL = 0.12  # edges are shaded as if rounded over this share of a body's half width, which makes shiny ones glint

_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.zeros(20), np.sin(_ANGLES)], axis=1)  # in the plane of the floor


class Body(Protocol):
    def bounds(self) -> tuple[Point, Point]:
        """The lowest and highest corner of a box around the body, along the axes."""
        ...

    def moved(self, x: float, z: float) -> Body:
        """The same body elsewhere on the floor."""
        ...

    def hit(self, rays: Rays) -> Floats:
        """The t at which each ray meets the body first, (H, W), inf where it does not."""
        ...

    def normal(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Outward normals (3, N), of any length, at points (N,) of the surface."""
        ...

    def shadow(self, slope_x: float, slope_z: float) -> NDArray[np.float64]:
        """Points (N, 2), x and z, whose convex hull is its shadow on the floor; a point at height y shades the floor
        at (x + slope_x y, z + slope_z y)."""
        ...


@dataclass(frozen=True)
class Ellipsoid:
    """Half axes `radii` along its own x, y, z, turned by `yaw` about the vertical; three equal ones make a ball."""

    centre: Point
    radii: Point
    yaw: float = 0

    @staticmethod
    def ball(centre: Point, radius: float) -> Ellipsoid:
        return Ellipsoid(centre, (radius, radius, radius))

    def bounds(self) -> tuple[Point, Point]:
        x, y, z = self.radii
        if self.yaw:
            cos, sin = float(np.cos(self.yaw)), float(np.sin(self.yaw))
            x, z = ((x * cos) ** 2 + (z * sin) ** 2) ** 0.5, ((x * sin) ** 2 + (z * cos) ** 2) ** 0.5
        return _around(self.centre, (x, y, z))

    def moved(self, x: float, z: float) -> Ellipsoid:
        return Ellipsoid(_moved(self.centre, x, z), self.radii, self.yaw)

    def hit(self, rays: Rays) -> Floats:
        x, y, z, dx, dy, dz = _seen_from(self.centre, self.yaw, rays)
        rx, ry, rz = (np.float32(radius) for radius in self.radii)
        if not rx == ry == rz:  # a ball in the space that is squeezed by the radii
            x, y, z, dx, dy, dz = x / rx, y / ry, z / rz, dx / rx, dy / ry, dz / rz
            rx = np.float32(1)
        a = (dx * dx + dz * dz) + dy * dy
        b = (dx * x + dz * z) + dy * y
        c = (x * x + z * z) + (y * y - rx * rx)
        return _first_root(a, b, c)

    def normal(self, x: Floats, y: Floats, z: Floats) -> Floats:
        local_x, local_z = _turn(x - np.float32(self.centre[0]), z - np.float32(self.centre[2]), self.yaw)
        rx, ry, rz = (np.float32(radius**2) for radius in self.radii)
        turned_x, turned_z = _turn(local_x / rx, local_z / rz, -self.yaw)
        return np.stack([turned_x, (y - np.float32(self.centre[1])) / ry, turned_z])

    def shadow(self, slope_x: float, slope_z: float) -> NDArray[np.float64]:
        flat = _flattening(slope_x, slope_z)
        rx, ry, rz = self.radii
        if rx == ry == rz:
            ellipse = _ball_shadow(slope_x, slope_z) * rx
        else:
            cos, sin = np.cos(self.yaw), np.sin(self.yaw)
            ellipse = _image_of_the_ball(flat @ (np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]]) * self.radii))
        return ellipse + flat @ self.centre


@dataclass(frozen=True)
class Capsule:
    """All points within `radius` of the segment from `start` to `end`."""

    start: Point
    end: Point
    radius: float

    def bounds(self) -> tuple[Point, Point]:
        (ax, ay, az), (bx, by, bz), r = self.start, self.end, self.radius
        return (min(ax, bx) - r, min(ay, by) - r, min(az, bz) - r), (max(ax, bx) + r, max(ay, by) + r, max(az, bz) + r)

    def moved(self, x: float, z: float) -> Capsule:
        return Capsule(_moved(self.start, x, z), _moved(self.end, x, z), self.radius)

    def hit(self, rays: Rays) -> Floats:
        x, y, z, dx, dy, dz = _seen_from(self.start, 0, rays)
        ax, ay, az = (np.float32(e - s) for s, e in zip(self.start, self.end, strict=True))
        squared, r2 = ax * ax + ay * ay + az * az, np.float32(self.radius**2)
        dd = (dx * dx + dz * dz) + dy * dy
        od = (dx * x + dz * z) + dy * y
        oo = (x * x + z * z) + (y * y - r2)
        da = (dx * ax + dz * az) + dy * ay
        oa = (x * ax + z * az) + y * ay

        # The endless cylinder, and where along the axis it is met: 0 at the start, `squared` at the end.
        side = _first_root(squared * dd - da * da, squared * od - oa * da, squared * oo - oa * oa)
        with np.errstate(invalid="ignore"):
            along = oa + side * da
        # Beyond an end it is the ball there or nothing. A ray that misses the cylinder misses both balls.
        at_end = along >= squared
        ball = _first_root(dd, np.where(at_end, od - da, od), np.where(at_end, oo - 2 * oa + squared, oo))
        return np.where(at_end | (along <= 0), ball, side)

    def normal(self, x: Floats, y: Floats, z: Floats) -> Floats:
        (sx, sy, sz), (ax, ay, az) = self.start, (e - s for s, e in zip(self.start, self.end, strict=True))
        x, y, z = x - np.float32(sx), y - np.float32(sy), z - np.float32(sz)
        along = x * np.float32(ax) + y * np.float32(ay) + z * np.float32(az)
        share = np.clip(along / np.float32(ax * ax + ay * ay + az * az), np.float32(0), np.float32(1))
        return np.stack([x - share * np.float32(ax), y - share * np.float32(ay), z - share * np.float32(az)])

    def shadow(self, slope_x: float, slope_z: float) -> NDArray[np.float64]:
        ellipse, flat = _ball_shadow(slope_x, slope_z) * self.radius, _flattening(slope_x, slope_z)
        return np.concatenate([ellipse + flat @ self.start, ellipse + flat @ self.end])


@dataclass(frozen=True)
class Box:
    """`half` widths along its own x, y, z, turned by `yaw` about the vertical."""

    centre: Point
    half: Point
    yaw: float

    def bounds(self) -> tuple[Point, Point]:
        cos, sin = abs(float(np.cos(self.yaw))), abs(float(np.sin(self.yaw)))
        x, y, z = self.half
        return _around(self.centre, (x * cos + z * sin, y, x * sin + z * cos))

    def moved(self, x: float, z: float) -> Box:
        return Box(_moved(self.centre, x, z), self.half, self.yaw)

    def hit(self, rays: Rays) -> Floats:
        x, y, z, dx, dy, dz = _seen_from(self.centre, self.yaw, rays)
        half_x, half_y, half_z = (np.float32(half) for half in self.half)
        in_x, out_x = _between(x, dx, half_x)
        in_y, out_y = _between(y, dy, half_y)
        in_z, out_z = _between(z, dz, half_z)
        enters = np.maximum(np.maximum(in_x, in_z), in_y)
        leaves = np.minimum(np.minimum(out_x, out_z), out_y)
        return np.where(enters <= leaves, enters, np.float32(np.inf))

    def normal(self, x: Floats, y: Floats, z: Floats) -> Floats:
        local_x, local_z = _turn(x - np.float32(self.centre[0]), z - np.float32(self.centre[2]), self.yaw)
        bevel = BEVEL * min(self.half)
        n = [
            np.sign(p) * _ramp(np.abs(p), half, bevel)
            for p, half in zip((local_x, y - np.float32(self.centre[1]), local_z), self.half, strict=True)
        ]
        turned_x, turned_z = _turn(n[0], n[2], -self.yaw)
        return np.stack([turned_x, n[1], turned_z])

    def shadow(self, slope_x: float, slope_z: float) -> NDArray[np.float64]:
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        corners = np.array([(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) * self.half
        world = corners @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]) + self.centre
        points: NDArray[np.float64] = world @ _flattening(slope_x, slope_z).T
        return points


@dataclass(frozen=True)
class Cone:
    """Standing upright on `base`, the centre of its lower disc."""

    base: Point
    radius: float
    height: float

    def bounds(self) -> tuple[Point, Point]:
        return _upright(self.base, self.radius, self.height)

    def moved(self, x: float, z: float) -> Cone:
        return Cone(_moved(self.base, x, z), self.radius, self.height)

    def hit(self, rays: Rays) -> Floats:
        """Of the mantle: the disc that it stands on is never seen."""
        x, y, z, dx, dy, dz = _seen_from(self.base, 0, rays)
        k2 = np.float32((self.radius / self.height) ** 2)  # x^2 + z^2 = k^2 (height - y)^2
        below = np.float32(self.height) - y
        a = (dx * dx + dz * dz) - k2 * dy * dy
        b = (dx * x + dz * z) + k2 * below * dy
        c = (x * x + z * z) - k2 * below * below
        t = _first_root(a, b, c)
        return np.where(_between_floor_and(self.height, y, dy, t), t, np.float32(np.inf))

    def normal(self, x: Floats, y: Floats, z: Floats) -> Floats:
        x, z = x - np.float32(self.base[0]), z - np.float32(self.base[2])
        return np.stack([x, np.float32(self.radius / self.height) * np.hypot(x, z), z])

    def shadow(self, slope_x: float, slope_z: float) -> NDArray[np.float64]:
        points = np.concatenate([_CIRCLE * self.radius, [(0, self.height, 0)]]) + self.base
        return points @ _flattening(slope_x, slope_z).T


@dataclass(frozen=True)
class Cylinder:
    """Standing upright on `base`, the centre of its lower disc."""

    base: Point
    radius: float
    height: float

    def bounds(self) -> tuple[Point, Point]:
        return _upright(self.base, self.radius, self.height)

    def moved(self, x: float, z: float) -> Cylinder:
        return Cylinder(_moved(self.base, x, z), self.radius, self.height)

    def hit(self, rays: Rays) -> Floats:
        """Of the mantle and the upper disc: the one that it stands on is never seen."""
        x, y, z, dx, dy, dz = _seen_from(self.base, 0, rays)
        r2 = np.float32(self.radius**2)
        mantle = _first_root(dx * dx + dz * dz, dx * x + dz * z, x * x + z * z - r2)
        lid = (np.float32(self.height) - y) / dy  # dy is never 0: all rays go down
        on_lid = (x + lid * dx) ** 2 + (z + lid * dz) ** 2 <= r2
        on_mantle = _between_floor_and(self.height, y, dy, mantle)
        return np.where(on_mantle, mantle, np.where(on_lid, lid, np.float32(np.inf)))

    def normal(self, x: Floats, y: Floats, z: Floats) -> Floats:
        x, z = x - np.float32(self.base[0]), z - np.float32(self.base[2])
        bevel = BEVEL * self.radius
        outward = _ramp(np.hypot(x, z), self.radius, bevel) / np.float32(self.radius)
        upward = _ramp(y - np.float32(self.base[1]), self.height, bevel)
        return np.stack([x * outward, upward, z * outward])

    def shadow(self, slope_x: float, slope_z: float) -> NDArray[np.float64]:
        lower = _CIRCLE * self.radius + self.base
        upper = lower + np.array([0, self.height, 0])
        return np.concatenate([lower, upper]) @ _flattening(slope_x, slope_z).T


def _first_root(a: Floats, b: Floats, c: Floats) -> Floats:
    """The smaller t of a t^2 + 2 b t + c = 0 (a > 0), inf where there is none."""
    inside = b * b - a * c
    return np.where(inside >= 0, (-b - np.sqrt(np.maximum(inside, np.float32(0)))) / a, np.float32(np.inf))


def _between(position: Floats, direction: Floats, half: np.float32) -> tuple[Floats, Floats]:
    """The t between which a ray is within `half` of 0 in one direction."""
    inverse: Floats = np.float32(1) / (direction + np.float32(1e-20))  # changes nothing but an exact 0
    middle, reach = -position * inverse, half * np.abs(inverse)
    return middle - reach, middle + reach


def _between_floor_and(height: float, y: Floats, dy: Floats, t: Floats) -> NDArray[np.bool_]:
    """Whether a ray is between the floor and `height` at t; a grain of rounding below the floor counts."""
    with np.errstate(invalid="ignore"):
        at = y + t * dy
    return (at >= np.float32(-1e-4)) & (at <= np.float32(height))


def _seen_from(centre: Point, yaw: float, rays: Rays) -> tuple[Floats, Floats, Floats, Floats, Floats, Floats]:
    """x, y, z, dx, dy, dz of rays as seen from a body at `centre` that is turned by `yaw`."""
    z = np.full((1, 1), rays.z - centre[2], np.float32)
    x, z = _turn(rays.x - np.float32(centre[0]), z, yaw)
    dx, dz = _turn(rays.dx, _ONE, yaw)
    return x, rays.y - np.float32(centre[1]), z, dx, rays.dy, dz


_ONE = np.ones((1, 1), np.float32)


def _turn(x: Floats, z: Floats, yaw: float) -> tuple[Floats, Floats]:
    if yaw == 0:
        return x, z
    cos, sin = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    return cos * x + sin * z, cos * z - sin * x


@lru_cache(maxsize=1)
def _flattening(slope_x: float, slope_z: float) -> NDArray[np.float64]:
    """The matrix (2, 3) that takes a point to its shadow on the floor."""
    return np.array([[1, slope_x, 0], [0, slope_z, 1]])


@lru_cache(maxsize=1)
def _ball_shadow(slope_x: float, slope_z: float) -> NDArray[np.float64]:
    """The outline (N, 2) of the shadow of a ball of radius 1 at the origin."""
    return _image_of_the_ball(_flattening(slope_x, slope_z))


def _image_of_the_ball(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The outline (N, 2) of the ellipse to which a matrix (2, 3) takes the unit ball."""
    left, stretch, _ = np.linalg.svd(matrix)
    outline: NDArray[np.float64] = _CIRCLE[:, ::2] @ (left * stretch).T
    return outline


def _ramp(position: Floats, end: float, width: float) -> Floats:
    """0 until `width` before `end`, then up to 1."""
    share: Floats = (position - np.float32(end - width)) / np.float32(width)
    return np.clip(share, np.float32(0), np.float32(1))


def _around(centre: Point, half: Point) -> tuple[Point, Point]:
    (x, y, z), (a, b, c) = centre, half
    return (x - a, y - b, z - c), (x + a, y + b, z + c)


def _moved(point: Point, x: float, z: float) -> Point:
    return point[0] + x, point[1], point[2] + z


def _upright(base: Point, radius: float, height: float) -> tuple[Point, Point]:
    x, y, z = base
    return (x - radius, y, z - radius), (x + radius, y + height, z + radius)
