"""What the training of a base is told: DDPM, IDDPM, latent diffusion, or the autoencoder of one.

A base is made in up to two runs: `train: vae` makes the autoencoder, `train: unet` the diffusion model, in pixels or in
the latents of an autoencoder. Everything of the first is found by the second through `vae.path`. With `base` one that
is there learns further, as it is or as a model for inpainting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from controlkit.diffusion.samplers import SAMPLERS
from controlkit.errors import known
from controlkit.training.loop_config import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

# What decides which rows are seen and what they are trained towards: another value makes it another run.
RESUMED_WITH = (
    *("base", "inpaint", "train", "condition", "data.path", "data.size", "data.held_out", "data.label", "vae.path"),
    *("schedule", "timesteps", "prediction", "variance", "seed"),
)


FROM_THE_BASE = ("train", "unet", "vae", "text", "schedule", "timesteps", "prediction", "variance")
"""What a base that learns further has already."""


@dataclass(frozen=True, kw_only=True)
class BaseDataConfig:
    path: str = "circles"  # folders of pictures or worlds, apart by commas; `rooms:20000` says how many scenes
    size: int = 64  # pixels a side
    held_out: float = 0.02  # share of the rows kept from training, for the samples
    label: str | None = None  # condition=class: the metadata column, or "column.key" inside a JSON column

    def problems(self) -> Iterator[str]:
        if self.size < 1:
            yield f"data.size={self.size}: expected at least 1"
        if not 0 <= self.held_out < 1:
            yield f"data.held_out={self.held_out}: expected a share from 0 to below 1"


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    widths: tuple[int, ...] = (48, 96, 128)  # channels of each level; each level after the first halves the grid
    layers: int = 1  # residual blocks a level
    attention: tuple[bool, ...] = (False, True, True)  # which levels attend
    heads: int = 4
    groups: int = 16  # of the normalisation; divides every width
    time: Literal["add", "scale_shift"] = "add"  # how the time embedding enters (pixel models)

    def problems(self) -> Iterator[str]:
        if len(self.widths) != len(self.attention) or not self.widths:
            yield f"unet.widths has {len(self.widths)} levels, unet.attention {len(self.attention)}: expected as many"
        for width in self.widths:
            if width < 1 or width % self.groups or width % self.heads:
                yield f"unet.widths: {width} is not a multiple of unet.groups={self.groups} and unet.heads={self.heads}"
        if self.layers < 1:
            yield f"unet.layers={self.layers}: expected at least 1"


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    path: str | None = None  # train=unet: the autoencoder to work in; null: pixels
    widths: tuple[int, ...] = (32, 64, 64)  # train=vae: the grid is halved between levels
    latent_channels: int = 4
    layers: int = 1
    groups: int = 16
    kl_weight: float = 1e-6  # how strongly latents are drawn towards N(0, 1)

    def problems(self) -> Iterator[str]:
        for width in self.widths:
            if width < 1 or width % self.groups:
                yield f"vae.widths: {width} is not a multiple of vae.groups={self.groups}"
        if self.kl_weight < 0:
            yield f"vae.kl_weight={self.kl_weight:g}: expected 0 or more"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    width: int = 96
    layers: int = 3
    heads: int = 4
    tokens: int = 32  # longest prompt
    vocabulary: int = 1000  # at most; learned from the captions
    train: bool = True  # along with the UNet; false keeps the random encoder frozen


@dataclass(frozen=True, kw_only=True)
class BaseSampleConfig:
    every: int = 500  # steps between sample grids; 0: none
    count: int = 16
    steps: int = 20
    cfg: float = 4.0
    sampler: str = "ddim"

    def problems(self) -> Iterator[str]:
        if self.every < 0 or self.count < 1 or self.steps < 1:
            yield "samples: expected every >= 0, count >= 1 and steps >= 1"
        if self.sampler not in SAMPLERS:
            yield f"samples.sampler={self.sampler}: {known(self.sampler, SAMPLERS)}"


@dataclass(frozen=True, kw_only=True)
class BaseConfig(LoopConfig):
    base: str | None = None  # the Stable Diffusion to go on from: embedded name, folder, file or hub id; null: scratch
    inpaint: bool = False  # with base: its UNet learns to read a mask and the masked picture too (9 channels)
    train: Literal["unet", "vae"] = "unet"
    condition: Literal["none", "class", "text"] = "none"
    data: BaseDataConfig = field(default_factory=BaseDataConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)
    samples: BaseSampleConfig = field(default_factory=BaseSampleConfig)

    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    timesteps: int = 1000
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_small"
    loss: Literal["l1", "l2", "huber", "hybrid"] = "l2"  # hybrid: L_simple + lambda L_vlb (IDDPM), learns the variance
    snr_gamma: float | None = None  # min-SNR weighting; 5 is usual
    dropout: float = 0.1  # share of prompts or classes emptied, so that classifier-free guidance works

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.timesteps < 1:
            yield f"timesteps={self.timesteps}: expected at least 1"
        if not 0 <= self.dropout <= 1:
            yield f"dropout={self.dropout:g}: expected a share from 0 to 1"
        if (self.loss == "hybrid") != (self.variance == "learned_range"):
            yield f"loss={self.loss} with variance={self.variance}: hybrid and learned_range go together"
        if self.snr_gamma is not None and (self.snr_gamma <= 0 or self.loss == "hybrid"):
            yield f"snr_gamma={self.snr_gamma:g} with loss={self.loss}: expected more than 0, and no hybrid loss"
        if self.condition == "class" and self.data.label is None:
            yield "condition=class needs data.label: the metadata column that holds the class"
        if self.variance == "learned_range" and self.vae.path:
            yield "variance=learned_range is for pixel models; Stable Diffusion's layout has no channels for it"
        if self.base is not None:
            yield from self._problems_of_base()
            return
        if self.inpaint:
            yield "inpaint=true widens a base that is there: give it with base=…"
        depth = 2 ** (len(self.unet.widths) - 1) if self.train == "unet" else 2 ** (len(self.vae.widths) - 1)
        if self.data.size % depth:
            yield f"data.size={self.data.size} is not a multiple of {depth}, by which {self.train}.widths divides it"

    def _problems_of_base(self) -> Iterator[str]:
        usual = BaseConfig()
        given = [name for name in FROM_THE_BASE if getattr(self, name) != getattr(usual, name)]
        if given:
            yield f"base={self.base} has its own {', '.join(given)}; leave {'it' if len(given) == 1 else 'them'} out"
        if self.condition == "class":
            yield f"condition=class: base={self.base} reads prompts; use condition=text"
