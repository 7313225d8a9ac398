"""Where in the picture a control holds, and in which layers of the UNet: its residuals, weighed one by one.

A ControlNet answers with a residual for each skip connection of the UNet's encoder, from fine to coarse, and one for
the middle block: thirteen for SD 1.x and 2.x, ten for SDXL. Coarse ones place, fine ones draw. A mask counts at each
residual's resolution as the share of white in its cells.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from controlkit.generation.tiles import Tile

SOFT = 0.825
"""How much less each layer counts than the next coarser one, as in the guess mode of the original ControlNet."""

_SOFT = re.compile(r"soft(?::(\d*\.?\d+))?")
_NUMBERS = re.compile(r"[+-]?\d*\.?\d+(,\s*[+-]?\d*\.?\d+)*")


def check_layers(text: str) -> None:
    """Refuse what is neither of the two forms."""
    if not (_SOFT.fullmatch(text) or _NUMBERS.fullmatch(text)):
        raise RequestError(
            f"control layers {text!r}: expected a number for each residual, fine ones first (1,1,0.5,…), or soft:{SOFT}"
        )


def layer_weights(text: str, count: int) -> list[float]:
    """ "soft:0.8" -> 0.8**(count - 1 - i) for residual i; "1,0.5,…" -> these, which must be as many."""
    check_layers(text)
    if soft := _SOFT.fullmatch(text):
        return [float(soft[1] or SOFT) ** (count - 1 - i) for i in range(count)]
    weights = [float(each) for each in text.split(",")]
    if len(weights) != count:
        raise RequestError(f"control layers {text!r}: {len(weights)} weights; expected {count}, a weight a residual")
    return weights


def residual_count(config: dict[str, Any]) -> int:
    """Of a ControlNet by its config: the entry, each layer, each halving, and the middle block."""
    blocks = len(config["block_out_channels"])
    layers = config["layers_per_block"]
    return 1 + (layers * blocks if isinstance(layers, int) else sum(layers)) + (blocks - 1) + 1


@contextmanager
def weighed_residuals(
    nets: list[nn.Module], layers: list[list[float] | None], regions: list[NDArray[np.uint8] | None], *, factor: int
) -> Iterator[None]:
    """The nets' residuals weighed, as long as the block lasts; None: as they are, and so those of nets behind the
    controls'. `regions` are (H, W, 3) of the picture's size, of `factor` pixels a side of a latent cell."""
    with ExitStack() as hooks:
        for net, weights, region in zip(nets, layers, regions, strict=False):
            if weights is not None or region is not None:
                hooks.callback(net.register_forward_hook(_Weigh(weights, region, factor)).remove)
        yield


class _Weigh:
    """A hook behind a ControlNet."""

    def __init__(self, weights: list[float] | None, region: NDArray[np.uint8] | None, factor: int) -> None:
        self.weights, self.factor = weights, factor
        self.share = None if region is None else region.mean(axis=2, dtype=np.float32) / 255
        self.shares: dict[Any, Tensor] = {}  # at the residuals' resolutions

    def __call__(self, net: nn.Module, args: tuple[Any, ...], output: tuple[Any, Any]) -> Any:
        down, middle = output
        if middle is None:  # silent
            return None
        tile = getattr(net, "tile", None)
        weighed = [self.weigh(each, number, tile) for number, each in enumerate([*down, middle])]
        return weighed[:-1], weighed[-1]

    def weigh(self, residual: Tensor, number: int, tile: Tile | None) -> Tensor:
        """A copy, since a silent net hands out the same zeros each time."""
        if self.weights is not None:
            residual = residual * self.weights[number]
        return residual if self.share is None else residual * self.share_at(residual, tile)

    def share_at(self, residual: Tensor, tile: Tile | None) -> Tensor:
        """(1, 1, h, w): the mean of the mask over each cell of the picture, or of its tile."""
        import torch

        key = (tile, residual.shape[-2:], residual.dtype, residual.device)
        if key not in self.shares:
            whole = torch.from_numpy(self.share)[None, None]
            whole = whole if tile is None else tile.cut(whole, self.factor)
            self.shares[key] = torch.nn.functional.interpolate(whole, residual.shape[-2:], mode="area").to(residual)
        return self.shares[key]
