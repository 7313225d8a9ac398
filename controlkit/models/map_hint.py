"""What a ControlNet reads of control maps; of several types, if it was trained on several (a union).

A union is diffusers' own ControlNetModel whose hint encoder has three channels for each type, in the order that its
folder says; the map of a type that is not given is black. So every ControlNet pipeline of Stable Diffusion 1.x, 2.x and
SDXL takes it: their hint is a tensor, which they hand on as it is. diffusers' ControlNetUnionModel is the alternative;
but only pipelines for SDXL take one, and its control types are those of one published network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

CHANNELS = 3
"""Of the hint for each type."""


def map_hint(types: Sequence[str], maps: Mapping[str, NDArray[np.uint8]]) -> torch.Tensor:
    """(3 * types, H, W) in [0, 1], of maps (H, W, 3) by type, at least one."""
    import torch

    size = next(iter(maps.values())).shape[:2]
    black = torch.zeros(CHANNELS, *size)
    return torch.cat([to_control(maps[type]) if type in maps else black for type in types])


def to_control(control_map: NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) of 0 to 255 -> (3, H, W) in [0, 1]."""
    import torch

    return torch.from_numpy(control_map).permute(2, 0, 1).float() / 255


def channels_of(place: int) -> slice:
    """Where the type at that place stands in a hint."""
    return slice(CHANNELS * place, CHANNELS * (place + 1))
