"""Bodies in a room become a picture, its depth, and which thing owns which pixel.

Every body is met by the rays of the window that it can be seen in; the nearest meeting wins. Each pixel takes the mean
of SAMPLES x SAMPLES rays, and so does the depth map; an odd number, so that one of them goes through its very centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import cv2
import numpy as np

from controlkit.toybox.camera import EYE, NEAREST, SKIRTING, WALL, Rays, brightness, directions, empty_depth, rectangles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controlkit.toybox.camera import Floats
    from controlkit.toybox.scene import Colour
    from controlkit.toybox.solids import Body

    Window = tuple[slice, slice]  # rows, columns

SAMPLES = 3

_LIGHT = np.array([-0.42, 0.82, -0.5]) / np.linalg.norm([-0.42, 0.82, -0.5])  # towards it: left, above, before
# Normals that reflect it into the eye. The light is a tall window: its lower end gives upright walls their share.
_REFLECTING = np.array([[-0.22, 0.55, -0.80], [-0.42, 0.16, -0.89]])

_CELLS = 20  # of the shadow map, for each unit of the floor
_LEFT, _RIGHT = -3.2, 3.2  # the part of the floor that it covers, in x; in z from NEAREST to WALL
_BLUR = 2.0  # of shadows, in cells
_FRACTION_BITS = 6  # OpenCV takes positions between cells as whole numbers of 1/64


@dataclass(frozen=True)
class Part:
    """A body, the number of the thing it belongs to, and how it looks."""

    body: Body
    thing: int
    colour: Colour
    shiny: bool = False
    casts_shadow: bool = True


@dataclass(frozen=True)
class Rendering:
    """`image` uint8 (H, W, 3) RGB, `depth_map` uint8 (H, W); at the centres of the pixels `depth` float32 (H, W), the z
    of what is seen, and `owners` int16 (H, W), the number of the thing seen or -1."""

    image: NDArray[np.uint8]
    depth_map: NDArray[np.uint8]
    depth: NDArray[np.float32]
    owners: NDArray[np.int16]


def render(parts: list[Part], wall: Colour, floor: Colour, size: int) -> Rendering:
    """The room with the parts in it, size x size pixels."""
    side = size * SAMPLES
    windows = _windows(parts, side)
    depth, seen = _meet(parts, windows, side)
    fine = _empty_room(parts, wall, floor, side)
    _shade(fine, parts, windows, depth, seen)
    centre = slice(SAMPLES // 2, None, SAMPLES)
    owners = np.array([*(part.thing for part in parts), -1], np.int16)  # -1, no part, picks the last
    return Rendering(
        image=_reduced(fine, size),
        depth_map=_reduced(brightness(depth) * np.float32(255), size),
        depth=depth[centre, centre].copy(),
        owners=owners[seen[centre, centre]],
    )


def _windows(parts: list[Part], side: int) -> list[Window]:
    """For each part the pixels that can see it."""
    bounds = np.array([part.body.bounds() for part in parts]).reshape(-1, 2, 3)
    edges = np.maximum(rectangles(bounds[:, 0], bounds[:, 1]) * side + [0, 0, 1, 1], 0).astype(int).tolist()
    return [(slice(top, bottom), slice(left, right)) for left, top, right, bottom in edges]


def _meet(parts: list[Part], windows: list[Window], side: int) -> tuple[Floats, NDArray[np.int16]]:
    """Depth of what each ray meets first, and the number of that part or -1, both (side, side)."""
    dx, dy = directions(side)
    depth = np.repeat(empty_depth(side), side, axis=1)
    seen = np.full((side, side), -1, np.int16)
    for number, (part, window) in enumerate(zip(parts, windows, strict=True)):
        begin = part.body.bounds()[0][2]
        t = part.body.hit(Rays.of(dx[:, window[1]], dy[window[0]], begin)) + np.float32(begin)
        nearer = t < depth[window]
        np.copyto(depth[window], t, where=nearer)
        np.copyto(seen[window], np.int16(number), where=nearer)
    return depth, seen


def _shade(image: Floats, parts: list[Part], windows: list[Window], depth: Floats, seen: NDArray[np.int16]) -> None:
    """Colour the pixels of the parts: soft light from the upper left, and on shiny ones its reflection."""
    side = len(depth)
    dx, dy = directions(side)
    places, normals, numbers = [], [], []
    for number, (part, (across, along)) in enumerate(zip(parts, windows, strict=True)):
        rows, columns = np.nonzero(seen[across, along] == number)
        if len(rows):
            rows, columns = rows + across.start, columns + along.start
            z = depth[rows, columns]
            places.append(rows * side + columns)
            normals.append(part.body.normal(dx[0, columns] * z, dy[rows, 0] * z + np.float32(EYE), z))
            numbers.append(np.full(len(rows), number))
    if not places:
        return
    place, owner, (nx, ny, nz) = np.concatenate(places), np.concatenate(numbers), np.concatenate(normals, axis=1)
    length = np.maximum(np.sqrt(nx * nx + ny * ny + nz * nz), np.float32(1e-12))
    nx, ny, nz = nx / length, ny / length, nz / length

    lx, ly, lz = _LIGHT.astype(np.float32)
    turned = np.float32(0.5) + np.float32(0.5) * (nx * lx + ny * ly + nz * lz)  # to the light: 1, away from it: 0
    light = np.float32(0.54) + np.float32(0.6) * turned * turned
    glint = np.zeros_like(nx)
    for rx, ry, rz in _REFLECTING.astype(np.float32):
        aligned = np.maximum(nx * rx + ny * ry + nz * rz, np.float32(0))
        glint = np.maximum(glint, _to_the_32nd(aligned))
    glint *= np.array([210.0 * part.shiny for part in parts], np.float32)[owner]
    colours = np.array([part.colour for part in parts], np.float32)[owner]
    image.reshape(-1, 3)[place] = np.minimum(colours * light[:, None] + glint[:, None], np.float32(255))


def _to_the_32nd(x: Floats) -> Floats:
    """Five products, where a power would be the slowest line of all."""
    for _ in range(5):
        x = x * x
    return x


def _empty_room(parts: list[Part], wall: Colour, floor: Colour, side: int) -> Floats:
    """Wall and floor with the shadows on it, float32 (side, side, 3)."""
    skirting, shades, across, along = _room(side)
    image = np.empty((side, side, 3), np.float32)
    image[:skirting] = (shades[:skirting, None] * np.array(wall, np.float32))[:, None, :]
    shadow = cv2.remap(_shadows(parts), across, along, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    light = shades[skirting:, None] * (1 - np.float32(0.45 / 255) * shadow)
    image[skirting:] = light[:, :, None] * np.array(floor, np.float32)
    return image


@lru_cache(maxsize=4)
def _room(side: int) -> tuple[int, Floats, Floats, Floats]:
    """The first row of the floor; the light of each row; where in the shadow map each pixel of the floor lies."""
    v = ((np.arange(side) + 0.5) / side).astype(np.float32)
    skirting = int(np.count_nonzero(v < SKIRTING))
    shades = np.where(v < SKIRTING, 1 - np.float32(0.16) * v, np.float32(0.86) + np.float32(0.14) * v)
    z = empty_depth(side)[skirting:]
    x = directions(side)[0] * z
    across = (x - np.float32(_LEFT)) * _CELLS - np.float32(0.5)
    along = np.broadcast_to((z - np.float32(NEAREST)) * _CELLS - np.float32(0.5), x.shape)
    return skirting, shades, across, np.ascontiguousarray(along)


def _shadows(parts: list[Part]) -> Floats:
    """How much light is missing in each cell of the floor, 0 to 255. A body's shadow is convex, as the body is."""
    shadow = np.zeros((round((WALL - NEAREST) * _CELLS), round((_RIGHT - _LEFT) * _CELLS)), np.float32)
    slope_x, slope_z = (-_LIGHT[[0, 2]] / _LIGHT[1]).tolist()
    for part in parts:
        if part.casts_shadow:
            cells = (part.body.shadow(slope_x, slope_z) - [_LEFT, NEAREST]) * _CELLS - 0.5
            hull = cv2.convexHull((cells * 2**_FRACTION_BITS).astype(np.int32))
            cv2.fillConvexPoly(shadow, hull, (255,), cv2.LINE_8, _FRACTION_BITS)
    blurred: Floats = cv2.GaussianBlur(shadow, (0, 0), _BLUR)
    return blurred


def _reduced(fine: Floats, size: int) -> NDArray[np.uint8]:
    """The mean over each pixel's samples, rounded."""
    mean = cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)
    return np.asarray(mean + np.float32(0.5)).astype(np.uint8)
