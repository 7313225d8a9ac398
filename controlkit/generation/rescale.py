"""CFG rescale (arXiv:2305.08891) for the pipelines of diffusers that lack it: img2img of SD 1.x and 2.x, and all under
ControlNets.

A pipeline guides by u + w (t - u), from the unconditional u and the text's t. Where the UNet answers with the rescaled
guidance in the place of both, the difference is 0 and that is what the pipeline goes on with.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from controlkit.diffusion.guidance import guide

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn


def has_own_rescale(pipeline: Any) -> bool:
    """Whether the pipeline takes `guidance_rescale` itself."""
    return "guidance_rescale" in inspect.signature(type(pipeline).__call__).parameters


@contextmanager
def rescaled_guidance(unet: nn.Module, *, cfg: float, rescale: float) -> Iterator[None]:
    """The pipeline's guidance comes out rescaled, as long as the block lasts."""

    def answer(unet: nn.Module, args: tuple[Any, ...], output: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        import torch

        without, text = output[0].chunk(2)
        guided = guide(without, text, cfg, rescale=rescale)
        return (torch.cat([guided, guided]),)

    hook = unet.register_forward_hook(answer)
    try:
        yield
    finally:
        hook.remove()
