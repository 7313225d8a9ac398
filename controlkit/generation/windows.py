"""Parts of a picture that are painted by themselves: "only the masked region" at full resolution, and outpainting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from controlkit.data.pictures import resize_picture
from controlkit.generation.masks import dilate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]
    Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Window:
    """A box of a picture and the size (width, height) at which it is painted."""

    left: int
    top: int
    width: int
    height: int
    size: tuple[int, int]
    scaled: bool

    @staticmethod
    def whole(width: int, height: int, multiple: int) -> Window:
        """The picture pixel for pixel; what the networks need beyond it is filled up at the right and below."""
        return Window(0, 0, width, height, (_up(width, multiple), _up(height, multiple)), scaled=False)

    @staticmethod
    def around(hole: Plane, *, padding: int, area: int, multiple: int) -> Window:
        """The box around a hole, and `padding` pixels more for what it is to fit in with, painted at about `area`
        pixels: a small part of a large picture gets all that the base can do."""
        height, width = hole.shape
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        left, right = max(0, int(columns[0]) - padding), min(width, int(columns[-1]) + 1 + padding)
        top, bottom = max(0, int(rows[0]) - padding), min(height, int(rows[-1]) + 1 + padding)
        scale = (area / ((right - left) * (bottom - top))) ** 0.5
        across, down = (
            max(multiple, round(side * scale / multiple) * multiple) for side in (right - left, bottom - top)
        )
        return Window(left, top, right - left, bottom - top, (across, down), scaled=True)

    def cut(self, image: Image) -> Image:
        """The picture's part as it is painted."""
        part = image[self.top : self.top + self.height, self.left : self.left + self.width]
        if self.scaled:
            return resize_picture(np.ascontiguousarray(part), self.size)
        return np.pad(part, ((0, self.size[1] - self.height), (0, self.size[0] - self.width), (0, 0)), mode="edge")

    def cut_hole(self, hole: Plane) -> Plane:
        """The hole as it is painted; no stroke of it is lost, however much it shrinks."""
        part = np.ascontiguousarray(hole[self.top : self.top + self.height, self.left : self.left + self.width])
        if not self.scaled:
            return np.pad(part, ((0, self.size[1] - self.height), (0, self.size[0] - self.width)))
        import cv2

        shrinks = max(self.width / self.size[0], self.height / self.size[1])
        grown = dilate(part, int(shrinks / 2 + 0.5)) if shrinks > 1 else part
        return np.asarray(cv2.resize(grown, self.size, interpolation=cv2.INTER_NEAREST), dtype=np.float32)

    def put(self, image: Image, painted: Image) -> Image:
        """The picture with what was painted in the part's place."""
        whole = image.copy()
        fitting = resize_picture(painted, (self.width, self.height)) if self.scaled else painted
        whole[self.top : self.top + self.height, self.left : self.left + self.width] = fitting[
            : self.height, : self.width
        ]
        return whole


def extend(image: Image, hole: Plane, room: tuple[int, int, int, int]) -> tuple[Image, Plane]:
    """A picture with room at its left, top, right and bottom, its edges drawn out to fill it, and its hole, to which
    what is new belongs."""
    left, top, right, bottom = room
    sides = (top, bottom), (left, right)
    return np.pad(image, (*sides, (0, 0)), mode="edge"), np.pad(hole, sides, constant_values=1)


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
