"""Soft edges and scribbles by HED, PiDiNet and TEED: networks that say of each pixel how much of an edge it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from annotators import auxiliary
from annotators.contract import in_three_channels, resize_map
from annotators.dense import DenseAnnotator, load_pickle, load_state
from annotators.geometry import resized
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from annotators.contract import Image

LIBRARIES = ("torch", "controlnet-aux", "opencv-python")


@dataclass(frozen=True)
class _Hed(DenseAnnotator):
    multiple: ClassVar[int] = 16
    licence: ClassVar[str] = "Apache-2.0 (code and weights)"
    packages: ClassVar[tuple[str, ...]] = LIBRARIES
    needs: ClassVar[tuple[Weights, ...]] = (Weights("lllyasviel/Annotators", "ControlNetHED.pth", 29.4, "Apache-2.0"),)

    def load(self) -> Any:
        path = self.weight_files()[0]
        network = auxiliary.module("hed").ControlNetHED_Apache2()
        return load_state(network, load_pickle(path), path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        return _mean_of_scales(network(pixels), pixels)


@dataclass(frozen=True)
class _PidiNet(DenseAnnotator):
    multiple: ClassVar[int] = 8
    licence: ClassVar[str] = "research only (code and weights)"
    packages: ClassVar[tuple[str, ...]] = LIBRARIES
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights("lllyasviel/Annotators", "table5_pidinet.pth", 2.9, "research only"),
    )

    def load(self) -> Any:
        path = self.weight_files()[0]
        network = auxiliary.module("pidi.model").pidinet()
        return load_state(network, load_pickle(path)["state_dict"], path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        # BGR: the published maps were made so.
        return network(pixels.flip(1) / 255)[-1]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Ted(DenseAnnotator):
    multiple: ClassVar[int] = 8
    licence: ClassVar[str] = "MIT (code and weights)"
    packages: ClassVar[tuple[str, ...]] = LIBRARIES
    needs: ClassVar[tuple[Weights, ...]] = (Weights("fal-ai/teed", "5_model.pth", 0.25, "MIT"),)

    def load(self) -> Any:
        path = self.weight_files()[0]
        return load_state(auxiliary.module("teed.ted").TED(), load_pickle(path), path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        return _mean_of_scales(network(pixels), pixels)


@dataclass(frozen=True)
class _Soft(DenseAnnotator):
    """safe: three levels only, which keeps a hidden picture in the faint edges from being read"""

    safe: bool = False

    def finish(self, raster: NDArray[np.float32], height: int, width: int) -> Image:
        import numpy as np

        edges = resized(raster, height, width)
        if self.safe:
            edges = (np.floor(edges * 3) / 2).astype(np.float32)
        return in_three_channels((edges * 255).clip(0, 255)[:, :, 0])


@dataclass(frozen=True)
class _Strokes(DenseAnnotator):
    """The crests of the edges as strokes of even width."""

    values: ClassVar[frozenset[int] | None] = frozenset({0, 255})

    def finish(self, raster: NDArray[np.float32], height: int, width: int) -> Image:
        import cv2
        import numpy as np

        edges = (raster[:, :, 0] * 255).clip(0, 255).astype(np.uint8)
        crests = auxiliary.module("util").nms(edges, 127, 3.0)
        strokes = np.where(cv2.GaussianBlur(crests, (0, 0), 3.0) > 4, 255, 0).astype(np.uint8)
        return resize_map(in_three_channels(strokes), width, height, self.values)


@ANNOTATORS.register("softedge", backend="hed", default=True)
@dataclass(frozen=True)
class SoftedgeHed(_Soft, _Hed):
    """Soft edges by HED, bright on black."""


@ANNOTATORS.register("softedge", backend="pidinet")
@dataclass(frozen=True)
class SoftedgePidiNet(_Soft, _PidiNet):
    """Soft edges by PiDiNet, thinner than HED's."""


@ANNOTATORS.register("softedge", backend="teed")
@dataclass(frozen=True)
class SoftedgeTeed(_Soft, _Ted):
    """Soft edges by TEED, crisp, from a network of 58 thousand weights."""


@ANNOTATORS.register("scribble", backend="hed", default=True)
@dataclass(frozen=True)
class ScribbleHed(_Strokes, _Hed):
    """Strokes along the crests of HED's edges."""


@ANNOTATORS.register("scribble", backend="pidinet")
@dataclass(frozen=True)
class ScribblePidiNet(_Strokes, _PidiNet):
    """Strokes along the crests of PiDiNet's edges."""


def _mean_of_scales(logits: list[Tensor], pixels: Tensor) -> Tensor:
    """(B, 1, H, W) in [0, 1] from one (B, 1, h, w) per scale."""
    import torch
    from torch.nn.functional import interpolate

    size = pixels.shape[-2:]
    whole = [interpolate(each, size, mode="bilinear", align_corners=False) for each in logits]
    return torch.cat(whole, dim=1).mean(dim=1, keepdim=True).sigmoid()
