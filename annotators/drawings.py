"""Lines without a network: by differences of Gaussians, or from what is a drawing already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from annotators.contract import Weightless, check_image, in_three_channels, resize_map
from annotators.geometry import resized, scaled
from annotators.registry import ANNOTATORS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image


@ANNOTATORS.register("lineart", backend="standard")
@dataclass(frozen=True)
class LineartStandard(Weightless):
    """Soft lines where the picture is darker than its surroundings in all channels, without weights.

    sigma       pixels of the Gaussian that says what the surroundings are, at `resolution`
    threshold   differences up to this count as none when the brightness of the lines is set
    """

    sigma: float = 6.0
    threshold: float = 8.0
    resolution: int = 512

    def __call__(self, image: Image) -> Image:
        import numpy as np

        check_image("lineart", image)
        darker = _darker_than_around(scaled(image, self.resolution), 0, self.sigma).clip(0, 255)
        lines = darker[darker > self.threshold]
        typical = max(16.0, float(np.median(lines))) if lines.size else 16.0
        bright = (darker / typical * 127).clip(0, 255)
        grey = resized(bright[:, :, None].astype(np.float32), *image.shape[:2])
        return in_three_channels(grey[:, :, 0])


@ANNOTATORS.register("scribble", backend="xdog")
@dataclass(frozen=True)
class ScribbleXDoG(Weightless):
    """Strokes where a narrow Gaussian is darker than a wide one in all channels, without weights.

    threshold  the higher, the fewer strokes; differences are doubled before they are compared
    """

    threshold: float = 32.0
    resolution: int = 512

    values: ClassVar[frozenset[int] | None] = frozenset({0, 255})

    def __call__(self, image: Image) -> Image:
        import numpy as np

        check_image("scribble", image)
        darker = _darker_than_around(scaled(image, self.resolution), 0.5, 5.0)
        strokes = np.where(2 * darker > self.threshold, 255, 0).astype(np.uint8)
        height, width = image.shape[:2]
        return resize_map(in_three_channels(strokes), width, height, self.values)


@ANNOTATORS.register("lineart", backend="invert")
@dataclass(frozen=True)
class LineartInvert(Weightless):
    """A drawing of dark lines on white paper as bright lines on black."""

    def __call__(self, image: Image) -> Image:
        check_image("lineart", image)
        return 255 - image


@ANNOTATORS.register("scribble", backend="threshold")
@dataclass(frozen=True)
class ScribbleThreshold(Weightless):
    """A drawing of dark strokes on white paper as white on black; what is darker than `threshold` is stroke."""

    threshold: int = 128

    values: ClassVar[frozenset[int] | None] = frozenset({0, 255})

    def __call__(self, image: Image) -> Image:
        import cv2
        import numpy as np

        check_image("scribble", image)
        luma = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
        strokes = np.where(luma < self.threshold, 255, 0).astype(np.uint8)
        return in_three_channels(strokes)


def _darker_than_around(image: Image, narrow: float, wide: float) -> NDArray[np.float32]:
    """(H, W): by how much the picture is darker than its surroundings in the channel where it is so the least."""
    import cv2
    import numpy as np

    pixels = image.astype(np.float32)
    around = cv2.GaussianBlur(pixels, (0, 0), wide)
    here = cv2.GaussianBlur(pixels, (0, 0), narrow) if narrow else pixels
    return np.asarray((around - here).min(axis=2), dtype=np.float32)
