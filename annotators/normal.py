"""Surface normals by the network of Bae et al., trained on ScanNet."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from annotators import auxiliary
from annotators.dense import DenseAnnotator, load_pickle, load_state
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@ANNOTATORS.register("normal", backend="bae")
@dataclass(frozen=True)
class NormalBae(DenseAnnotator):
    """Normals as colours: x, y and z from -1 to 1 as red, green and blue from 0 to 255."""

    multiple: ClassVar[int] = 32
    mirrors: ClassVar[bool] = False  # red says which way is right
    licence: ClassVar[str] = "MIT (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "controlnet-aux", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (Weights("lllyasviel/Annotators", "scannet.pt", 291.0, "MIT"),)

    def load(self) -> Any:
        path = self.weight_files()[0]
        decoder = SimpleNamespace(architecture="BN", sampling_ratio=0.4, importance_ratio=0.7)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it builds
            network = auxiliary.module("normalbae.nets.NNET").NNET(decoder)
        return load_state(network, load_pickle(path)["model"], path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(each).view(1, 3, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))
        normals = network((pixels / 255 - mean) / std)[0][-1][:, :3]
        return ((normals + 1) / 2).clamp(0, 1)  # type: ignore[no-any-return]
