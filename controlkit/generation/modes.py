"""How much a control counts against the prompt: three modes, put between diffusers' pipelines and their ControlNets.

diffusers has one switch for all controls, `guess_mode`, which does two things: each layer's residual is weighted
(0.1 for the first to 1 for the middle block, in equal ratios: 0.825**(12 - i) for SD's thirteen), and the unconditional
half of guidance gets no control. The modes that people know from webuis take these apart:

    balanced    neither
    prompt      the weights alone            (webui: "My prompt is more important")
    control     both, which is guess_mode    (webui: "ControlNet is more important")

The net does the weighting itself when it is called with `guess_mode=True`, so a hook that sets this is all that
"prompt" needs, for each net apart.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

BALANCED, PROMPT, CONTROL = MODES = ("balanced", "prompt", "control")


def is_guess_mode(modes: list[str]) -> bool:
    """Whether diffusers' own switch says it all, which also spares the net the unconditional half."""
    return bool(modes) and all(mode == CONTROL for mode in modes)


@contextmanager
def control_modes(nets: list[nn.Module], modes: list[str], *, guided: bool) -> Iterator[None]:
    """The nets, each in its mode, as long as the block lasts. `guided`: the first half of what they see is the
    unconditional one."""
    if is_guess_mode(modes):
        yield
        return
    with ExitStack() as hooks:
        for net, mode in zip(nets, modes, strict=True):
            if mode != BALANCED:
                hooks.callback(net.register_forward_pre_hook(_weigh_layers, with_kwargs=True).remove)
            if mode == CONTROL and guided:
                hooks.callback(net.register_forward_hook(_silence_first_half).remove)
        yield


def _weigh_layers(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "guess_mode": True}


def _silence_first_half(net: nn.Module, args: tuple[Any, ...], output: tuple[Any, Any]) -> tuple[Any, Any]:
    down, middle = output

    def silenced(residual: Any) -> Any:
        copy = residual.clone()
        copy[: len(copy) // 2] = 0
        return copy

    return [silenced(each) for each in down], silenced(middle)
