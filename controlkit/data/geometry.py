"""The one geometry that picture, map and mask share: the size to which a picture comes, and how it comes there.

Without buckets that is one square. With them it is the size, of about the square's area, whose shape is nearest to the
picture's own, so that little is cut away; a batch then holds pictures of one size.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from annotators.contract import resize_map
from controlkit.data.pictures import BadPicture, cover, upright_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.processes import Processes

MAX_ASPECT = 2.0
"""Of a bucket; a longer picture is cut to it."""

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Geometry:
    """`resolution`: pixels a side of the square. `step`: the sides of buckets are its multiples; None: no buckets."""

    resolution: int
    step: int | None = None

    @cached_property
    def sizes(self) -> list[Size]:
        """Every size that a batch may have: for each width the greatest height that the area allows, and turned."""
        if self.step is None:
            return [(self.resolution, self.resolution)]
        area, found = self.resolution**2, set()
        for width in range(self.step, int(self.resolution * MAX_ASPECT) + 1, self.step):
            height = area // width // self.step * self.step
            if height and 1 / MAX_ASPECT <= width / height <= MAX_ASPECT:
                found |= {(width, height), (height, width)}
        return sorted(found)

    def size(self, width: int, height: int) -> Size:
        """The size to which a picture of that size comes; of two shapes that are equally near, the larger one."""

        def distance(size: Size) -> tuple[float, int]:
            return abs(math.log(size[0] / size[1] * height / width)), -size[0] * size[1]

        return min(self.sizes, key=distance)

    def cover(self, width: int, height: int) -> tuple[Size, tuple[slice, slice]]:
        """Width and height to scale it to, and the window (rows, columns) in the middle of that."""
        return cover(width, height, self.size(width, height))


def fit_map(control_map: NDArray[np.uint8], size: Size, values: frozenset[int] | None) -> NDArray[np.uint8]:
    """A map that has no picture of that size: scaled to cover it, the middle cut out. One that has the size stays."""
    height, width = control_map.shape[:2]
    to, window = cover(width, height, size)
    return resize_map(control_map, *to, values)[window].copy()


def sizes_of(rows: Sequence[Row], geometry: Geometry, processes: Processes) -> list[Size]:
    """The size to which each row comes, from the heads of the pictures; each process looks at its share."""

    def look(row: Row) -> Size:
        try:
            return geometry.size(*upright_size(row.picture))
        except OSError as reason:
            raise BadPicture(row.picture, f"damaged, or no picture ({reason})") from None

    with ThreadPoolExecutor() as pool:
        return processes.gather(list(pool.map(look, processes.slice(list(rows)))))
