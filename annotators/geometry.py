"""The size at which a picture is looked at, and the way back.

A network sees the picture scaled by one factor for both sides, so that nothing is distorted, and mirrored outwards at
the right and the bottom to the sides that it can take; its answer is cut to the picture again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image

LONGEST_ASPECT = 4
"""The area is at most that of a picture of this aspect, however long it is: a line of pixels would fill the memory."""


def working_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Height and width with `resolution` pixels on the shorter side."""
    scale = min(resolution / min(height, width), resolution * math.sqrt(LONGEST_ASPECT / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def scaled(image: Image, resolution: int) -> Image:
    """The picture at its working size."""
    import cv2
    import numpy as np

    height, width = working_size(image.shape[0], image.shape[1], resolution)
    if (height, width) == image.shape[:2]:
        return np.ascontiguousarray(image)
    reducing = height * width < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if reducing else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how), dtype=np.uint8)


def padded(image: Image, multiple: int) -> Image:
    """Mirrored at the right and the bottom until both sides are a multiple."""
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    border = (0, -height % multiple, 0, -width % multiple)
    return np.asarray(cv2.copyMakeBorder(image, *border, cv2.BORDER_REFLECT), dtype=np.uint8)


def resized(raster: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """A raster (h, w, C) of numbers at the size of the picture, without overshoot."""
    import cv2
    import numpy as np

    if raster.shape[:2] == (height, width):
        return raster
    how = cv2.INTER_AREA if height * width < raster.shape[0] * raster.shape[1] else cv2.INTER_LINEAR
    made = cv2.resize(raster, (width, height), interpolation=how)
    return np.asarray(made, dtype=np.float32).reshape(height, width, raster.shape[2])
