"""A request becomes pictures: a plan is made, models are loaded, then diffusers' pipeline of the task paints."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.errors import RequestError
from controlkit.generation.execution import Execution
from controlkit.generation.inpainting import repainting
from controlkit.generation.limits import refuse_what_cannot_be
from controlkit.generation.pace import Pace
from controlkit.generation.pipelines import load_parts
from controlkit.generation.plan import make_plan
from controlkit.generation.prompts import prompt_arguments
from controlkit.generation.record import made_maps, record
from controlkit.generation.tasks import pipeline_and_arguments, seams
from controlkit.models.formats.embeddings import add_embeddings
from controlkit.models.formats.hypernetworks import add_hypernetworks
from controlkit.models.formats.lora import apply_loras

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

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
    """The loaded networks of a plan, LoRAs, hypernetworks and embeddings added."""

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
    nets = [net.load(torch_dtype=dtype).to(device).eval() for net in plan.nets]
    parts = load_parts(plan.base, dtype=dtype, device=device, vae=plan.vae)
    apply_loras(parts, plan.loras)
    add_hypernetworks(parts["unet"], plan.hypernetworks)
    add_embeddings(parts, plan.embeddings)
    return Models(parts, nets)


def paint(
    plan: Plan,
    models: Models,
    *,
    device: torch.device | None = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    seeds: list[int] | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Picture]:
    """The pictures of a plan, batch after batch; of those with these `seeds` if they are given, each still painted with
    all of its batch. The models are where `execution` has them while they wait; they compute on `device` (None: where
    they are)."""
    import torch

    request = plan.request
    device = device or models.parts["unet"].device
    tiled = execution.tiles(plan.size, say)
    pipeline, arguments = pipeline_and_arguments(plan, models.parts, models.nets)
    execution.apply(pipeline, device, tiled=tiled, say=say)
    arguments |= prompt_arguments(plan, pipeline)
    previews = execution.watch(pipeline, request.walked_steps, execution.find_preview_vae(plan.base), device)
    settings = record(plan, device=device, dtype=models.parts["unet"].dtype, execution=execution)
    wanted = request.seeds if seeds is None else seeds
    batches = [batch for batch in request.batches if set(batch) & set(wanted)]
    calls = request.walked_steps * pipeline.scheduler.order * len(batches)
    pace = Pace(calls, device, say) if plan.canvas else None
    done, total = 0, request.walked_steps * sum(map(len, batches))
    progress(done, total)
    for batch in batches:

        def after_step(_: Any, step: int, __: Any, values: Any, done: int = done, count: int = len(batch)) -> Any:
            if pace:
                pace.step()
            # Samplers of second order call more than once a step.
            progress(done + min(step + 1, request.walked_steps) * count, total)
            return values

        generators = [torch.Generator().manual_seed(seed) for seed in batch]
        with seams(plan, pipeline, models.nets), _walk(plan, pipeline, generators) as latents:
            painted = pipeline(
                **arguments,
                **latents,
                num_images_per_prompt=len(batch),
                generator=generators[0] if len(batch) == 1 else generators,
                callback_on_step_end=after_step,
                output_type="np",
            ).images
        done += request.walked_steps * len(batch)
        if not np.isfinite(painted).all():
            raise RequestError(f"the picture is not a number in {settings['dtype']}; use --dtype float32 or bfloat16")
        images = (painted * 255).round().astype(np.uint8)
        if plan.canvas:
            images = [plan.canvas.finish(image) for image in images]
        seen = previews.take() if previews else [{} for _ in batch]
        for seed, image, early in zip(batch, images, seen, strict=True):
            if seed in wanted:
                yield Picture(image, seed, {**settings, **request.of_picture(seed)}, made_maps(plan), early)


def _walk(plan: Plan, pipeline: Any, generators: list[torch.Generator]) -> AbstractContextManager[dict[str, Any]]:
    """Where a mask is painted by RePaint, its walk; else the sampler's own."""
    request = plan.request
    if plan.canvas is None or request.mask is None or not request.repaints:
        return nullcontext({})
    return repainting(
        pipeline,
        plan.canvas,
        request.mask,
        steps=request.steps,
        strength=request.noise_share,
        generators=generators,
    )
