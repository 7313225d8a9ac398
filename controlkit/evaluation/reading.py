"""A row of a dataset as the networks see it: its picture, its map, and what the judge sees in the picture."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from controlkit.data.geometry import fit_map
from controlkit.data.pictures import cover, read_picture, resize_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.evaluation.obedience import Judge, Look

    Picture = NDArray[np.uint8]


def at_size(row: Row, size: tuple[int, int], judge: Judge, *, make_map: bool = False) -> tuple[Picture, Picture]:
    """The picture and the map, each covering the size; the map read from that picture if it is to be made."""
    image = read_picture(row.picture)
    to, window = cover(image.shape[1], image.shape[0], size)
    picture = np.ascontiguousarray(resize_picture(image, to)[window])
    if make_map:
        made: Picture = judge.annotator(picture)
        return picture, made
    assert row.control is not None, "rows are read with their maps"
    return picture, fit_map(read_picture(row.control), size, judge.annotator.values)


class Reader:
    """Reads rows by their number, at one size."""

    def __init__(self, rows: Sequence[Row], side: int, judge: Judge, *, make_maps: bool, together: int) -> None:
        self.rows, self.side, self.judge, self.make_maps = rows, side, judge, make_maps
        kept = together + 1  # rows, and the one that tells chance for the last of them
        self.pictures = lru_cache(kept)(self._pictures)
        self.look = lru_cache(kept)(self._look)

    def _pictures(self, number: int) -> tuple[Picture, Picture]:
        """The picture and the map."""
        return at_size(self.rows[number], (self.side, self.side), self.judge, make_map=self.make_maps)

    def _look(self, number: int) -> Look:
        """At the real picture."""
        return self.judge.look([self.pictures(number)[0]])
