"""What a training run is told. The defaults are those of configs/circles.yaml: a first run that needs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from controlkit.data.mirroring import may_mirror_maps
from controlkit.diffusion.samplers import SAMPLERS, make_sampler
from controlkit.errors import RequestError, known
from controlkit.models.bases import DEFAULT_BASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlkit.models.bases import Base


# What decides which rows are seen and what they are trained towards: another value makes it another run.
RESUMED_WITH = (
    *("base", "data.path", "data.maps", "data.condition", "data.resolution", "data.buckets", "data.held_out"),
    *("data.flip", "prompt_dropout", "seed"),
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str = "circles"  # datasets in any form (`data/readers.py`), or names of worlds, apart by commas
    maps: str | None = None  # the second of two parallel folders, which holds the maps under the pictures' names
    condition: str = "canny"  # which of its control maps
    resolution: int | None = None  # pixels a side; null: what the base was trained at
    buckets: int | None = None  # sides are multiples of it (64 is usual), each picture near its shape; null: one square
    flip: bool = False  # mirror half of the rows, anew each epoch, where neither map nor caption tells left from right
    held_out: float = 0.02  # share of the rows kept from training, for the samples
    workers: int = 0  # processes that read pictures ahead; 0: the training process reads

    def problems(self) -> Iterator[str]:
        if self.resolution is not None and self.resolution < 1:
            yield f"data.resolution={self.resolution}: expected at least 1"
        if self.buckets is not None and self.buckets < 1:
            yield f"data.buckets={self.buckets}: expected a number of pixels, e.g. 64"
        if self.flip and not may_mirror_maps(self.condition):
            yield f"data.flip=true: {self.condition} maps tell left from right and cannot be mirrored; leave it out"
        if not 0 <= self.held_out < 1:
            yield f"data.held_out={self.held_out}: expected a share from 0 to below 1"
        if self.workers < 0:
            yield f"data.workers={self.workers}: expected 0 or more"


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    every: int = 100  # steps between sample grids; 0: none
    count: int = 4
    steps: int = 20
    cfg: float = 7.5
    sampler: str = "dpmpp_2m_karras"

    def problems(self) -> Iterator[str]:
        if self.every < 0:
            yield f"samples.every={self.every}: expected 0 (none) or a number of steps"
        if self.count < 1 or self.steps < 1:
            yield f"samples.count={self.count}, samples.steps={self.steps}: expected at least 1"
        if self.sampler not in SAMPLERS:
            yield f"samples.sampler={self.sampler}: {known(self.sampler, SAMPLERS)}"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    base: str = DEFAULT_BASE  # embedded name, folder or hub id
    data: DataConfig = field(default_factory=DataConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    output: str = "runs/circles"
    steps: int = 100  # steps of the optimizer
    batch_size: int = 4  # rows a process and forward pass
    gradient_accumulation: int = 1  # forward passes a step
    lr: float = 1e-5
    warmup_steps: int = 0  # steps in which the learning rate rises from 0
    weight_decay: float = 0.0  # AdamW's own 0.01 would move weights that no gradient has reached yet
    max_grad_norm: float = 1.0
    prompt_dropout: float = 0.5  # share of prompts emptied, so that the net learns to read the map (ControlNet, 3.4)
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    cache: Literal["disk", "off"] = "disk"  # keeps what the locked networks make of the rows; off: made anew each step
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 50
    keep_checkpoints: int = 3  # the newest ones; older go after a newer one is safe

    def problems(self) -> Iterator[str]:
        for name in (
            "steps",
            "batch_size",
            "gradient_accumulation",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            if (value := getattr(self, name)) < 1:
                yield f"{name}={value}: expected at least 1"
        for name in ("lr", "max_grad_norm"):
            if not (value := getattr(self, name)) > 0:
                yield f"{name}={value}: expected more than 0"
        for name in ("weight_decay", "warmup_steps"):
            if (value := getattr(self, name)) < 0:
                yield f"{name}={value}: expected 0 or more"
        if not 0 <= self.prompt_dropout <= 1:
            yield f"prompt_dropout={self.prompt_dropout}: expected a share from 0 to 1"


def resolution(config: TrainConfig, base: Base) -> int:
    """Pixels a side of what the networks see."""
    return config.data.resolution or base.native_size


def check_against_base(config: TrainConfig, base: Base) -> None:
    """What only the base's configs can tell; refused with all that is wrong, before a weight is loaded."""
    problems = []
    size, factor = resolution(config, base), base.vae_factor
    if size % factor:
        lower = size // factor * factor
        near = f"{lower} or {lower + factor}" if lower else f"{factor}"
        problems.append(
            f"data.resolution={size} is not a multiple of {factor} (this base's VAE divides by it); use {near}"
        )
    step = config.data.buckets
    if step is not None and (step % factor or size % step):
        rounded = max(1, round(step / factor)) * factor
        problems.append(
            f"data.buckets={step}: expected a multiple of {factor} (this base's VAE divides by it) of which "
            f"data.resolution={size} is one too, e.g. {rounded if size % rounded == 0 else factor}"
        )
    if base.inpaints:
        channels = base.unet["in_channels"]
        problems.append(
            f"base={config.base} is an inpainting base ({channels} channels); train on its text-to-image sibling"
        )
    if config.samples.every:
        try:
            make_sampler(config.samples.sampler, base.scheduler, steps=config.samples.steps)
        except ValueError as reason:
            problems.append(f"samples.sampler={config.samples.sampler}: {reason}")
    if base.prediction_type not in ("epsilon", "v_prediction", "sample"):
        problems.append(
            f"base={config.base} predicts {base.prediction_type!r}; expected epsilon, v_prediction or sample"
        )
    if problems:
        raise RequestError("\n".join(problems))
