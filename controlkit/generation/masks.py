"""Masks: what of a picture is to be painted, and how it is put back so that nothing else changes.

hole     (H, W) float32: 1 paint, 0 keep; between them a soft edge
weight   (H, W) float32: how much of the painted picture is taken; 0 outside the feather band, where the file stays
         what it is, bit for bit
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controlkit.data.pictures import read_picture
from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]
    Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """What is painted and what is put back, both of the picture's size."""

    hole: Plane
    weight: Plane

    @staticmethod
    def of(mask: Plane, *, grow: int = 0, feather: int = 0, mixed: bool = False) -> Region:
        """A mask grown by `grow` pixels in all directions; around that the picture passes over into what was painted
        within `feather` pixels, which are painted too, so that both sides of the seam are there. `mixed`: grey takes
        that share of what is painted; the feather then begins at what is white."""
        hole = dilate(mask, grow)
        if mixed and (hole == 1).any():
            away = distance(hole == 1)
            weight = np.maximum(hole, np.clip(1 - away / (feather + 1), 0, 1)).astype(np.float32)
            return Region((weight > 0).astype(np.float32), weight)
        if not feather:
            return Region(dilate(hole, 0), (hole > 0).astype(np.float32))
        away = distance(hole > 0)
        weight = np.clip(1 - away / (feather + 1), 0, 1).astype(np.float32)
        return Region(np.maximum(hole, (weight > 0).astype(np.float32) * (away > 0)), weight)


def read_mask(path: Path, size: tuple[int, int], *, invert: bool, say: Callable[[str], None]) -> Plane:
    """The mask of a picture of that size (width, height): white is painted. Of a file with transparency what is
    transparent is painted, as in a picture in which a hole was rubbed."""
    alpha = _alpha(path)
    if alpha is not None:
        say(f"--mask {path.name} has an alpha channel: what is transparent is painted")
        mask = (1 - alpha).astype(np.float32)
    else:
        mask = (read_picture(path).mean(axis=2) / 255).astype(np.float32)
    height, width = mask.shape
    if (width, height) != size:
        raise RequestError(
            f"--mask {path} is {width}x{height}, the picture is {size[0]}x{size[1]}; expected one size for both"
        )
    if invert:
        mask = 1 - mask
    mask[mask < 1 / 255] = 0
    share = float((mask > 0).mean())
    if share == 0:
        raise RequestError(
            f"--mask {path}: nothing is white, so nothing would be painted; paint the hole white, or pass --invert-mask"
        )
    if share == 1 and mask.min() == 1:
        raise RequestError(
            f"--mask {path}: all of it is white, so nothing would stay; leave out --mask to paint the whole picture"
        )
    if looks_inverted(mask):
        say(
            f"--mask {path.name} paints {share:.0%} of the picture, all of its border too; if its hole is the black "
            f"part, pass --invert-mask"
        )
    return mask


def looks_inverted(mask: Plane) -> bool:
    """White around a black part, where people paint the part white that they want to change."""
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool((border > 0.5).mean() > 0.95 and (mask > 0.5).mean() > 0.5)


def dilate(mask: Plane, pixels: int) -> Plane:
    """Grown by so many pixels in all directions, its values kept."""
    import cv2

    if pixels <= 0:
        return mask.copy()
    steps = np.arange(-pixels, pixels + 1)
    disc = (steps[:, None] ** 2 + steps**2 <= pixels**2).astype(np.uint8)
    return np.asarray(cv2.dilate(mask, disc), dtype=np.float32)


def distance(inside: NDArray[np.bool_]) -> Plane:
    """Of each pixel to the nearest one inside, 0 there."""
    import cv2

    outside = np.logical_not(inside).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), dtype=np.float32)


def latent_hole(hole: Plane, factor: int, *, grow: int = 1) -> torch.Tensor:
    """(1, 1, h, w): the hole on the latent grid. A cell is painted if any of its pixels is, so that no stroke is lost,
    and `grow` cells around it too, since the autoencoder sees over the edges of a cell."""
    import torch
    from torch.nn.functional import max_pool2d

    height, width = hole.shape
    if height % factor or width % factor:
        raise ValueError(f"a hole of {width}x{height}: expected multiples of {factor}")
    cells = max_pool2d(torch.from_numpy(hole)[None, None], factor)
    return max_pool2d(cells, 2 * grow + 1, stride=1, padding=grow) if grow else cells


def paste_back(picture: Image, painted: Image, weight: Plane) -> Image:
    """The painted picture where the weight is 1, the picture itself, bit for bit, where it is 0."""
    share = weight[:, :, None]
    mixed = np.round(painted * share + picture * (1 - share)).astype(np.uint8)
    return np.asarray(np.where(share == 0, picture, mixed), dtype=np.uint8)


def match_colours(picture: Image, painted: Image, weight: Plane, *, ring: int = 16) -> Image:
    """The painted picture with its colours brought to the picture's, as a ring around the hole tells them, where both
    show the same: the autoencoder shifts colours, and a shift is what makes a seam visible.

    Each channel gets an offset alone. Where the ring is empty, at a hole that fills the picture, nothing is changed.
    """
    around = (weight == 0) & (distance(weight > 0) <= ring)
    if not around.any():
        return painted
    offset = (picture[around].astype(np.float64) - painted[around]).mean(axis=0)
    return np.asarray(np.clip(np.round(painted + offset), 0, 255), dtype=np.uint8)


def _alpha(path: Path) -> Plane | None:
    """The alpha channel of a file in 0 to 1, where it says something."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        if "A" not in opened.getbands() and "transparency" not in opened.info:
            return None
        upright = ImageOps.exif_transpose(opened)
        alpha = np.asarray(upright.convert("RGBA").getchannel("A"), np.float32) / np.float32(255)
    return alpha if alpha.min() < 1 else None
