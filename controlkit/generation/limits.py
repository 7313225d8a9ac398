"""What a machine cannot do, said in one line with what to change, instead of an allocator's or compiler's page."""

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


def refuse_what_cannot_be(paint: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """`generate` for which running out of memory, and nothing to compile with, are RequestErrors."""

    @functools.wraps(paint)
    def painting(request: Any, *, device: torch.device, dtype: torch.dtype, **how: Any) -> Iterator[Any]:
        try:
            yield from paint(request, device=device, dtype=dtype, **how)
        except (RuntimeError, MemoryError) as reason:
            execution = how.get("execution")
            if is_out_of_memory(reason):
                requests = request if isinstance(request, list) else [request]
                upscaled = any(each.upscale for each in requests)
                raise RequestError(what_to_lower(device, dtype, execution, upscaled=upscaled)) from reason
            if execution and execution.compile and is_of_the_compiler(reason):
                why = str(getattr(reason, "inner_exception", reason)).strip().split("\n")[0]
                raise RequestError(f"--compile does not work here ({why}); leave it out") from reason
            raise

    return painting


def is_out_of_memory(reason: Exception) -> bool:
    import torch

    return isinstance(reason, MemoryError | torch.OutOfMemoryError) or any(word in str(reason) for word in _WORDS)


def is_of_the_compiler(reason: Exception) -> bool:
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(reason, TorchDynamoException)


def what_to_lower(
    device: torch.device, dtype: torch.dtype, execution: Execution | None, *, upscaled: bool = False
) -> str:
    """The line: it names only what is not used yet. What is `upscaled` has no size of its own."""
    advice = ["a smaller SCALE of --upscale" if upscaled else "a smaller --size"]
    precision = str(dtype).removeprefix("torch.")
    if precision == "float32":
        advice.append(f"--dtype {'bfloat16' if device.type == 'cpu' else 'float16'}")
    if not (execution and execution.vae_tiling):
        advice.append("--vae-tiling")
    offload = execution.offload if execution else None
    if device.type != "cpu" and offload != "sequential":
        advice.append("--offload sequential" if offload else "--offload model")
    return f"out of memory on {device} in {precision}; try {', '.join(advice)}"
