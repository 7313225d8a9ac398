"""Guidance in a part of the steps alone; outside it the half without the prompt is not computed.

A pipeline guides by u + w (t - u), from the unconditional u and the text's t. Outside the interval the UNet is asked
for the half with the prompt alone and t stands in the place of both: the difference is 0, and t is what the pipeline
goes on with. The ControlNets are asked for that half as well.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from controlkit.generation.pipelines import nets_of, unet_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

WHOLE = (0.0, 1.0)


def lies_within(step: int, steps: int, interval: tuple[float, float]) -> bool:
    """Whether a step, counted from 0, lies in that share of the steps: by the rule of the pipelines for the windows of
    controls."""
    return not (step / steps < interval[0] or (step + 1) / steps > interval[1])


@contextmanager
def guided_within(pipeline: Any, interval: tuple[float, float]) -> Iterator[None]:
    """Guidance counts in that share of the steps, as long as the block lasts."""
    walk = _Walk(pipeline, interval)
    scheduler, unet = pipeline.scheduler, unet_of(pipeline)
    own_step = vars(scheduler).get("step")
    step = scheduler.step

    @functools.wraps(step)  # pipelines ask its signature what it takes
    def counted(*args: Any, **kwargs: Any) -> Any:
        stepped = step(*args, **kwargs)
        walk.go_on()
        return stepped

    nets = [net for net in nets_of(pipeline) if hasattr(net, "is_guided")]
    asked = [net.is_guided for net in nets]
    scheduler.step = counted
    hooks = [
        unet.register_forward_pre_hook(walk.halve, with_kwargs=True),
        unet.register_forward_hook(walk.double),
    ]
    for net, is_guided in zip(nets, asked, strict=True):
        net.is_guided = lambda is_guided=is_guided: not walk.guided or (is_guided is not None and is_guided())
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for net, is_guided in zip(nets, asked, strict=True):
            net.is_guided = is_guided
        if own_step is None:
            del scheduler.step
        else:
            scheduler.step = own_step


class _Walk:
    """Where a pipeline is on its way."""

    def __init__(self, pipeline: Any, interval: tuple[float, float]) -> None:
        self.pipeline, self.interval = pipeline, interval
        self.steps_done = 0
        # How many steps there will be is not known yet; but an interval that holds any step and begins at 0 holds this.
        self.guided = interval[0] == 0

    def go_on(self) -> None:
        self.steps_done += 1
        self.guided = lies_within(self.steps_done, self.pipeline.num_timesteps, self.interval)

    def halve(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The inputs of the UNet, of both halves the second."""
        if self.guided:
            return None
        sample, *others = args
        batch = len(sample)
        return (_second(sample, batch), *others), {name: _second(value, batch) for name, value in kwargs.items()}

    def double(self, unet: nn.Module, args: tuple[Any, ...], output: tuple[Tensor]) -> tuple[Tensor] | None:
        if self.guided:
            return None
        import torch

        return (torch.cat([output[0], output[0]]),)


def _second(value: Any, batch: int) -> Any:
    """Of a batch its second half, in lists and dicts too; all else as it is."""
    if isinstance(value, dict):
        return {name: _second(each, batch) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_second(each, batch) for each in value)
    if getattr(value, "ndim", 0) and len(value) == batch:
        return value[batch // 2 :]
    return value
