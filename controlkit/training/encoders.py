"""Where VAE and text encoders are while steps are made from a cache: out of the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ENCODERS = ("vae", "text_encoder", "text_encoder_2")


def let_encoders_rest(pipeline: Any, device: torch.device) -> None:
    """Send them to the CPU. Whoever calls one finds it on the device, where it stays until this is called again."""
    if device.type == "cpu":
        return
    from accelerate import cpu_offload_with_hook

    # The hooks with which diffusers offloads whole models: they also act on `vae.encode` and `vae.decode`, and tell the
    # pipeline on which device it computes.
    for name in ENCODERS:
        if (network := getattr(pipeline, name, None)) is not None:
            cpu_offload_with_hook(network, device)
