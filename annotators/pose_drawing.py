"""Pose maps as the published pose ControlNets were trained on, drawn from points at any size.

Sticks of 60 % brightness between the points of the body, full points on them; lines of a hand in twenty hues with blue
points; a face in white points; all on black.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb
from typing import TYPE_CHECKING

from annotators.keypoints import rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image
    from annotators.keypoints import People, Points

    Colour = tuple[int, int, int]
    Sticks = tuple[tuple[int, int], ...]

VERSION = 1
"""Raised when the same points come to be drawn otherwise."""

# The sticks by the points they join, and the colours of sticks and points.
STICKS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
HUES: tuple[Colour, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255),
    (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip

# Each finger is a chain of four points from the wrist, which is point 0.
HAND_STICKS = tuple(
    (0 if joint == 1 else 4 * finger + joint - 1, 4 * finger + joint) for finger in range(5) for joint in range(1, 5)
)
HAND_HUES: tuple[Colour, ...] = tuple(
    (round(255 * red), round(255 * green), round(255 * blue))
    for red, green, blue in (hsv_to_rgb(number / len(HAND_STICKS), 1, 1) for number in range(len(HAND_STICKS)))
)
HAND_POINT: Colour = (0, 0, 255)
FACE_POINT: Colour = (255, 255, 255)

_FRACTION_BITS = 6  # OpenCV takes positions between pixels as whole numbers of 1/64
_CORNERS = 24  # of the polygon that stands for an ellipse
_FAR = 2.0**20  # pixels; what lies farther away is not seen, and OpenCV's numbers would not hold it


def draw(people: People, width: int, height: int, stick_width: float | None = None) -> Image:
    """The map (H, W, 3) RGB of these people, whatever the size of the picture they were found in.

    `stick_width` is half the thickness of a stick in pixels of the map, as in OpenPose (OpenCV adds about half a pixel
    on either side); by default 4 at 512 pixels, in proportion, but at least 0.5.
    """
    import numpy as np

    if stick_width is None:
        stick_width = usual_stick_width(width, height)
    canvas = np.zeros((height, width, 3), np.uint8)
    for person in people.scaled(width, height).persons:
        _draw_body(canvas, person.body, stick_width)
        for hand in (person.left_hand, person.right_hand):
            if hand is not None:
                _draw_hand(canvas, hand, stick_width)
        if person.face is not None:
            _draw_points(canvas, person.face, 0.75 * stick_width, (FACE_POINT,) * len(person.face))
    return canvas


def usual_stick_width(width: int, height: int) -> float:
    """What the ControlNets for poses were shown in pictures of that size."""
    return max(0.5, 4 * min(height, width) / 512)


def _draw_body(canvas: Image, body: Points, stick_width: float) -> None:
    dim = tuple((round(0.6 * red), round(0.6 * green), round(0.6 * blue)) for red, green, blue in HUES)
    _draw_sticks(canvas, body, STICKS, _ellipses(_ends(body, STICKS), stick_width), dim)
    _draw_points(canvas, body, stick_width, HUES)


def _draw_hand(canvas: Image, hand: Points, stick_width: float) -> None:
    _draw_sticks(canvas, hand, HAND_STICKS, _bars(_ends(hand, HAND_STICKS), stick_width / 4), HAND_HUES)
    _draw_points(canvas, hand, stick_width, (HAND_POINT,) * len(hand))


def _draw_sticks(canvas: Image, points: Points, sticks: Sticks, outlines: Points, colours: Sequence[Colour]) -> None:
    """Fill the outline (corners, 2) of each stick of which both ends are seen."""
    import cv2

    for (start, end), outline, colour in zip(sticks, _fixed(outlines), colours, strict=False):
        if points[start, 2] > 0 and points[end, 2] > 0:
            cv2.fillConvexPoly(canvas, outline, colour, cv2.LINE_AA, _FRACTION_BITS)


def _draw_points(canvas: Image, points: Points, radius: float, colours: Sequence[Colour]) -> None:
    import cv2

    size = round(radius * 2**_FRACTION_BITS)
    for centre, confidence, colour in zip(_fixed(rounded(points[:, :2])).tolist(), points[:, 2], colours, strict=True):
        if confidence > 0:
            cv2.circle(canvas, centre, size, colour, -1, cv2.LINE_AA, _FRACTION_BITS)


def _ends(points: Points, sticks: Sticks) -> Points:
    """The places that each stick joins: (2, sticks, 2)."""
    import numpy as np

    ends: Points = rounded(points[:, :2])[np.array(sticks)].transpose(1, 0, 2)
    return ends


def _ellipses(ends: Points, half_width: float) -> Points:
    """The outline of each stick, an ellipse from end to end: (2, sticks, 2) -> (sticks, corners, 2)."""
    import numpy as np

    start, end = ends
    along = (end - start) / 2
    across = _across(along, half_width)
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    cos, sin = np.cos(angle)[None, :, None], np.sin(angle)[None, :, None]
    outlines: Points = ((start + end) / 2)[:, None] + cos * along[:, None] + sin * across[:, None]
    return outlines


def _bars(ends: Points, half_width: float) -> Points:
    """The outline of each stick, a bar from end to end: (2, sticks, 2) -> (sticks, 4, 2)."""
    import numpy as np

    start, end = ends
    across = _across(end - start, half_width)
    return np.stack([start + across, end + across, end - across, start - across], axis=1)


def _across(along: Points, length: float) -> Points:
    """Vectors of that length at right angles to these."""
    import numpy as np

    along = along / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across: Points = length * np.stack([-along[:, 1], along[:, 0]], axis=1)
    return across


def _fixed(places: Points) -> NDArray[np.int32]:
    import numpy as np

    fixed: NDArray[np.int32] = np.round(np.clip(places, -_FAR, _FAR) * 2**_FRACTION_BITS).astype(np.int32)
    return fixed
