"""Networks that answer a picture with a raster: edges, depth, normals, labels.

The picture goes in at its working size (`annotators.geometry`), those of one size together; each answer is cut to the
picture and made a map alone, so that no picture changes another's map.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from annotators.contract import check_image, in_three_channels
from annotators.geometry import padded, resized, scaled
from annotators.network import NetworkAnnotator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from annotators.contract import Image

    Raster = NDArray[np.float32]


@dataclass(frozen=True)
class DenseAnnotator(NetworkAnnotator):
    """A network from pixels (B, 3, H, W), RGB from 0 to 255, to rasters (B, C, H, W).

    resolution  pixels on the shorter side of what the network sees
    """

    resolution: int = 512

    multiple: ClassVar[int] = 64
    """What the network's sides must be multiples of."""

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"{self.type}: resolution={self.resolution}: expected 1 pixel or more")

    @abstractmethod
    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        """(B, C, H, W), or fewer rows and columns that cover the same picture."""

    def finish(self, raster: Raster, height: int, width: int) -> Image:
        """The map of a picture (height, width), from the raster (h, w, C) at its working size."""
        import numpy as np

        values = (resized(raster, height, width) * 255).clip(0, 255)
        return in_three_channels(values[:, :, 0]) if values.shape[2] == 1 else values.astype(np.uint8)

    def batch(self, images: Sequence[Image]) -> list[Image]:
        rasters = self.rasters(images)
        return [self.finish(raster, *image.shape[:2]) for raster, image in zip(rasters, images, strict=True)]

    def rasters(self, images: Sequence[Image]) -> list[Raster]:
        """What the network says of each picture, at the picture's working size."""
        import numpy as np
        import torch

        for image in images:
            check_image(self.type, image)
        network, multiple = self.network, self.sides(self.network)
        small = [scaled(image, self.resolution) for image in images]
        together: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(small):
            together[image.shape].append(index)
        found: dict[int, Raster] = {}
        for (height, width, _), indices in together.items():
            stack = np.stack([padded(small[index], multiple) for index in indices])
            pixels = torch.from_numpy(stack).to(self.torch_device()).permute(0, 3, 1, 2).float()
            with torch.inference_mode():
                answers = self.forward(network, pixels)
            rows, columns = (-(-side * answers.shape[d] // pixels.shape[d]) for d, side in ((2, height), (3, width)))
            cut = answers[:, :, :rows, :columns].permute(0, 2, 3, 1).float().cpu().numpy()
            found.update(zip(indices, cut, strict=True))
        return [found[index] for index in range(len(images))]

    def sides(self, network: Any) -> int:
        """What this network's sides must be multiples of."""
        return self.multiple


def load_pickle(path: Any) -> Any:
    """A published checkpoint, on the CPU; tensors and plain containers only, since a pickle may hold any code."""
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as reason:
        why = str(reason).split("\n")[0]
        raise ValueError(f"{path}: expected a PyTorch checkpoint of tensors alone ({why}); fetch it again") from None


def load_state(network: Any, state: dict[str, Any], path: Any) -> Any:
    """The network with exactly those weights, ready to be asked."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    try:
        missing, unexpected = network.load_state_dict(state)
    except RuntimeError as reason:
        raise ValueError(_not_of(network, path, str(reason).partition("\n")[2].strip())) from None
    # ZoeDepth's own loader is lenient for the sake of these, which newer releases of timm compute themselves.
    if wrong := [name for name in (*missing, *unexpected) if "relative_position_index" not in name]:
        raise ValueError(_not_of(network, path, f"{len(wrong)} names differ, the first is {wrong[0]}"))
    return network.float().eval()


def _not_of(network: Any, path: Any, why: str) -> str:
    return f"{path}: not the weights of {type(network).__name__}: {why[:200]}"
