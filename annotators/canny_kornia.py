"""Canny edges as kornia has them, by which ControlNet++ and others measured: of the grey, blurred picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from annotators.contract import Weightless, check_image, in_three_channels
from annotators.registry import ANNOTATORS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from annotators.contract import Image

BRIGHTNESS = (0.299, 0.587, 0.114)
_LEAST = 1e-6  # under kornia's root


@ANNOTATORS.register("canny", backend="kornia")
@dataclass(frozen=True)
class CannyKornia(Weightless):
    """Canny edges as `kornia.filters.canny` finds them; lower thresholds keep more edges.

    The grey picture in [0, 1], blurred over 5 pixels with sigma 1; gradients of Sobel that are not normalised. On
    photographs these are other edges than OpenCV's: for measuring as others have measured, not for the published nets.
    """

    low: float = 0.1
    high: float = 0.2

    values: ClassVar[frozenset[int] | None] = frozenset({0, 255})

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < 1:
            raise ValueError(f"canny: low={self.low} and high={self.high}: expected 0 < low <= high < 1")

    def __call__(self, image: Image) -> Image:
        import cv2
        import numpy as np

        check_image("canny", image)
        grey = (image.astype(np.float32) / 255) @ np.array(BRIGHTNESS, np.float32)
        blurred = cv2.GaussianBlur(grey, (5, 5), 1)
        across = cv2.Sobel(blurred, cv2.CV_32F, 1, 0, borderType=cv2.BORDER_REPLICATE)
        down = cv2.Sobel(blurred, cv2.CV_32F, 0, 1, borderType=cv2.BORDER_REPLICATE)
        ridges = _ridges(np.sqrt(across**2 + down**2 + _LEAST), np.arctan2(down, across))
        return in_three_channels(_connected(ridges > self.low, ridges > self.high) * 255)


def _ridges(magnitude: NDArray[Any], angle: NDArray[Any]) -> NDArray[Any]:
    """Magnitudes that are greater than both neighbours along the gradient, to an eighth of a turn; else 0."""
    import numpy as np

    height, width = magnitude.shape
    framed = np.pad(magnitude, 1)
    steps = [(0, 1), (1, 1), (1, 0), (1, -1)]  # rows and columns to the neighbour ahead; the other one lies behind
    turn = (np.rint(angle * (4 / math.pi)).astype(int) % 4)[None]
    ahead, behind = (
        np.stack([framed[1 + sign * y :, 1 + sign * x :][:height, :width] for y, x in steps]) for sign in (1, -1)
    )
    greatest = np.take_along_axis(np.maximum(ahead, behind), turn, axis=0)[0]
    return np.where(magnitude > greatest, magnitude, 0)


def _connected(weak: NDArray[Any], strong: NDArray[Any]) -> NDArray[Any]:
    """The weak pixels from which others lead, side by side or corner to corner, to a strong one."""
    import cv2
    import numpy as np

    count, pieces = cv2.connectedComponents(weak.astype(np.uint8), connectivity=8)
    kept = np.zeros(count, bool)
    kept[pieces[strong]] = True
    kept[0] = False
    return np.asarray(kept[pieces])
