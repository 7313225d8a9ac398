"""RePaint on a model of pixels, as in its paper: what is known of a picture, and how the walk goes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from controlkit.data.pictures import read_picture
from controlkit.diffusion.repaint import make_repaint
from controlkit.diffusion.repaint_walk import REPAINT_SAMPLERS, network_calls, walk
from controlkit.errors import RequestError
from controlkit.generation.masks import read_mask

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

PAPER_STEPS = 250
PAPER_JUMP = PAPER_SAMPLES = 10
"""T, j and r of the published results (arXiv:2201.09865, Sec. 5)."""


@dataclass(frozen=True)
class Known:
    """A picture (H, W, 3) of which `hole` (H, W) is to be painted: 1 paint, 0 keep."""

    picture: NDArray[np.uint8]
    hole: NDArray[np.float32]
    jump: int = PAPER_JUMP
    samples: int = PAPER_SAMPLES

    @staticmethod
    def read(image: Path, mask: Path, *, jump: int, samples: int, say: Callable[[str], None]) -> Known:
        picture = read_picture(image)
        height, width = picture.shape[:2]
        return Known(picture, read_mask(mask, (width, height), invert=False, say=say), jump, samples)

    def check(self, side: int, sampler: str, steps: int) -> int:
        """Refuse what cannot be walked by a network that paints `side` x `side` pixels; how often it will be asked."""
        height, width = self.picture.shape[:2]
        if (width, height) != (side, side):
            raise RequestError(
                f"--image is {width}x{height}, this base paints {side}x{side} pixels; bring picture and mask to that"
            )
        if sampler not in REPAINT_SAMPLERS:
            raise RequestError(
                f"sampler {sampler!r} remembers the steps before, and RePaint jumps back; use one of "
                f"{', '.join(REPAINT_SAMPLERS)}"
            )
        try:
            return network_calls(walk(steps, jump=self.jump, samples=self.samples))
        except ValueError as reason:
            raise RequestError(str(reason)) from None

    def walk_with(self, scheduler: Any) -> Any:
        """The scheduler that walks with this one inside."""
        x_0 = torch.tensor(self.picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        hole = torch.tensor(self.hole)[None, None]
        return make_repaint(scheduler, x_0, hole, jump=self.jump, samples=self.samples)
