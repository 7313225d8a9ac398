"""Content shuffle: the picture's colours and textures at other places, along a smooth random flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from annotators.chance import stream
from annotators.contract import Weightless, check_image
from annotators.registry import ANNOTATORS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image


@ANNOTATORS.register("shuffle")
@dataclass(frozen=True)
class Shuffle(Weightless):
    """Each pixel is fetched from where two smooth noises point, one for x and one for y.

    It is the shuffle of controlnet_aux, whose draws come from the global generator; here they follow from the picture
    and `seed`.

    scale  pixels from one random value of the noise to the next
    """

    scale: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"shuffle: scale={self.scale}: expected 1 pixel or more")

    def __call__(self, image: Image) -> Image:
        import cv2
        import numpy as np

        check_image("shuffle", image)
        height, width = image.shape[:2]
        chance = stream(image, self.seed)
        across = _smooth_noise(chance, height, width, self.scale) * (width - 1)
        down = _smooth_noise(chance, height, width, self.scale) * (height - 1)
        flow = np.stack([across, down], axis=2).astype(np.float32)
        return np.asarray(cv2.remap(np.ascontiguousarray(image), flow, None, cv2.INTER_LINEAR), dtype=np.uint8)


def _smooth_noise(chance: np.random.RandomState, height: int, width: int, scale: int) -> NDArray[np.float64]:
    """(height, width), from 0 to 1."""
    import cv2
    import numpy as np

    coarse = chance.uniform(size=(height // scale + 2, width // scale + 2))
    fine = cv2.resize(coarse, (width + 2 * scale, height + 2 * scale), interpolation=cv2.INTER_CUBIC)
    noise = np.asarray(fine[scale : scale + height, scale : scale + width], dtype=np.float64)
    noise = noise - noise.min()
    return np.asarray(noise / max(noise.max(), np.finfo(np.float64).tiny))  # one pixel: 0, not NaN
