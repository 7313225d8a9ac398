"""What a training run is told. The defaults are those of configs/circles.yaml: a first run that needs nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from controlkit.diffusion.samplers import SAMPLERS, make_sampler
from controlkit.errors import RequestError, known
from controlkit.models.bases import DEFAULT_BASE
from controlkit.training.reports import check_report_to
from controlkit.training.watch_config import WatchConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlkit.models.bases import Base


# What decides which rows are seen and what they are trained towards: another value makes it another run.
RESUMED_WITH = ("base", "data.path", "data.condition", "data.resolution", "data.held_out", "prompt_dropout", "seed")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str = "circles"  # a folder made by `controlkit annotate`, or the name of a world
    condition: str = "canny"  # which of its control maps
    resolution: int | None = None  # pixels a side; null: what the base was trained at
    held_out: float = 0.02  # share of the rows kept from training, for the samples
    workers: int = 0  # processes that read pictures ahead; 0: the training process reads

    def problems(self) -> Iterator[str]:
        if self.resolution is not None and self.resolution < 1:
            yield f"data.resolution={self.resolution}: expected at least 1"
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
    maps: tuple[str, ...] = ()  # files: control maps of your own, painted below the rows of the dataset
    prompts: tuple[str, ...] = ()  # one for each of them

    def problems(self) -> Iterator[str]:
        if self.every < 0:
            yield f"samples.every={self.every}: expected 0 (none) or a number of steps"
        if self.count < 1 or self.steps < 1:
            yield f"samples.count={self.count}, samples.steps={self.steps}: expected at least 1"
        if self.sampler not in SAMPLERS:
            yield f"samples.sampler={self.sampler}: {known(self.sampler, SAMPLERS)}"
        if len(self.maps) != len(self.prompts):
            yield f"samples.maps names {len(self.maps)} files, samples.prompts has {len(self.prompts)}: one for each"
        for name in self.maps:
            if not Path(name).expanduser().is_file():
                yield f"samples.maps: there is no file {name}"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    base: str = DEFAULT_BASE  # embedded name, folder or hub id
    data: DataConfig = field(default_factory=DataConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
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
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 50
    keep_checkpoints: int = 3  # the newest ones; older go after a newer one is safe
    max_minutes: float | None = None  # stop behind a checkpoint after so long; --resume goes on
    # Where the figures go beside metrics.jsonl; auto: TensorBoard, where it is installed.
    report_to: Literal["auto", "none", "tensorboard", "wandb", "all"] = "auto"
    save_webui: bool = False  # the result as one .safetensors for webui and ComfyUI too
    push_to_hub: str | None = None  # OWNER/NAME: upload the result there at the end; null: nothing leaves the machine

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
        if self.max_minutes is not None and self.max_minutes < 0:
            yield f"max_minutes={self.max_minutes:g}: expected 0 or more, or null"
        if self.push_to_hub is not None and self.push_to_hub.count("/") != 1:
            yield f"push_to_hub={self.push_to_hub}: expected OWNER/NAME, or null"
        if not 0 <= self.prompt_dropout <= 1:
            yield f"prompt_dropout={self.prompt_dropout}: expected a share from 0 to 1"


def resolution(config: TrainConfig, base: Base) -> int:
    """Pixels a side of what the networks see."""
    return config.data.resolution or base.native_size


def check_against_base(config: TrainConfig, base: Base) -> None:
    """What only the base's configs can tell; refused with all that is wrong, before a weight is loaded."""
    check_report_to(config.report_to)
    problems = []
    size, factor = resolution(config, base), base.vae_factor
    if size % factor:
        lower = size // factor * factor
        near = f"{lower} or {lower + factor}" if lower else f"{factor}"
        problems.append(
            f"data.resolution={size} is not a multiple of {factor} (this base's VAE divides by it); use {near}"
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
