"""What a ControlNet for inpainting reads: the picture with holes, which no file of pictures can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

INPAINT = "inpaint"
"""The control type. Its maps on the disk are masks, white where the picture is to be painted."""


def inpaint_hint(picture: NDArray[np.uint8], mask: NDArray[np.uint8]) -> torch.Tensor:
    """(3, H, W): `picture` (H, W, 3) in [0, 1], and -1 where `mask` (H, W, 3) is white, as the published nets for
    inpainting (control_v11p_sd15_inpaint) have it and diffusers' documentation says."""
    import torch

    hint = torch.tensor(picture).permute(2, 0, 1).float() / 255
    return hint.masked_fill(torch.tensor(mask[:, :, 0]) > 127, -1.0)
