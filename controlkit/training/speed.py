"""How a step is computed, for speed and memory: arithmetic, layout of weights, recomputation, compilation.

None of it changes what is learned beyond rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from controlkit.training.config import TrainConfig


def precision(config: TrainConfig) -> torch.dtype:
    """What is locked computes in it, and what learns where autocast sees to it."""
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Under which float32 weights compute in that precision."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def choose_arithmetic(config: TrainConfig) -> None:
    """Whether float32 products may be rounded to TensorFloat-32, of whole processes (NVIDIA GPUs since Ampere)."""
    torch.backends.cuda.matmul.allow_tf32 = config.tf32
    torch.backends.cudnn.allow_tf32 = config.tf32


def lay_out(config: TrainConfig, *networks: Any) -> None:
    """Set up networks before anything is copied from them: ControlNet and base alike, since the gradient of what learns
    passes through the base's decoder, whose activations weigh as much."""
    for network in networks:
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
            network.register_state_dict_post_hook(_in_rows)
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()


def compiled(config: TrainConfig, network: Any) -> Any:
    """The network as it is called in training. What samples are painted with stays uncompiled: other sizes of batches
    would be compiled anew."""
    return torch.compile(network) if config.compile else network


def _in_rows(module: Any, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
    """Files hold weights in the usual order, which is all that safetensors writes."""
    for key in state:
        state[key] = state[key].contiguous()
