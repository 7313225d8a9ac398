"""Stops a run whose loss is no number or has exploded, and tells which checkpoints were made before that."""

from __future__ import annotations

import math
from dataclasses import dataclass


class RunError(RuntimeError):
    """The run cannot go on; the message says what to change. The last good checkpoint stays."""


_KEPT = 0.95  # of the average at each step: it follows the last twenty
_SETTLED = 50  # steps before the lowest average is trusted
_RISEN = 4.0  # times the lowest average: checkpoints made from here on are kept, but not gone on from
_EXPLODED = 12.0  # times the lowest average
_IN_A_ROW = 5  # steps that must all have risen, since a single spike often mends itself


@dataclass
class Guard:
    """Follows the loss. Its fields are kept in checkpoints, so that a resumed run stops where an unbroken one does."""

    average: float | None = None
    lowest: float | None = None
    seen: int = 0
    risen: int = 0  # steps in a row

    def see(self, step: int, loss: float, grad_norm: float | None) -> None:
        """The loss of a step, averaged over the processes; a gradient norm of None is one that was not used."""
        if not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at step {step}; the last checkpoint is sound: lower lr, or use "
                f"mixed_precision=bf16 instead of fp16, and go on with --resume"
            )
        if grad_norm is not None and not math.isfinite(grad_norm):
            raise RunError(
                f"the gradients are {grad_norm} at step {step}, and the weights are lost; the last checkpoint is "
                f"sound: lower lr, or use mixed_precision=bf16 instead of fp16, and go on with --resume"
            )
        self.seen += 1
        self.average = loss if self.average is None else _KEPT * self.average + (1 - _KEPT) * loss
        if self.seen < _SETTLED:
            return
        self.lowest = self.average if self.lowest is None else min(self.lowest, self.average)
        self.risen = self.risen + 1 if loss > _RISEN * self.lowest else 0
        if self.average > _EXPLODED * self.lowest and self.risen >= _IN_A_ROW:
            raise RunError(
                f"the loss has exploded: about {self.average:.3g} at step {step}, and {self.lowest:.3g} at its best; "
                f"the last checkpoint from before the rise is kept: lower lr, and go on with --resume"
            )

    @property
    def calm(self) -> bool:
        """Whether what is learned now may be gone on from."""
        return self.average is None or self.lowest is None or self.average <= _RISEN * self.lowest
