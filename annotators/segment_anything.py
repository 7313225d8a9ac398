"""Segmentation without classes: every object that SAM finds, each in a colour of its own."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from annotators import auxiliary
from annotators.contract import check_image
from annotators.dense import load_pickle, load_state
from annotators.geometry import scaled
from annotators.network import NetworkAnnotator
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image

REPO = "ybelkada/segment-anything"
FILES = {
    "vit_b": Weights(REPO, "checkpoints/sam_vit_b_01ec64.pth", 375, "Apache-2.0"),
    "vit_t": Weights(REPO, "checkpoints/mobile_sam.pth", 40.7, "Apache-2.0"),
    "vit_l": Weights(REPO, "checkpoints/sam_vit_l_0b3195.pth", 1250, "Apache-2.0"),
    "vit_h": Weights(REPO, "checkpoints/sam_vit_h_4b8939.pth", 2560, "Apache-2.0"),
}

LEVELS = tuple(range(0, 256, 51))  # of a channel: 6 x 6 x 6 colours, black among them

_ONE_AT_A_TIME = threading.Lock()  # the predictor holds the picture that it was given last


@ANNOTATORS.register("segmentation", backend="sam")
@dataclass(frozen=True)
class SegmentationSam(NetworkAnnotator):
    """Objects by SAM, the small ones over the large; the colours follow from the order of their sizes.

    model       vit_b, vit_l, vit_h as published, vit_t: MobileSAM
    points      how many points in a row, and how many rows, are asked what lies there
    resolution  pixels on the shorter side of the picture that the masks are made for
    """

    model: Literal["vit_b", "vit_t", "vit_l", "vit_h"] = "vit_b"
    points: int = 32
    resolution: int = 768

    values: ClassVar[frozenset[int] | None] = frozenset(LEVELS)
    licence: ClassVar[str] = "Apache-2.0 (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "timm", "controlnet-aux", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = tuple(FILES.values())

    def __post_init__(self) -> None:
        if self.points < 1 or self.resolution < 1:
            raise ValueError(
                f"segmentation: points={self.points}, resolution={self.resolution}: expected 1 or more of both"
            )

    def wanted(self) -> tuple[Weights, ...]:
        return (FILES[self.model],)

    def load(self) -> Any:
        path = self.weight_files()[0]
        sam = auxiliary.module("segment_anything")
        network = load_state(sam.sam_model_registry[self.model](), load_pickle(path), path)
        return sam.SamAutomaticMaskGenerator(network.to(self.torch_device()), points_per_side=self.points)

    def batch(self, images: Sequence[Image]) -> list[Image]:
        for image in images:
            check_image(self.type, image)
        return [self._objects(image) for image in images]

    def _objects(self, image: Image) -> Image:
        import cv2
        import numpy as np

        small = scaled(image, self.resolution)
        with _ONE_AT_A_TIME:
            objects = self.network.generate(small)
        numbers = np.zeros(small.shape[:2], np.uint16)
        for number, each in enumerate(sorted(objects, key=lambda each: each["area"], reverse=True), start=1):
            numbers[each["segmentation"]] = number
        height, width = image.shape[:2]
        numbers = cv2.resize(numbers, (width, height), interpolation=cv2.INTER_NEAREST)
        return np.asarray(_colours(len(objects))[numbers], dtype=np.uint8)


def _colours(count: int) -> NDArray[np.uint8]:
    """(count + 1, 3): black, then the other colours in an order that puts unlike ones side by side."""
    import numpy as np

    steps = len(LEVELS)
    # 97 shares no divisor with the 215 colours: each comes once before any comes again.
    places = 1 + np.arange(count) * 97 % (steps**3 - 1)
    digits = np.stack([places // steps**2, places // steps % steps, places % steps], axis=1)
    return np.concatenate([np.zeros((1, 3), np.uint8), np.array(LEVELS, np.uint8)[digits]])
