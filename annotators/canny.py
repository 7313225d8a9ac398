"""Canny edges, white on black."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from annotators.chance import stream
from annotators.contract import Weightless, check_image, in_three_channels
from annotators.registry import ANNOTATORS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image

EDGE_SHARE = 0.1  # of the pixels may start an edge under `auto`
ABOVE_TYPICAL = 3  # times the median gradient, which in noise and in fine texture is what most pixels have
LEAST = 40  # below it lie the grain and the rounding of a flat wall


@ANNOTATORS.register("canny")
@dataclass(frozen=True)
class Canny(Weightless):
    """Canny edges, white on black; lower thresholds keep more edges.

    `cv2.Canny` of the three-channel RGB picture with 100 and 200 is what the published canny ControlNets were trained
    on. The three channels matter: the edges of the grey picture are others (F1 of about 84 % between the two).

    mode
        fixed   the thresholds are `low` and `high`
        auto    `high` is the gradient that a tenth of this picture's pixels reach, but three times its median at
                least, and `low` half of it. A picture of little contrast keeps its edges and a brighter one has the
                same ones, while lawn and grain stay thin: over scikit-image's photographs edges take 2 to 16 % of the
                pixels, 0 to 31 % with 100 and 200, and as much by the median of the grey values, the usual rule.
        random  both are scaled by one factor between 1/2 and 2, drawn from the picture's bytes and `seed`
    """

    low: int = 100
    high: int = 200
    mode: Literal["fixed", "auto", "random"] = "fixed"
    seed: int = 0

    values: ClassVar[frozenset[int] | None] = frozenset({0, 255})

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"canny: low={self.low} and high={self.high}: expected 0 <= low <= high")

    def __call__(self, image: Image) -> Image:
        import cv2
        import numpy as np

        check_image("canny", image)
        image = np.ascontiguousarray(image)
        return in_three_channels(cv2.Canny(image, *self.thresholds(image)))

    def thresholds(self, image: Image) -> tuple[float, float]:
        """Low and high for this picture."""
        import numpy as np

        if self.mode == "auto":
            gradient = _gradient(image)
            strong, typical = np.quantile(gradient, (1 - EDGE_SHARE, 0.5))
            high = max(float(strong), ABOVE_TYPICAL * float(typical), LEAST)
            return high / 2, high
        if self.mode == "random":
            factor = 2 ** stream(image, self.seed).uniform(-1, 1)
            return self.low * factor, self.high * factor
        return self.low, self.high


def _gradient(image: Image) -> NDArray[np.int16]:
    """(H, W): |dx| + |dy| in the channel where it is largest, which is what cv2.Canny compares."""
    import cv2
    import numpy as np

    across = np.abs(cv2.Sobel(image, cv2.CV_16S, 1, 0, borderType=cv2.BORDER_REPLICATE))
    down = np.abs(cv2.Sobel(image, cv2.CV_16S, 0, 1, borderType=cv2.BORDER_REPLICATE))
    return np.asarray((across + down).max(axis=2), dtype=np.int16)
