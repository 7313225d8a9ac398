"""Where networks run, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlkit.errors import RequestError

if TYPE_CHECKING:
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
