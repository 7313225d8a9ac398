"""Tiled upscaling: a picture is enlarged in pixels and walked again in overlapping tiles, each as large as the base was
trained to paint.

There is one latent for the whole picture and one sampler that walks it; at each step the noise that the tiles predict
is averaged where they overlap (MultiDiffusion, arXiv:2302.08113), each counting most in its middle and hardly at its
border. So tiles cannot part from each other on the way. Peers that paint tile after tile to the end and blend pixels
show seams and doubled outlines, since two drawings cannot be averaged into one. Memory is that of one tile, and of the
whole only the latents and the pixels.

Each tile is painted under the whole prompt, so that a high strength paints the whole prompt into each. A ControlNet for
tiles, which is shown the enlarged picture, keeps them to what was there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from controlkit.generation.enlarged import Enlarged
from controlkit.models.controlnets import find_controlnet

if TYPE_CHECKING:
    from pathlib import Path

    from controlkit.generation.request import Control, Net

MOST = 8.0
TILE = "tile"
"""The type of the ControlNets that read the picture itself."""


@dataclass(frozen=True, kw_only=True)
class Upscale(Enlarged):
    """How a picture is enlarged; 1 walks it again at its own size."""

    strength: float = 0.3

    option: ClassVar[str] = "upscale"
    scales: ClassVar[str] = f"of 1 to {MOST:g}"

    @property
    def is_possible(self) -> bool:
        return 1 <= self.scale <= MOST


def shows_the_picture(control: Control, image: Path | None) -> bool:
    """Whether a control of an upscaled picture is that picture: its map is then the enlarged one, pixel for pixel."""
    return control.type == TILE and control.file == image


def tile_controls(image: str, controls: tuple[Control, ...], nets: tuple[Net, ...]) -> list[str]:
    """The controls, as they are typed, of those ControlNets for tiles for which none was given."""
    reading = sum((net.type or find_controlnet(net.name).condition) == TILE for net in nets)
    given = sum(control.type == TILE for control in controls)
    return [f"{TILE}={image}@1:0:1"] * (reading - given)  # the numbers, so that a name like photo@2 is a name
