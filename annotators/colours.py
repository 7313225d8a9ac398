"""Maps that keep the picture's colours or shapes and drop the rest: tile, blur, grey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from annotators.contract import Weightless, check_image, in_three_channels
from annotators.registry import ANNOTATORS

if TYPE_CHECKING:
    from annotators.contract import Image


@ANNOTATORS.register("tile")
@dataclass(frozen=True)
class Tile(Weightless):
    """The picture reduced by `factor` and enlarged again: what a tile ControlNet fills with detail."""

    factor: float = 4.0

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ValueError(f"tile: factor={self.factor:g}: expected 1 (the picture itself) or more")

    def __call__(self, image: Image) -> Image:
        import cv2
        import numpy as np

        check_image("tile", image)
        height, width = image.shape[:2]
        small_size = (max(1, round(width / self.factor)), max(1, round(height / self.factor)))
        small = cv2.resize(np.ascontiguousarray(image), small_size, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


@ANNOTATORS.register("blur")
@dataclass(frozen=True)
class Blur(Weightless):
    """The picture under a Gaussian of `sigma` pixels."""

    sigma: float = 9.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"blur: sigma={self.sigma:g}: expected more than 0 pixels")

    def __call__(self, image: Image) -> Image:
        import cv2
        import numpy as np

        check_image("blur", image)
        return np.asarray(cv2.GaussianBlur(np.ascontiguousarray(image), (0, 0), self.sigma), dtype=np.uint8)


@ANNOTATORS.register("grey")
@dataclass(frozen=True)
class Grey(Weightless):
    """The picture without its colours (luma of BT.601): what a recolouring ControlNet starts from."""

    def __call__(self, image: Image) -> Image:
        import cv2
        import numpy as np

        check_image("grey", image)
        return in_three_channels(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY))
