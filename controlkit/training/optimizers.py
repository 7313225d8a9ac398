"""Optimizers by name, each from a library that keeps it well; the learning rate of a step."""

from __future__ import annotations

import math
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from controlkit.training.config import TrainConfig
    from controlkit.training.loop_config import LoopConfig

# name -> (library, class)
OPTIMIZERS = {
    "adamw": ("torch.optim", "AdamW"),
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit"),
    "adafactor": ("torch.optim", "Adafactor"),
    "lion": ("timm.optim", "Lion"),
}


def missing_library(name: str) -> str | None:
    """What must be installed for this optimizer, if anything must."""
    package = OPTIMIZERS[name][0].partition(".")[0]
    return None if find_spec(package) else package


def make_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that the config names, over what learns."""
    module, class_name = OPTIMIZERS[config.optimizer]
    # One pass over the memory instead of a dozen: on a CPU too it takes a fraction of the time.
    options = {"fused": True} if config.optimizer == "adamw" else {}
    kind = getattr(import_module(module), class_name)
    optimizer: torch.optim.Optimizer = kind(parameters, lr=config.lr, weight_decay=config.weight_decay, **options)
    return optimizer


def learning_rate(config: TrainConfig | LoopConfig, step: int) -> float:
    """Of the step behind `step`: up from 0 in the warm-up, then constant, or down to 0 in a line or half a cosine."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    share = 1 - done if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * max(0.0, share)
