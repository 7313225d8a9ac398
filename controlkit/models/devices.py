"""Where networks run, and in which precision."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def choose_device(name: str | None) -> torch.device:
    """The device asked for, else the best there is; refused if it is not there."""
    import torch

    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as reason:
        text = str(reason).split("\n")[0]
        raise RequestError(
            f"--device {name!r} cannot be used here ({text}); known here: {', '.join(device_names())}"
        ) from None
    return device


def device_names() -> list[str]:
    """The devices of this machine, as `--device` takes them."""
    import torch

    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def choose_precision(name: str | None, device: torch.device) -> torch.dtype:
    """The precision of that name; unless it is said, half of it on a GPU of CUDA, which is made for that."""
    import torch

    precision: torch.dtype = getattr(torch, name or ("float16" if device.type == "cuda" else "float32"))
    return precision


@contextmanager
def able(vae: Any) -> Iterator[Any]:
    """The VAE in a precision that it can compute in as long as the block lasts: SDXL's first one, whose config says so,
    overflows in float16."""
    import torch

    lifted = vae.dtype == torch.float16 and vae.config.force_upcast
    if lifted:
        vae.to(torch.float32)
    try:
        yield vae
    finally:
        if lifted:
            vae.to(torch.float16)
