"""A request becomes pictures: a plan is made, models are loaded, then diffusers' pipelines paint, in a pass or two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.generation.batches import batches_of
from controlkit.generation.execution import Execution
from controlkit.generation.limits import refuse_what_cannot_be
from controlkit.generation.pace import Pace, say_seconds
from controlkit.generation.passes import Pass
from controlkit.generation.pipelines import load_parts
from controlkit.generation.plan import make_plan
from controlkit.generation.record import Recorder, made_maps
from controlkit.models.formats.embeddings import add_embeddings
from controlkit.models.formats.hypernetworks import add_hypernetworks
from controlkit.models.formats.lora import apply_loras

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from controlkit.generation.batches import Batch
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
    """The pictures of a request, each as soon as it is painted. `progress` counts steps over all of them, or the
    tiles of steps."""
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
    batches: Sequence[Batch] | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Picture]:
    """The pictures of a plan, batch after batch, or those of these `batches`, whose plans ask alike. The models are
    where `execution` has them while they wait; they compute on `device` (None: where they are)."""
    device = device or models.parts["unet"].device
    passes = [Pass(each, models, device=device, execution=execution, say=say) for each in plan.passes]
    recorded = Recorder(device=device, dtype=models.parts["unet"].dtype, execution=execution)
    batches = batches_of(plan) if batches is None else batches
    calls = passes[0].calls * len(batches)
    if plan.request.repaints:
        say_seconds(calls * passes[0].rehearsed(device, len(batches[0].jobs)), say)
    pace = Pace(calls, device, say) if not plan.request.repaints and (plan.canvas or plan.tiles) else None
    done, total = 0, sum(each.parts for each in passes) * sum(len(batch.jobs) for batch in batches)
    progress(done, total)
    for batch in batches:
        images: list[NDArray[np.uint8]] = []
        early: list[dict[str, bytes]] = [{} for _ in batch.jobs]
        for each in passes:

            def after_part(parts: int, done: int = done, count: int = len(batch.jobs)) -> None:
                if pace:
                    pace.step()
                progress(done + parts * count, total)

            images = each.walk(batch, images, after_part)
            done += each.parts * len(batch.jobs)
            if each.previews:
                name = "hires-" if each.plan is plan.second else ""
                for seen, taken in zip(early, each.previews.take(), strict=True):
                    seen.update({f"{name}{step}": png for step, png in taken.items()})
        for job, image, seen, settings in zip(batch.jobs, images, early, recorded(batch), strict=True):
            image = job.plan.canvas.finish(image) if job.plan.canvas else image
            yield Picture(image, job.seed, settings, made_maps(job.plan), seen)
