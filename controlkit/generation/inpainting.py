"""Inpainting by RePaint: a part of a picture is painted anew by any base, under any ControlNets.

The network sees the whole part that is cut out; what it gives back is used in the hole and its feather alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from annotators.contract import resize_map
from controlkit.diffusion.repaint import make_repaint
from controlkit.generation.masks import Region, latent_hole, match_colours, paste_back
from controlkit.generation.windows import Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]
    Plane = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How RePaint goes back and forth: `jump` levels at once, `samples` times, within the `window` of noise levels."""

    jump: int = 5
    samples: int = 5
    window: tuple[float, float] = (0.2, 0.8)


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


def repaint(
    pipeline: Any,
    canvas: Canvas,
    walk: Walk,
    arguments: dict[str, Any],
    *,
    steps: int,
    strength: float = 1.0,
    generator: torch.Generator,
) -> Image:
    """Paint the canvas with a text-to-image pipeline, with or without ControlNets, whose scheduler is one that RePaint
    can walk with. `arguments` are those of the pipeline beside the size and the steps."""
    vae, inner = pipeline.vae, pipeline.scheduler
    factor = pipeline.vae_scale_factor
    known = encode(vae, canvas.shown)
    scheduler = make_repaint(
        inner,
        known,
        latent_hole(canvas.hole, factor),
        jump=walk.jump,
        samples=walk.samples,
        window=walk.window,
        strength=strength,
    )
    scheduler.set_timesteps(steps, device=known.device)
    noise = torch.randn(known.shape, generator=generator, device=generator.device, dtype=known.dtype).to(known.device)
    pipeline.scheduler = scheduler
    try:
        painted = pipeline(
            **arguments,
            latents=scheduler.begin(noise),
            width=canvas.window.size[0],
            height=canvas.window.size[1],
            num_inference_steps=steps,
            generator=generator,
            output_type="np",
        ).images[0]
    finally:
        pipeline.scheduler = inner
    if not np.isfinite(painted).all():
        raise ValueError("the picture is not a number")
    return canvas.finish((painted * 255).round().astype(np.uint8))


@torch.no_grad()
def encode(vae: Any, image: Image) -> torch.Tensor:
    """x_0 (1, C, h, w) of a picture: the mean of the VAE's posterior, since what a draw adds to it would stay."""
    dtype = vae.dtype
    overflows = dtype == torch.float16 and vae.config.force_upcast
    if overflows:
        vae.to(torch.float32)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(vae.device, vae.dtype) / 127.5 - 1
    mean = vae.encode(pixels).latent_dist.mode()
    if overflows:
        vae.to(dtype)
    x_0: torch.Tensor = (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    return x_0.to(dtype)
