"""What a training run is told. The defaults suit a base of its full size; configs/ has what suits the small one."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from controlkit.data.fresh_maps import DRAWN_MASKS, FreshMaps
from controlkit.data.mirroring import may_mirror_maps
from controlkit.data.rows import read_datasets
from controlkit.diffusion.samplers import SAMPLERS, make_sampler
from controlkit.errors import RequestError, known
from controlkit.models.bases import DEFAULT_BASE
from controlkit.models.controlnets import find_controlnet
from controlkit.models.inpaint_hint import INPAINT
from controlkit.training.dropout import ControlDropout
from controlkit.training.objective_config import ObjectiveConfig, training_scheduler
from controlkit.training.optimizers import missing_library
from controlkit.training.presets import PRESETS
from controlkit.training.reports import check_report_to
from controlkit.training.watch_config import WatchConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from controlkit.data.rows import Row
    from controlkit.models.bases import Base
    from controlkit.processes import Processes


USUAL_CONDITION_DROPOUT = 0.5

# What decides which rows are seen and what they are trained towards: another value makes it another run.
RESUMED_WITH = (
    *(
        "base",
        "base_prediction",
        "base_tokenizer",
        "controlnet",
        "seed",
        "only_mid_control",
        "decoder",
        "ema",
        "control_lora",
    ),
    *("data.path", "data.maps", "data.condition", "data.resolution", "data.buckets", "data.flip", "data.held_out"),
    *("data.annotate", "data.mask", "prompt_dropout", "control_dropout", "condition_dropout", "optimizer"),
    *(f"objective.{setting.name}" for setting in fields(ObjectiveConfig)),
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    path: str = "circles"  # datasets in any form (`data/readers.py`), or names of worlds, apart by commas
    maps: str | None = None  # the second of two parallel folders, which holds the maps under the pictures' names
    # Which of its control maps; several: one net for all. inpaint: masks, drawn anew each epoch where it has none.
    condition: tuple[str, ...] = ("canny",)
    resolution: int | None = None  # pixels a side; null: what the base was trained at
    buckets: int | None = None  # sides are multiples of it (64 is usual), each picture near its shape; null: one square
    flip: bool = False  # mirror half of the rows, anew each epoch, where neither map nor caption tells left from right
    # Make the maps while training: [low=20..60, high=90..300], drawn anew; of several types [canny.low=20..60, tile].
    annotate: tuple[str, ...] | None = None
    mask: str | None = None  # which of the dataset's maps says where the loss counts: white all, black not at all
    held_out: float = 0.02  # share of the rows kept from training, for the samples
    workers: int = 0  # processes that read pictures ahead; 0: the training process reads

    def problems(self) -> Iterator[str]:
        if self.resolution is not None and self.resolution < 1:
            yield f"data.resolution={self.resolution}: expected at least 1"
        if self.buckets is not None and self.buckets < 1:
            yield f"data.buckets={self.buckets}: expected a number of pixels, e.g. 64"
        named = ",".join(self.condition)
        if len(set(self.condition)) != max(1, len(self.condition)):
            yield f"data.condition={named}: expected one control type, or several that differ"
            return
        if len(self.condition) > 1 and INPAINT in self.condition:
            yield f"data.condition={named}: {INPAINT} reads the picture with its hole and goes alone; train two nets"
        if len(self.condition) > 1 and self.maps is not None:
            yield f"data.maps={self.maps} holds maps of one type, and data.condition={named} are several"
        for type in self.condition if self.flip else ():
            if not may_mirror_maps(type):
                yield f"data.flip=true: {type} maps tell left from right and cannot be mirrored; leave it out"
        if self.annotate is not None:
            try:
                FreshMaps.of_each(self.condition, self.annotate)
            except RequestError as reason:
                yield str(reason)
            if self.maps is not None:
                yield f"data.annotate makes the maps, and data.maps={self.maps} holds some; leave one of the two out"
        if not 0 <= self.held_out < 1:
            yield f"data.held_out={self.held_out}: expected a share from 0 to below 1"
        if self.workers < 0:
            yield f"data.workers={self.workers}: expected 0 or more"


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    every: int = 500  # steps between sample grids; 0: none
    count: int = 4
    steps: int = 20
    cfg: float | None = None  # None: the base's own
    sampler: str = "dpmpp_2m_karras"
    maps: tuple[str, ...] = ()  # files, of several types TYPE=FILE: maps of your own, painted below the dataset's rows
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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    base: str = DEFAULT_BASE  # embedded name, folder, single file or hub id
    base_prediction: str | None = None  # epsilon, v_prediction; null: what the base says, else its family
    base_tokenizer: str | None = None  # folder or hub id, for a base in a single file; null: one that lies near
    controlnet: str | None = None  # the ControlNet to go on from, of the base's family; null: a copy of its encoder
    data: DataConfig = field(default_factory=DataConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    output: str = "runs/controlnet"
    steps: int = 10_000  # steps of the optimizer
    batch_size: int = 4  # rows a process and forward pass
    gradient_accumulation: int = 1  # forward passes a step
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "lion"] = "adamw"
    lr: float = 1e-5
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"  # behind the warm-up; the others end at 0
    warmup_steps: int = 0  # steps in which the learning rate rises from 0
    weight_decay: float = 0.0  # AdamW's own 0.01 would move weights that no gradient has reached yet
    max_grad_norm: float = 1.0
    prompt_dropout: float = 0.5  # share of prompts emptied, so that the net learns to read the map (ControlNet, 3.4)
    control_dropout: float = 0.0  # share of rows whose maps are emptied
    # Of several types in one net: of the other rows the share of each type's maps emptied, of which one always stays.
    condition_dropout: float | None = None  # null: 0.5, with which a net of two has one alone in half of the rows
    control_lora: int = 0  # rank: the copy of the encoder learns low-rank additions alone; 0: it learns in full
    only_mid_control: bool = False  # control enters at the middle block alone
    decoder: bool = False  # the base's decoder learns along (the original's sd_locked=False); lower lr to 2e-6 with it
    ema: float = 0.0  # of the weights that are sampled from and handed over, 0.9999 say; 0: none
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    cache: Literal["disk", "off"] = "disk"  # keeps what the locked networks make of the rows; off: made anew each step
    memory: Literal["8", "12", "16", "24"] | None = None  # GB of the GPU: sets what spares memory (training/presets.py)
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them; in the base's decoder too
    channels_last: bool = False  # weights laid out for convolutions on tensor cores
    tf32: bool = True  # float32 products with 10 bits of mantissa, on GPUs that can
    compile: bool = False  # torch.compile: minutes at the start, faster steps
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 3  # the newest ones; older go after a newer one is safe
    max_minutes: float | None = None  # stop behind a checkpoint after so long; --resume goes on
    # Where the figures go beside metrics.jsonl; auto: TensorBoard, where it is installed.
    report_to: Literal["auto", "none", "tensorboard", "wandb", "all"] = "auto"
    save_webui: bool = False  # the result as one .safetensors for webui and ComfyUI too
    push_to_hub: str | None = None  # OWNER/NAME: upload the result there at the end; null: nothing leaves the machine

    presets: ClassVar = ("memory", PRESETS)

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
        if package := missing_library(self.optimizer):
            yield f"optimizer={self.optimizer} needs {package}, which is not installed: pip install {package}"
        if self.control_lora and self.controlnet:
            yield (
                f"control_lora={self.control_lora} adds to the base's own encoder; leave controlnet={self.controlnet} "
                f"out"
            )
        for name in ("weight_decay", "warmup_steps", "control_lora"):
            if (value := getattr(self, name)) < 0:
                yield f"{name}={value}: expected 0 or more"
        for name in ("prompt_dropout", "control_dropout", "condition_dropout"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                yield f"{name}={value}: expected a share from 0 to 1"
        types = self.data.condition
        if len(types) == 1 and self.condition_dropout is not None:
            yield (
                f"condition_dropout={self.condition_dropout:g}: empties one type of several, and "
                f"data.condition={types[0]} is one; leave it out, or take control_dropout"
            )
        if len(types) > 1:
            named = ",".join(types)
            if self.control_lora:
                yield f"control_lora={self.control_lora}: its file is of one type, data.condition={named} are several"
            if self.save_webui:
                yield f"save_webui=true: webuis hand a ControlNet one map, data.condition={named} are several"
        if not 0 <= self.ema < 1:
            yield f"ema={self.ema:g}: expected 0 (none) to below 1"
        if self.max_minutes is not None and self.max_minutes < 0:
            yield f"max_minutes={self.max_minutes:g}: expected 0 or more, or null"
        for text in self.samples.maps if types else ():
            type, file = own_map(text, types)
            if type not in types:
                yield f"samples.maps={text}: data.condition={','.join(types)} are several; say which: {types[0]}={text}"
            elif not file.is_file():
                yield f"samples.maps: there is no file {file}"
        if self.samples.maps and INPAINT in self.data.condition:
            yield "samples.maps: with data.condition=inpaint a map is a mask, which says nothing alone; leave it out"
        if self.push_to_hub is not None and self.push_to_hub.count("/") != 1:
            yield f"push_to_hub={self.push_to_hub}: expected OWNER/NAME, or null"


def read_rows(config: TrainConfig, say: Callable[[str], None], processes: Processes | None = None) -> list[Row]:
    """The rows that the config names; without maps where those are made while training."""
    data = config.data
    made = FreshMaps.of_each(data.condition, data.annotate) if data.annotate is not None else {}
    types = [type for type in data.condition if type not in made]
    rows = read_datasets(
        data.path,
        types,
        maps=data.maps,
        mask=data.mask,
        without_maps=types == [INPAINT],
        say=say,
        processes=processes,
    )
    if types == [INPAINT]:
        own = sum(INPAINT in row.controls for row in rows)
        say(f"masks: {own} of the rows have their own, {len(rows) - own} get one drawn anew each epoch")
    return rows


def fresh_maps(config: TrainConfig) -> dict[str, FreshMaps]:
    """Who makes the maps that no file holds, by type."""
    data = config.data
    if data.annotate is not None:
        return FreshMaps.of_each(data.condition, data.annotate)
    return {INPAINT: FreshMaps.of(INPAINT, DRAWN_MASKS)} if data.condition == (INPAINT,) else {}


def control_dropout(config: TrainConfig) -> ControlDropout:
    """Which maps a row is seen without."""
    each = config.condition_dropout
    if each is None:
        each = USUAL_CONDITION_DROPOUT if len(config.data.condition) > 1 else 0.0
    return ControlDropout(config.control_dropout, each)


def resolution(config: TrainConfig, base: Base) -> int:
    """Pixels a side of what the networks see."""
    return config.data.resolution or base.native_size


def own_map(text: str, types: Sequence[str]) -> tuple[str, Path]:
    """The type and the file of a map in `samples.maps`; of several types it is said: TYPE=FILE."""
    type, _, name = text.partition("=") if len(types) > 1 else (types[0], "", text)
    return type, Path(name).expanduser()


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
    if base.prediction_type not in ("epsilon", "v_prediction", "sample"):
        problems.append(
            f"base={config.base} predicts {base.prediction_type!r}; expected epsilon, v_prediction or sample"
        )
    else:
        problems.extend(_schedule_problems(config, base))
    if config.controlnet:
        try:
            found, types = find_controlnet(config.controlnet).on(base), config.data.condition
            if max(len(types), len(found.conditions)) > 1 and found.conditions != types:
                reads = ",".join(found.conditions) or "maps of one type"
                problems.append(
                    f"controlnet={config.controlnet} reads {reads}, data.condition={','.join(types)}: expected the same"
                )
        except RequestError as reason:
            problems.append(f"controlnet={config.controlnet}: {reason}")
    if problems:
        raise RequestError("\n".join(problems))


def _schedule_problems(config: TrainConfig, base: Base) -> Iterator[str]:
    from controlkit.diffusion.prediction import check_prediction
    from controlkit.diffusion.schedules import from_scheduler_config

    objective, scheduler = config.objective, training_scheduler(base.scheduler, config.objective)
    schedule = from_scheduler_config(scheduler)
    try:
        check_prediction(base.prediction_type, schedule)
    except ValueError as reason:
        yield f"base={config.base}, objective.zero_terminal_snr={str(objective.zero_terminal_snr).lower()}: {reason}"
        return
    last = schedule.num_steps - 1
    for name in ("first_timestep", "last_timestep"):
        if (value := getattr(objective, name)) is not None and value > last:
            yield f"objective.{name}={value}: the schedule of base={config.base} ends with {last}"
    if config.samples.every:
        try:
            make_sampler(config.samples.sampler, scheduler, steps=config.samples.steps)
        except ValueError as reason:
            yield f"samples.sampler={config.samples.sampler}: {reason}"
