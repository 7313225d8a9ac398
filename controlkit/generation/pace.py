"""How long pictures will take: for RePaint, which takes long, said before it begins, else behind the second step."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


def seconds_of_a_step(pipeline: Any, arguments: dict[str, Any], device: torch.device) -> float:
    """Of two steps that lead nowhere the second, since the first is slower than all the others. Every control counts
    in both."""
    import torch

    ends: list[float] = []

    def step_ends(_: Any, __: int, ___: Any, values: Any) -> Any:
        ends.append(_now(device))
        return values

    whole = {"control_guidance_start": 0.0, "control_guidance_end": 1.0}
    pipeline(
        **arguments | {name: value for name, value in whole.items() if name in arguments} | {"num_inference_steps": 2},
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=step_ends,
        output_type="latent",
    )
    return ends[1] - ends[0]


def say_seconds(seconds: float, say: Callable[[str], None]) -> None:
    say(f"about {seconds:.1f} seconds in all")


def _now(device: torch.device) -> float:
    """Behind all that was asked of the device."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.monotonic()


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
        now = _now(self.device)
        if self.done == 2:
            say_seconds((now - self.begun) * self.steps, self.say)
        self.begun = now
