"""Inpainting: a part of a picture is painted anew, by RePaint or by diffusers' pipelines for it.

The network sees the whole part that is cut out; what it gives back is used in the hole and its feather alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from annotators.contract import in_three_channels, resize_map
from controlkit.diffusion.repaint import make_repaint
from controlkit.generation.masks import Region, latent_hole, match_colours, paste_back
from controlkit.generation.windows import Window
from controlkit.models.devices import able
from controlkit.models.inpaint_hint import inpaint_hint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from controlkit.generation.request import Mask

    Image = NDArray[np.uint8]
    Plane = NDArray[np.float32]


@dataclass(frozen=True)
class Canvas:
    """A picture of which a region is painted, through a window."""

    picture: Image
    region: Region
    window: Window

    @staticmethod
    def of(
        picture: Image,
        mask: Plane,
        *,
        grow: int,
        feather: int,
        multiple: int,
        padding: int | None = None,
        area: int = 0,
        mixed: bool = False,
    ) -> Canvas:
        """The whole picture; with `padding` the hole and so many pixels around it, painted at about `area` pixels.
        `mixed` is for who paints all of the hole: a soft mask then tells how much of it is taken."""
        region = Region.of(mask, grow=grow, feather=feather, mixed=mixed)
        height, width = mask.shape
        if padding is None:
            return Canvas(picture, region, Window.whole(width, height, multiple))
        return Canvas(picture, region, Window.around(region.hole, padding=padding, area=area, multiple=multiple))

    @property
    def shown(self) -> Image:
        """What the networks see of the picture."""
        return self.window.cut(self.picture)

    @property
    def hole(self) -> Plane:
        """What of it they paint."""
        return self.window.cut_hole(self.region.hole)

    @property
    def mask(self) -> Image:
        """(H, W): 255 where they paint, as who cannot paint by halves is told."""
        return np.where(self.hole > 0, 255, 0).astype(np.uint8)

    @property
    def hint(self) -> torch.Tensor:
        """What a ControlNet for inpainting reads."""
        return inpaint_hint(self.shown, in_three_channels(self.mask))

    def control(self, control_map: Image, values: frozenset[int] | None) -> Image:
        """The part of a map of the picture's size, by the rule of its kind."""
        window = self.window
        if not window.scaled:
            return window.cut(control_map)
        part = control_map[window.top : window.top + window.height, window.left : window.left + window.width]
        return resize_map(np.ascontiguousarray(part), *window.size, values)

    def finish(self, painted: Image) -> Image:
        """The picture with the region painted, everything else bit for bit what it was."""
        window = self.window
        rows, columns = (
            slice(window.top, window.top + window.height),
            slice(window.left, window.left + window.width),
        )
        fitting = window.put(self.picture, painted)[rows, columns]
        before, weight = self.picture[rows, columns], self.region.weight[rows, columns]
        whole = self.picture.copy()
        whole[rows, columns] = paste_back(before, match_colours(before, fitting, weight), weight)
        return whole


@contextmanager
def repainting(
    pipeline: Any,
    canvases: list[Canvas],
    mask: Mask,
    *,
    steps: int,
    strength: float,
    generators: list[torch.Generator],
) -> Iterator[dict[str, Any]]:
    """A text-to-image pipeline, with or without ControlNets, walks as RePaint does as long as the block lasts; it is to
    be called with what this gives, for as many pictures as there are generators: of one canvas, or each of its own."""
    from diffusers.utils.torch_utils import randn_tensor

    inner = pipeline.scheduler
    known = torch.cat([encode(pipeline.vae, canvas.shown) for canvas in canvases])
    scheduler = make_repaint(
        inner,
        known,
        torch.cat([latent_hole(canvas.hole, pipeline.vae_scale_factor) for canvas in canvases]),
        jump=mask.jump,
        samples=mask.samples,
        window=mask.window,
        strength=strength,
    )
    scheduler.set_timesteps(steps, device=known.device)
    shape = (len(generators), *known.shape[1:])
    generator = generators[0] if len(generators) == 1 else generators
    noise = randn_tensor(shape, generator=generator, device=known.device, dtype=known.dtype)
    pipeline.scheduler = scheduler
    try:
        yield {"latents": scheduler.begin(noise)}
    finally:
        pipeline.scheduler = inner


@contextmanager
def keeping_strokes(pipeline: Any) -> Iterator[None]:
    """As long as the block lasts an inpainting pipeline paints each latent cell of which any pixel is masked. Its own
    way looks at one pixel of a cell, and thin strokes are lost."""
    bring_down = pipeline.prepare_mask_latents

    def kept(mask: torch.Tensor, *rest: Any, **options: Any) -> Any:
        return bring_down(whole_cells(mask, pipeline.vae_scale_factor), *rest, **options)

    pipeline.prepare_mask_latents = kept
    try:
        yield
    finally:
        del pipeline.prepare_mask_latents


def whole_cells(mask: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, 1, H, W): every latent cell that is touched is masked as a whole."""
    cells = torch.nn.functional.max_pool2d(mask, factor)
    return cells.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)


@torch.no_grad()
def encode(vae: Any, image: Image) -> torch.Tensor:
    """x_0 (1, C, h, w) of a picture: the mean of the VAE's posterior, since what a draw adds to it would stay."""
    dtype = vae.dtype
    with able(vae):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(vae.device, vae.dtype) / 127.5 - 1
        mean = vae.encode(pixels).latent_dist.mode()
    x_0: torch.Tensor = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    return x_0.to(dtype)
