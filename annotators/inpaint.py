"""Masks to train and to try inpainting with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from annotators.chance import stream
from annotators.contract import Weightless, check_image, in_three_channels
from annotators.registry import ANNOTATORS

if TYPE_CHECKING:
    import numpy as np

    from annotators.contract import Image


@ANNOTATORS.register("inpaint")
@dataclass(frozen=True)
class Inpaint(Weightless):
    """A random mask, white where the picture is to be painted anew: boxes, brush strokes, or some of each ("mixed"),
    all on one side of a line ("half"), all around a box ("expand"), or any of these five.

    Its white share is drawn between `least` and `most`; boxes and strokes are added until it is reached. All follows
    from the picture's bytes and `seed`.
    """

    shapes: Literal["mixed", "boxes", "strokes", "half", "expand", "any"] = "mixed"
    least: float = 0.1
    most: float = 0.5
    seed: int = 0

    values: ClassVar[frozenset[int] | None] = frozenset({0, 255})

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most <= 1:
            raise ValueError(f"inpaint: least={self.least:g} and most={self.most:g}: expected 0 < least <= most <= 1")

    def __call__(self, image: Image) -> Image:
        import numpy as np

        check_image("inpaint", image)
        chance = stream(image, self.seed)
        mask = np.zeros(image.shape[:2], np.uint8)
        share = chance.uniform(self.least, self.most)
        shapes = _SHAPES[chance.randint(len(_SHAPES))] if self.shapes == "any" else self.shapes
        if shapes == "half":
            _fill_side(mask, chance, share)
        elif shapes == "expand":
            _fill_around(mask, chance, share)
        while np.count_nonzero(mask) < share * mask.size and shapes not in ("half", "expand"):
            box = chance.randint(2) == 0 if shapes == "mixed" else shapes == "boxes"
            (_add_box if box else _add_stroke)(mask, chance)
        return in_three_channels(mask)


_SHAPES = ("mixed", "boxes", "strokes", "half", "expand")


def _fill_side(mask: Image, chance: np.random.RandomState, share: float) -> None:
    side = mask if chance.randint(2) else mask.T
    filled = max(1, round(share * len(side)))
    (side if chance.randint(2) else side[::-1])[:filled] = 255


def _fill_around(mask: Image, chance: np.random.RandomState, share: float) -> None:
    tall, wide = (int((1 - share) ** 0.5 * side) for side in mask.shape[:2])
    top, left = chance.randint(mask.shape[0] - tall + 1), chance.randint(mask.shape[1] - wide + 1)
    kept = mask[top : top + tall, left : left + wide].copy()
    mask[:] = 255
    mask[top : top + tall, left : left + wide] = kept


def _add_box(mask: Image, chance: np.random.RandomState) -> None:
    height, width = mask.shape[:2]
    tall, wide = (max(1, round(chance.uniform(0.1, 0.4) * side)) for side in (height, width))
    top, left = chance.randint(height - tall + 1), chance.randint(width - wide + 1)
    mask[top : top + tall, left : left + wide] = 255


def _add_stroke(mask: Image, chance: np.random.RandomState) -> None:
    """A brush that goes four to nine steps and turns a little at each."""
    import cv2
    import numpy as np

    height, width = mask.shape[:2]
    side = min(height, width)
    place, angle = chance.uniform(size=2) * (width, height), chance.uniform(0, 2 * np.pi)
    points = [place]
    for _ in range(chance.randint(4, 10)):
        angle += chance.uniform(-1, 1)
        place = place + chance.uniform(0.05, 0.2) * side * np.array([np.cos(angle), np.sin(angle)])
        points.append(place)
    path = np.round(points).astype(np.int32)[:, None]
    cv2.polylines(mask, [path], False, 255, thickness=max(1, round(chance.uniform(0.03, 0.1) * side)))
