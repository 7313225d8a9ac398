"""The accelerator of a run, and whether it is the one that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from accelerate import Accelerator

_SHARDED = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}


def make_accelerator(mixed_precision: str, gradient_accumulation: int = 1) -> Accelerator:
    """accelerate's, of one process or of several under DDP."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

    for flag, name in _SHARDED.items():
        # On a CPU accelerate would take DDP in its place and say nothing.
        if parse_flag_from_env(flag):
            raise RequestError(
                f"the launcher asks for {name}, and this trainer runs under DDP: launch with accelerate launch "
                f"--multi_gpu --num_processes N …, and without {name} in accelerate's own config"
            )
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation,
        # Gradients live in the buffers that are sent, rather than a second time beside them.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
