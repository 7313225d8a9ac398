"""Segmentation: every pixel in the colour that ADE20K gives its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from annotators import auxiliary
from annotators.dense import DenseAnnotator
from annotators.hub_models import load_model, model_weights, normalised
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from annotators.contract import Image

CLASSES = 150

# The levels that the channels of ADE20K's 150 colours take.
ADE20K_LEVELS = frozenset(
    {0, *range(3, 13), 15, 20, 25, 31, 41, 50, 51, 61, 70, 71, 80, 82, 92, 102, 112, 120, 122, 133, 140, 143, 150, 153}
).union({160, 163, 170, 173, 180, 184, 190, 194, 200, 204, 212, 214, 220, 224, 230, 235, 245, 250, 255})


@ANNOTATORS.register("segmentation", backend="ade20k", default=True)
@dataclass(frozen=True)
class SegmentationAde20k(DenseAnnotator):
    """Classes in the colours of ADE20K that the published segmentation ControlNets read, by UperNet.

    `weights` may name any model of transformers for semantic segmentation with ADE20K's 150 classes (SegFormer, …).
    """

    multiple: ClassVar[int] = 32
    values: ClassVar[frozenset[int] | None] = ADE20K_LEVELS
    licence: ClassVar[str] = "Apache-2.0 (code), MIT (weights)"
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", "controlnet-aux", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (
        model_weights("openmmlab/upernet-convnext-small", "pytorch_model.bin", 328.0, "MIT"),
    )

    def load(self) -> Any:
        files = self.weight_files()
        model = load_model("AutoModelForSemanticSegmentation", files, self.torch_device())
        if model.config.num_labels != CLASSES:
            raise ValueError(
                f"{files[0].parent}: expected the {CLASSES} classes of ADE20K, it has {model.config.num_labels}"
            )
        return model

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        """The class of each pixel, (B, 1, H, W)."""
        import torch
        from torch.nn.functional import interpolate

        logits = network(pixel_values=normalised(pixels, network.preprocessor)).logits
        size = pixels.shape[-2:]
        one_by_one = (interpolate(each[None], size, mode="bilinear", align_corners=False) for each in logits)
        return torch.cat([each.argmax(dim=1, keepdim=True) for each in one_by_one])  # 150 numbers a pixel: much memory

    def finish(self, raster: NDArray[np.float32], height: int, width: int) -> Image:
        import cv2
        import numpy as np

        classes = cv2.resize(raster[:, :, 0].astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
        palette = np.array(auxiliary.module("util").ade_palette(), dtype=np.uint8)
        return np.asarray(palette[classes], dtype=np.uint8)
