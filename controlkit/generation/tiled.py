"""UNet and ControlNets that are asked for a whole picture and compute it tile by tile, so that diffusers' pipelines
walk it as any other.

A pipeline asks the ControlNets first and hands their residuals to the UNet. Here the ControlNets only keep what they
were asked; the UNet asks them again for each tile, just before it computes that tile, so that no more than one tile's
residuals are ever there. SDXL is told which part of which picture a tile is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from controlkit.generation.silent import SilentControlNets, behind_zeros
from controlkit.generation.tiles import shares_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from controlkit.generation.silent import Residuals
    from controlkit.generation.tiles import Tile


def in_tiles(
    tiles: tuple[Tile, ...], scale: int, parts: dict[str, Any], controlnets: list[Any]
) -> tuple[dict[str, Any], list[Any]]:
    """The parts of a pipeline, and its silenced ControlNets as it takes them, so that it paints in these tiles of so
    many pixels a cell."""
    nets = TiledControlNets(controlnets) if controlnets else None
    return {**parts, "unet": TiledUNet(parts["unet"], tiles, scale, nets)}, [nets] if nets else []


class TiledControlNets(SilentControlNets):
    """Silent ControlNets, one or several, which answer for a tile."""

    asked: dict[str, Any]

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, controlnet_cond: list[Tensor],
                conditioning_scale: list[float], *, guess_mode: bool = False, return_dict: bool = False,
                **others: Any) -> Residuals:  # fmt: skip
        """As the pipelines call it. What it gives counts for nothing: the UNet in tiles asks `of_tile`."""
        self.asked = {
            "sample": sample,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
            "controlnet_cond": controlnet_cond,
            "conditioning_scale": conditioning_scale,
            "guess_mode": guess_mode,
            **others,
        }
        return ([], sample.new_zeros(len(sample), 1, 1, 1)) if guess_mode else (None, None)

    def of_tile(self, tile: Tile, scale: int, batch: int) -> Residuals:
        """The residuals of a tile for a UNet that is asked for that batch. In guess mode the nets are asked for the
        half with the prompt alone, and the other, which pipelines put before it, is zeros."""
        asked = dict(self.asked)
        asked["sample"] = tile.cut(asked["sample"])
        asked["controlnet_cond"] = [tile.cut(hint, scale) for hint in asked["controlnet_cond"]]
        if asked.get("added_cond_kwargs"):
            asked["added_cond_kwargs"] = told_of(tile, scale, asked["added_cond_kwargs"])
        for net in self.nets:
            net.tile = tile
        try:
            down, middle = super().forward(**asked)
        finally:
            for net in self.nets:
                net.tile = None
        if down is None or middle is None or len(middle) == batch:
            return down, middle
        return [behind_zeros(each) for each in down], behind_zeros(middle)


class TiledUNet(torch.nn.Module):
    """A UNet that predicts the noise of a picture from that of its tiles."""

    of_tile: Any

    def __init__(self, unet: nn.Module, tiles: tuple[Tile, ...], scale: int, nets: TiledControlNets | None) -> None:
        """`scale` pixels a side of a cell; `nets` are those of the pipeline."""
        super().__init__()
        self.of_tile, self.tiles, self.scale = unet, tiles, scale
        self.residuals = nets.of_tile if nets else None  # no submodule, which would be moved about with this
        self.shares = shares_of(tiles)
        self.after_tile: Callable[[], None] = lambda: None

    def forward(
        self, sample: Tensor, timestep: Any, *, added_cond_kwargs: dict[str, Tensor] | None = None, **others: Any
    ) -> tuple[Tensor]:
        """As the pipelines call it, for a tuple. The residuals that come along are those that count for nothing."""
        whole = torch.zeros_like(sample, dtype=torch.float32)
        for tile, share in zip(self.tiles, self.shares, strict=True):
            if self.residuals:
                down, middle = self.residuals(tile, self.scale, len(sample))
                others |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            added = told_of(tile, self.scale, added_cond_kwargs) if added_cond_kwargs else added_cond_kwargs
            part = tile.cut(sample)
            (noise,) = self.of_tile(part, timestep, added_cond_kwargs=added, **others)
            tile.view(whole).add_(noise.float() * torch.from_numpy(share).to(noise.device))
            self.after_tile()
        return (whole.to(sample.dtype),)

    @property
    def config(self) -> Any:
        return self.of_tile.config

    @property
    def dtype(self) -> Any:
        return self.of_tile.dtype

    @property
    def device(self) -> Any:
        return self.of_tile.device

    @property
    def add_embedding(self) -> Any:
        return self.of_tile.add_embedding


def told_of(tile: Tile, scale: int, conditions: dict[str, Tensor]) -> dict[str, Tensor]:
    """What SDXL is told beside the prompt: that it paints a crop of the picture, from this corner on, of this size."""
    size, corner = conditions["time_ids"][:, :2], conditions["time_ids"][:, 2:4]
    here = corner + scale * corner.new_tensor([tile.top, tile.left])
    own = torch.zeros_like(size) + scale * size.new_tensor([tile.height, tile.width])
    return {**conditions, "time_ids": torch.cat([size, here, own], dim=1)}
