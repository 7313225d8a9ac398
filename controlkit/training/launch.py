"""The accelerator of a run, and whether it is the one that was asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.training.sharding import BLOCKS, cannot_be_shared

if TYPE_CHECKING:
    from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin

    from controlkit.training.config import TrainConfig

_ASKED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def make_accelerator(mixed_precision: str, gradient_accumulation: int = 1) -> Accelerator:
    """accelerate's, of one process or of several under DDP."""
    if asked := asked_to_share():
        raise RequestError(
            f"the launcher asks for {asked}, and this trainer runs under DDP: launch with accelerate launch "
            f"--multi_gpu --num_processes N …, and without {asked} in accelerate's own config"
        )
    return _accelerator(mixed_precision, gradient_accumulation)


def make_sharing_accelerator(config: TrainConfig) -> Accelerator:
    """accelerate's, of one process or of several: under DDP or, where the launcher asks for it, under FSDP or
    DeepSpeed, which share out what learns."""
    asked = asked_to_share(config)
    if asked is None:
        return _accelerator(config.mixed_precision, config.gradient_accumulation)
    if asked == "FSDP":
        accelerator = _accelerator(config.mixed_precision, config.gradient_accumulation, fsdp_plugin=_fsdp(config))
    else:
        # Weights stay in float32 under an autocast of our own; DeepSpeed would round them.
        accelerator = _accelerator("no", config.gradient_accumulation, deepspeed_plugin=_deepspeed(config))
    kind = accelerator.distributed_type.value
    if kind != asked.upper():
        raise RequestError(
            f"the launcher asks for {asked}, which accelerate gives to GPUs alone; here it made {kind.lower()!r} of "
            f"it: launch without"
        )
    return accelerator


def asked_to_share(config: TrainConfig | None = None) -> str | None:
    """By what the launcher wants it shared out, if it does; refused where this config cannot be."""
    from accelerate.utils import parse_flag_from_env

    asked = next((name for flag, name in _ASKED.items() if parse_flag_from_env(flag)), None)
    if asked and config and (problems := list(cannot_be_shared(config, asked))):
        raise RequestError("\n".join(problems))
    return asked


def _accelerator(mixed_precision: str, gradient_accumulation: int, **plugin: Any) -> Accelerator:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation,
        # Gradients live in the buffers that are sent, rather than a second time beside them.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        **plugin,
    )


def _fsdp(config: TrainConfig) -> FullyShardedDataParallelPlugin:
    """What the launcher asks for, as far as it can be given."""
    import torch
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    # On all processes but one transformers would leave the text encoders empty.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    plugin = FullyShardedDataParallelPlugin(auto_wrap_policy=transformer_auto_wrap_policy)
    plugin.transformer_cls_names_to_wrap = list(BLOCKS)
    if plugin.fsdp_version != 2:
        raise RequestError(
            f"the launcher asks for version {plugin.fsdp_version} of FSDP, and this trainer runs under version 2: "
            f"launch with --use_fsdp --fsdp_version 2, or set fsdp_version: 2 in accelerate's own config"
        )
    if plugin.activation_checkpointing:
        raise RequestError(
            "the launcher asks for FSDP's activation checkpointing; leave it out, and set gradient_checkpointing=true"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise RequestError(
            "the launcher asks FSDP to keep weights in the CPU's memory; leave --fsdp_offload_params out"
        )
    low = torch.bfloat16 if config.mixed_precision == "bf16" else None
    # Gradients are summed in float32, as they are under DDP.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    return plugin


def _deepspeed(config: TrainConfig) -> DeepSpeedPlugin:
    """What the launcher asks for, as far as it can be given. What both say, the run's config decides."""
    from accelerate import DeepSpeedPlugin

    plugin = DeepSpeedPlugin()
    if plugin.zero_stage not in (1, 2):
        raise RequestError(
            f"the launcher asks for ZeRO stage {plugin.zero_stage}, and this trainer runs under stages 1 and 2: launch "
            f"with --zero_stage 2; whole weights in shares are FSDP's (--use_fsdp --fsdp_version 2)"
        )
    if {plugin.offload_optimizer_device, plugin.offload_param_device} != {"none"}:
        raise RequestError(
            "the launcher asks DeepSpeed to keep the optimizer or weights outside of the GPU; leave its offloading out"
        )
    for name in ("optimizer", "scheduler"):
        if name in plugin.deepspeed_config:
            raise RequestError(f"DeepSpeed's config names an {name}; leave it out: that of the run is taken")
    own = {name: value for name, value in plugin.deepspeed_config.items() if name not in ("bf16", "fp16")}
    plugin.deepspeed_config.clear()
    plugin.deepspeed_config.update(
        {
            **own,
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": config.batch_size,
            "gradient_accumulation_steps": config.gradient_accumulation,
            "gradient_clipping": config.max_grad_norm,
        }
    )
    return plugin
