"""Depth and pose maps of drawn scenes by the readers that come with the package: annotators for a machine without a
network. They know nothing but the world `rooms`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from annotators import ANNOTATORS
from annotators.contract import in_three_channels
from annotators.depth import DepthAnnotator
from annotators.geometry import padded, scaled
from annotators.keypoints import People
from annotators.pose import PoseAnnotator
from annotators.weights import MissingWeights, Weights
from controlkit.models.locate import EMBEDDED_READERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from annotators.contract import Image

LICENCE = "Apache-2.0 (code and weights)"
FILES = ("diffusion_pytorch_model.safetensors", "config.json")


@ANNOTATORS.register("depth", backend="toybox")
@dataclass(frozen=True)
class ToyboxDepth(DepthAnnotator):
    """Depth of scenes of `rooms`, in the scale of the world's own maps."""

    resolution: int = 64

    multiple: ClassVar[int] = 8
    licence: ClassVar[str] = LICENCE
    packages: ClassVar[tuple[str, ...]] = ("torch", "diffusers")
    needs: ClassVar[tuple[Weights, ...]] = ()

    def load(self) -> Any:
        return _load("depth", self.weights, self.torch_device())

    def weight_files(self) -> tuple[Path, ...]:
        return _files("depth", self.weights)

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        answer: Tensor = network(pixels / 127.5 - 1)
        return answer

    def finish(self, raster: NDArray[np.float32], height: int, width: int) -> Image:
        """The world's scale holds for every scene alike, so nothing is stretched here."""
        import numpy as np

        from annotators.geometry import resized

        return in_three_channels(np.round(resized(raster, height, width) * 255).clip(0, 255)[:, :, 0])


@ANNOTATORS.register("pose", backend="toybox")
@dataclass(frozen=True)
class ToyboxPose(PoseAnnotator):
    """Poses of the dolls in scenes of `rooms`."""

    resolution: int = 64

    licence: ClassVar[str] = LICENCE
    packages: ClassVar[tuple[str, ...]] = ("torch", "diffusers")
    needs: ClassVar[tuple[Weights, ...]] = ()

    def load(self) -> Any:
        return _load("pose", self.weights, self.torch_device())

    def weight_files(self) -> tuple[Path, ...]:
        return _files("pose", self.weights)

    def find(self, images: Sequence[Image]) -> list[People]:
        import torch

        from controlkit.toybox.lessons import to_pixels
        from controlkit.toybox.readers import SIDES, people_in

        found = []
        for image in images:
            small = scaled(image, self.resolution)
            with torch.inference_mode():
                answer = self.network(to_pixels(padded(small, SIDES)[None]).to(self.torch_device()))[0].cpu().numpy()
            height, width = small.shape[:2]
            found.append(people_in(answer, width, height).scaled(image.shape[1], image.shape[0]))
        return found


def _files(learn: str, named: str | None) -> tuple[Path, ...]:
    folder = Path(named).expanduser() if named else EMBEDDED_READERS / learn
    for name in FILES:
        if not (folder / name).is_file():
            raise MissingWeights(
                f"{learn}=toybox: {folder} has no {name}; expected the folder that `controlkit toybox train "
                f"learn={learn}` made"
            )
    return tuple(folder / name for name in FILES)


def _load(learn: str, named: str | None, device: str) -> Any:
    from controlkit.toybox.lessons import load_network

    return load_network(learn, _files(learn, named)[0].parent).to(device)
