"""Inpainting by RePaint: a part of a picture is painted anew by any base, under any ControlNets.

The network sees the whole part that is cut out; what it gives back is used in the hole and its feather alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from annotators.contract import resize_map
from controlkit.diffusion.repaint import make_repaint
from controlkit.generation.masks import Region, latent_hole, match_colours, paste_back
from controlkit.generation.windows import Window
from controlkit.models.devices import able

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
    ) -> Canvas:
        """The whole picture; with `padding` the hole and so many pixels around it, painted at about `area` pixels."""
        region = Region.of(mask, grow=grow, feather=feather)
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
    canvas: Canvas,
    mask: Mask,
    *,
    steps: int,
    strength: float,
    generators: list[torch.Generator],
) -> Iterator[dict[str, Any]]:
    """A text-to-image pipeline, with or without ControlNets, walks as RePaint does as long as the block lasts; it is to
    be called with what this gives, for as many pictures as there are generators."""
    from diffusers.utils.torch_utils import randn_tensor

    inner = pipeline.scheduler
    known = encode(pipeline.vae, canvas.shown)
    scheduler = make_repaint(
        inner,
        known,
        latent_hole(canvas.hole, pipeline.vae_scale_factor),
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


@torch.no_grad()
def encode(vae: Any, image: Image) -> torch.Tensor:
    """x_0 (1, C, h, w) of a picture: the mean of the VAE's posterior, since what a draw adds to it would stay."""
    dtype = vae.dtype
    with able(vae):
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(vae.device, vae.dtype) / 127.5 - 1
        mean = vae.encode(pixels).latent_dist.mode()
    x_0: torch.Tensor = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    return x_0.to(dtype)
