"""Keypoints as OpenPose writes and draws them.

`pose_keypoints_2d` holds x, y, confidence of the 18 points of its COCO model, in pixels, whole numbers at the centres
of pixels. A point that cannot be seen is 0, 0, 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from controlkit.toybox.scene import Colour

POINTS = 18

# The sticks by the points they join, and the colours of sticks and points, as published maps are drawn.
STICKS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
HUES: tuple[Colour, ...] = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255),
    (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip

_FRACTION_BITS = 6  # OpenCV takes positions between pixels as whole numbers of 1/64
_ROUND = np.linspace(0, 2 * np.pi, 24, endpoint=False)


def to_json(people: list[NDArray[np.float64]], size: int) -> dict[str, Any]:
    """OpenPose's JSON of people whose points (18, 3) are x and y as shares of the picture, and confidence."""
    return {
        "version": 1.3,
        "canvas_width": size,
        "canvas_height": size,
        "people": [
            {
                "person_id": [-1],
                "pose_keypoints_2d": [
                    number
                    for x, y, confidence in points
                    for number in (
                        (round(float(x) * size - 0.5, 3), round(float(y) * size - 0.5, 3), round(float(confidence), 3))
                        if confidence > 0
                        else (0.0, 0.0, 0.0)
                    )
                ],
            }
            for points in people
        ],
    }


def draw_pose(
    keypoints: dict[str, Any], height: int, width: int, stick_width: float | None = None
) -> NDArray[np.uint8]:
    """The map (H, W, 3) RGB of OpenPose's JSON: sticks of 60 % brightness, full points on them, on black.

    `stick_width` is half the thickness of a stick in pixels of the map, as in OpenPose (OpenCV adds about half a pixel
    on either side); by default 4 at 512 pixels, in proportion, but at least 0.5.
    """
    if stick_width is None:
        stick_width = max(0.5, 4 * min(height, width) / 512)
    canvas = np.zeros((height, width, 3), np.uint8)
    for person in keypoints["people"]:
        points = np.array(person["pose_keypoints_2d"], float).reshape(POINTS, 3)
        sticks = _sticks(points[:, :2], stick_width)
        for (start, end), outline, hue in zip(STICKS, sticks, HUES, strict=False):
            if points[start, 2] > 0 and points[end, 2] > 0:
                dim = tuple(round(0.6 * channel) for channel in hue)
                cv2.fillConvexPoly(canvas, outline, dim, cv2.LINE_AA, _FRACTION_BITS)
        for centre, confidence, hue in zip(_fixed(points[:, :2]).tolist(), points[:, 2], HUES, strict=True):
            if confidence > 0:
                cv2.circle(canvas, centre, round(stick_width * 2**_FRACTION_BITS), hue, -1, cv2.LINE_AA, _FRACTION_BITS)
    return canvas


def _sticks(points: NDArray[np.float64], stick_width: float) -> NDArray[np.int32]:
    """The outline of each stick, an ellipse from point to point: (18, 2) -> (17, 24, 2)."""
    start, end = points[np.array(STICKS)].transpose(1, 0, 2)
    half = (end - start) / 2
    along = half / np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-9)
    across = stick_width * np.stack([-along[:, 1], along[:, 0]], axis=1)
    cos, sin = np.cos(_ROUND)[None, :, None], np.sin(_ROUND)[None, :, None]
    return _fixed(((start + end) / 2)[:, None] + cos * half[:, None] + sin * across[:, None])


def _fixed(position: NDArray[np.float64]) -> NDArray[np.int32]:
    fixed: NDArray[np.int32] = np.round(position * 2**_FRACTION_BITS).astype(np.int32)
    return fixed
