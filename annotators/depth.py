"""Depth maps: near is bright, each picture scaled alone.

Every backend gives nearness (H, W), float32 of any unit, larger where it is nearer; `to_map` makes grey levels of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from annotators.contract import in_three_channels
from annotators.dense import DenseAnnotator
from annotators.geometry import resized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image


def to_map(depth: NDArray[np.float32], bits: int = 8) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Grey levels (H, W) over the whole range: 0 farthest, the largest nearest. A constant depth is black."""
    import numpy as np

    if bits not in (8, 16):
        raise ValueError(f"depth: bits={bits}: expected 8 or 16")
    if not np.isfinite(depth).all():
        raise ValueError("depth: the network gave numbers that are not finite; are its weights whole?")
    low, span = float(depth.min()), float(depth.max()) - float(depth.min())
    levels = 2**bits - 1
    share = (depth.astype(np.float64) - low) / span if span > 0 else np.zeros(depth.shape)
    grey = np.asarray(share * levels)
    return grey.astype(np.uint8) if bits == 8 else grey.astype(np.uint16)


@dataclass(frozen=True)
class DepthAnnotator(DenseAnnotator):
    """A network that estimates depth."""

    def nearness(self, raster: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network says of a picture (h, w, 1), as nearness."""
        return raster

    def depth(self, image: Image) -> NDArray[np.float32]:
        """Nearness of one picture at its own size."""
        return self.depths([image])[0]

    def depths(self, images: list[Image]) -> list[NDArray[np.float32]]:
        """Nearness of several pictures, each at its own size."""
        return [
            resized(self.nearness(raster), *image.shape[:2])[:, :, 0]
            for raster, image in zip(self.rasters(images), images, strict=True)
        ]

    def finish(self, raster: NDArray[np.float32], height: int, width: int) -> Image:
        return in_three_channels(to_map(resized(self.nearness(raster), height, width)[:, :, 0]))
