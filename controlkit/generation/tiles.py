"""Overlapping tiles that cover a picture, and how much each counts where several meet. All in cells of the latents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

OVERLAP = 0.25
"""The least share of a tile that lies on its neighbour."""


@dataclass(frozen=True)
class Tile:
    """A box of the latents."""

    left: int
    top: int
    width: int
    height: int

    def pixels(self, scale: int) -> tuple[int, int]:
        """Width and height, of so many pixels a cell."""
        return scale * self.width, scale * self.height

    def view(self, whole: Tensor, scale: int = 1) -> Tensor:
        """(…, H, W) -> (…, h, w), of a tensor with so many pixels a side of each cell."""
        top, left = scale * self.top, scale * self.left
        return whole[..., top : top + scale * self.height, left : left + scale * self.width]

    def cut(self, whole: Tensor, scale: int = 1) -> Tensor:
        """The same laid out by itself, as the whole is, so that all tiles look alike to kernels and compilers."""
        return self.view(whole, scale).clone()


def tiles_of(width: int, height: int, side: int) -> tuple[Tile, ...]:
    """Tiles of that side, or of the picture's where it is shorter, evenly spread; row by row."""
    across, down = min(side, width), min(side, height)
    return tuple(Tile(left, top, across, down) for top in _starts(height, down) for left in _starts(width, across))


def shares_of(tiles: tuple[Tile, ...]) -> list[NDArray[np.float32]]:
    """(h, w) for each tile: how much of a cell it decides. They sum to 1 in each cell of the picture, are largest in
    the middle of a tile and near 0 at its border, unless nothing else lies there."""
    width = max(tile.left + tile.width for tile in tiles)
    height = max(tile.top + tile.height for tile in tiles)
    total = np.zeros((height, width))
    for tile in tiles:
        _part(total, tile)[:] += _hill(tile)
    return [(_hill(tile) / _part(total, tile)).astype(np.float32) for tile in tiles]


def _starts(length: int, side: int) -> list[int]:
    count = 1 + math.ceil((length - side) / (side - math.ceil(OVERLAP * side)))
    return [round(number * (length - side) / max(1, count - 1)) for number in range(count)]


def _hill(tile: Tile) -> NDArray[np.float64]:
    def slope(side: int) -> NDArray[np.float64]:
        middles = (np.arange(side) + 0.5) / side
        return np.asarray(np.sin(np.pi * middles) ** 2)

    return np.outer(slope(tile.height), slope(tile.width))


def _part(whole: NDArray[np.float64], tile: Tile) -> NDArray[np.float64]:
    return whole[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
