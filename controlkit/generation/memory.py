"""Out of memory: one line that says what to lower, instead of an allocator's page."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from controlkit.generation.execution import Execution

# Of PyTorch's CPU allocator, and of cuBLAS and cuDNN, which tell nothing more.
_WORDS = ("can't allocate memory", "not enough memory", "ALLOC_FAILED")


def refuse_what_does_not_fit(paint: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`generate` whose running out of memory is a RequestError."""

    @functools.wraps(paint)
    def painting(request: Any, *, device: torch.device, dtype: torch.dtype, **how: Any) -> Iterator[Any]:
        try:
            yield from paint(request, device=device, dtype=dtype, **how)
        except (RuntimeError, MemoryError) as reason:
            if not is_out_of_memory(reason):
                raise
            raise RequestError(what_to_lower(device, dtype, how.get("execution"))) from reason

    return painting


def is_out_of_memory(reason: Exception) -> bool:
    import torch

    return isinstance(reason, MemoryError | torch.OutOfMemoryError) or any(word in str(reason) for word in _WORDS)


def what_to_lower(device: torch.device, dtype: torch.dtype, execution: Execution | None) -> str:
    """The line: it names only what is not used yet."""
    advice = ["a smaller --size"]
    precision = str(dtype).removeprefix("torch.")
    if precision == "float32":
        advice.append(f"--dtype {'bfloat16' if device.type == 'cpu' else 'float16'}")
    if not (execution and execution.vae_tiling):
        advice.append("--vae-tiling")
    offload = execution.offload if execution else None
    if device.type != "cpu" and offload != "sequential":
        advice.append("--offload sequential" if offload else "--offload model")
    return f"out of memory on {device} in {precision}; try {', '.join(advice)}"
