"""A request becomes pictures: a plan is made, models are loaded, then diffusers' pipeline of the task paints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.errors import RequestError
from controlkit.generation.execution import Execution
from controlkit.generation.limits import refuse_what_cannot_be
from controlkit.generation.pipelines import load_parts
from controlkit.generation.plan import make_plan
from controlkit.generation.record import made_maps, record
from controlkit.generation.tasks import pipeline_and_arguments, seams
from controlkit.models.formats.embeddings import add_embeddings
from controlkit.models.formats.lora import apply_loras

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from numpy.typing import NDArray

    from controlkit.generation.plan import Plan
    from controlkit.generation.request import Request


@dataclass(frozen=True)
class Picture:
    """A picture and everything that decided it; `made_maps` are the PNGs of maps that --annotate made, `previews` those
    of what the network expected on the way."""

    image: NDArray[np.uint8]
    seed: int
    settings: dict[str, Any]
    made_maps: dict[str, bytes]
    previews: dict[str, bytes]


@dataclass(frozen=True)
class Models:
    """The loaded networks of a plan, LoRAs and embeddings added."""

    parts: dict[str, Any]
    nets: list[Any]


@refuse_what_cannot_be
def generate(
    request: Request,
    *,
    device: torch.device,
    dtype: torch.dtype,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Picture]:
    """The pictures of a request, each as soon as it is painted. `progress` counts steps over all of them."""
    execution.check(device, request.walked_steps)
    plan = make_plan(request, say)
    execution.find_preview_vae(plan.base)  # refused now if it does not fit
    models = load_models(plan, device=execution.home(device), dtype=dtype)
    yield from paint(plan, models, device=device, execution=execution, say=say, progress=progress)


def load_models(plan: Plan, *, device: torch.device | str, dtype: torch.dtype) -> Models:
    """Weights enter the memory here and nowhere else."""
    nets = [net.load(torch_dtype=dtype).to(device).eval() for net in plan.controlnets]
    parts = load_parts(plan.base, dtype=dtype, device=device, vae=plan.vae)
    apply_loras(parts, plan.loras)
    add_embeddings(parts, plan.embeddings)
    return Models(parts, nets)


def paint(
    plan: Plan,
    models: Models,
    *,
    device: torch.device | None = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Picture]:
    """The pictures of a plan, one after the other. The models are where `execution` has them while they wait; they
    compute on `device` (None: where they are)."""
    import torch

    request = plan.request
    device = device or models.parts["unet"].device
    tiled = execution.tiles(plan.size, say)
    pipeline, arguments = pipeline_and_arguments(plan, models.parts, models.nets)
    execution.apply(pipeline, device, tiled=tiled, say=say)
    previews = execution.watch(pipeline, request.walked_steps, execution.find_preview_vae(plan.base), device)
    settings = {
        **record(plan, device=device, dtype=models.parts["unet"].dtype),
        **{"vae_tiling": tiled, "compile": execution.compile},
    }
    total = request.num * request.walked_steps
    progress(0, total)
    for number in range(request.num):
        seed = request.seed + number
        before = number * request.walked_steps

        def after_step(_: Any, step: int, __: Any, values: dict[str, Any], before: int = before) -> Any:
            # Samplers of second order call more than once a step.
            progress(min(before + step + 1, before + request.walked_steps), total)
            return values

        with seams(plan, pipeline, models.nets):
            painted = pipeline(
                **arguments,
                generator=torch.Generator().manual_seed(seed),
                callback_on_step_end=after_step,
                output_type="np",
            ).images[0]
        if not np.isfinite(painted).all():
            raise RequestError(f"the picture is not a number in {settings['dtype']}; use --dtype float32 or bfloat16")
        image = (painted * 255).round().astype(np.uint8)
        seen = previews.take()[0] if previews else {}
        yield Picture(image, seed, {**settings, "seed": seed}, made_maps(plan), seen)
