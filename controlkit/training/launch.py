"""The accelerator of a run, and whether it is the one that was asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from controlkit.errors import RequestError
from controlkit.training.sharding import BLOCKS

if TYPE_CHECKING:
    from accelerate import Accelerator, FullyShardedDataParallelPlugin

_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"


def make_accelerator(mixed_precision: str, gradient_accumulation: int = 1, *, may_share: bool = False) -> Accelerator:
    """accelerate's, of one process or of several: under DDP, or where the launcher asks for it and the run may share
    its weights out, under FSDP."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise _another("DeepSpeed", "DDP or FSDP" if may_share else "DDP")
    plugin = None
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        if not may_share:
            raise _another("FSDP", "DDP")
        plugin = _fsdp(mixed_precision)
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation,
        # Gradients live in the buffers that are sent, rather than a second time beside them.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        fsdp_plugin=plugin,
    )
    if plugin and not accelerator.is_fsdp2:
        kind = accelerator.distributed_type.value.lower()
        raise RequestError(
            f"the launcher asks for FSDP, and accelerate gives it to several GPUs alone; here it made {kind!r} of it: "
            f"launch without --use_fsdp"
        )
    return accelerator


def _another(asked: str, here: str) -> RequestError:
    return RequestError(
        f"the launcher asks for {asked}, and this trainer runs under {here}: launch with accelerate launch "
        f"--multi_gpu --num_processes N …, and without {asked} in accelerate's own config"
    )


def _fsdp(mixed_precision: str) -> FullyShardedDataParallelPlugin:
    """What the launcher asks for, as far as it can be given."""
    import torch
    from accelerate import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    os.environ[_EFFICIENT] = "false"  # on all processes but one transformers would leave the text encoders empty
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
    low = torch.bfloat16 if mixed_precision == "bf16" else None
    # Gradients are summed in float32, as they are under DDP.
    plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32)
    return plugin
