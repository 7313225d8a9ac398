"""How long a picture will take, said as soon as it can be known."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class Pace:
    """Times the second step, or tile of one, since the first is slower than all the others, and says what all of them
    will take."""

    def __init__(self, steps: int, device: torch.device, say: Callable[[str], None]) -> None:
        self.steps, self.device, self.say = steps, device, say
        self.done, self.begun = 0, 0.0

    def step(self) -> None:
        """Behind each step."""
        self.done += 1
        if self.done > 2 or self.steps < 3:
            return
        if self.device.type == "cuda":  # which else runs behind
            import torch

            torch.cuda.synchronize(self.device)
        if self.done == 2:
            self.say(f"about {(time.monotonic() - self.begun) * self.steps:.1f} seconds in all")
        self.begun = time.monotonic()
