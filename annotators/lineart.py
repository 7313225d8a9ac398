"""Line drawings by the networks behind the lineart ControlNets, bright lines on black."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from annotators import auxiliary
from annotators.dense import DenseAnnotator, load_pickle, load_state
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

FINE = Weights("lllyasviel/Annotators", "sk_model.pth", 17.2, "MIT")
COARSE = Weights("lllyasviel/Annotators", "sk_model2.pth", 17.2, "MIT")


@ANNOTATORS.register("lineart", backend="realistic", default=True)
@dataclass(frozen=True)
class LineartRealistic(DenseAnnotator):
    """Lines of a photograph as a draughtsman's hand would draw them.

    coarse  fewer, bolder lines, by a second file of weights
    """

    coarse: bool = False

    multiple: ClassVar[int] = 4
    licence: ClassVar[str] = "MIT (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("torch", "controlnet-aux", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (FINE, COARSE)

    def wanted(self) -> tuple[Weights, ...]:
        return (COARSE,) if self.coarse else (FINE,)

    def load(self) -> Any:
        path = self.weight_files()[0]
        network = auxiliary.module("lineart").Generator(3, 1, 3)  # the published weights have three residual blocks
        return load_state(network, load_pickle(path), path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        return 1 - network(pixels / 255)  # type: ignore[no-any-return]


@ANNOTATORS.register("lineart", backend="anime")
@dataclass(frozen=True)
class LineartAnime(DenseAnnotator):
    """Lines of an anime drawing."""

    multiple: ClassVar[int] = 256  # eight halvings
    licence: ClassVar[str] = "MIT (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("torch", "controlnet-aux", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (Weights("lllyasviel/Annotators", "netG.pth", 217.7, "MIT"),)

    def load(self) -> Any:
        from torch import nn

        path = self.weight_files()[0]
        norm = functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
        network = auxiliary.module("lineart_anime").UnetGenerator(3, 1, 8, 64, norm_layer=norm, use_dropout=False)
        return load_state(network, load_pickle(path), path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        return (1 - network(pixels / 127.5 - 1)) / 2  # type: ignore[no-any-return]
