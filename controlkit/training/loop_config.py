"""What every training from scratch is told, whatever learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    output: str = "runs/base"
    steps: int = 2000
    max_minutes: float | None = None  # stop behind a checkpoint after so long; --resume goes on
    batch_size: int = 64
    lr: float = 1e-3
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"  # behind the warm-up; the others end at 0
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema: float = 0.999  # of the weights that are sampled from; 0: none
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2

    def problems(self) -> Iterator[str]:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if (value := getattr(self, name)) < 1:
                yield f"{name}={value}: expected at least 1"
        for name in ("lr", "max_grad_norm"):
            if not (value := getattr(self, name)) > 0:
                yield f"{name}={value:g}: expected more than 0"
        if not 0 <= self.ema < 1:
            yield f"ema={self.ema:g}: expected 0 (none) to below 1"
