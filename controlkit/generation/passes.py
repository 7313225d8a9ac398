"""A plan set up once to be walked, batch after batch: diffusers' pipeline with all that it is called with."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from controlkit.errors import RequestError
from controlkit.generation.controls import fit_picture
from controlkit.generation.execution import set_tiling
from controlkit.generation.inpainting import repainting
from controlkit.generation.pace import seconds_of_a_step
from controlkit.generation.tasks import arguments_of, pipeline_of, seams, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from controlkit.generation.batches import Batch
    from controlkit.generation.execution import Execution
    from controlkit.generation.generate import Models
    from controlkit.generation.plan import Plan

    Images = list[NDArray[np.uint8]]


class Pass:
    """The first or only pass of a request, or its second."""

    def __init__(
        self, plan: Plan, models: Models, *, device: torch.device, execution: Execution, say: Callable[[str], None]
    ) -> None:
        self.plan, self.nets = plan, models.nets
        self.steps = plan.request.walked_steps
        self.parts = self.steps * max(1, len(plan.tiles))
        self.tiled = execution.tiles(plan.size, say)
        self.pipeline = pipeline_of(plan, models.parts, models.nets)
        execution.apply(self.pipeline, device, say=say)
        self.arguments = arguments_of(plan, self.pipeline)
        self.previews = execution.watch(self.pipeline, self.steps, execution.find_preview_vae(plan.base), device)

    @property
    def calls(self) -> int:
        """Of the networks for a batch: samplers of second order call more than once a step."""
        return self.parts * int(self.pipeline.scheduler.order)

    def rehearsed(self, device: torch.device, together: int) -> float:
        """Seconds of a call of the networks for so many pictures."""
        with seams(self.plan, self.pipeline, self.nets):
            return seconds_of_a_step(self.pipeline, {**self.arguments, "num_images_per_prompt": together}, device)

    def walk(self, batch: Batch, before: Images, after_part: Callable[[int], None]) -> Images:
        """A picture for each job, from those of the pass before if there was one. `after_part` hears how many steps
        are done, or tiles of steps."""
        pipeline, calls = self.pipeline, count(1)

        def call_ends() -> None:
            after_part(min(next(calls), self.parts))

        def step_ends(_: Any, __: int, ___: Any, values: Any) -> Any:
            if not self.plan.tiles:
                call_ends()
            return values

        if self.plan.tiles:
            pipeline.unet.after_tile = call_ends

        generators = [torch.Generator().manual_seed(job.seed) for job in batch.jobs]
        arguments = {**self.arguments, "num_images_per_prompt": len(generators)}
        if batch.mixed:
            plans = {id(job.plan): job.plan for job in batch.jobs}  # a plan may have several, and is read once
            given = {key: arguments_of(plan, pipeline) for key, plan in plans.items()}
            arguments = side_by_side([given[id(job.plan)] for job in batch.jobs])
        start = {"image": [self._enlarged(image) for image in before]} if before else {}
        set_tiling(pipeline.vae, self.tiled)
        with seams(self.plan, pipeline, self.nets), self._jumps(batch, generators) as latents:
            painted = pipeline(
                **arguments,
                **start,
                **latents,
                generator=generators[0] if len(generators) == 1 else generators,
                callback_on_step_end=step_ends,
                output_type="np",
            ).images
        if not np.isfinite(painted).all():
            dtype = str(pipeline.unet.dtype).removeprefix("torch.")
            raise RequestError(f"the picture is not a number in {dtype}; use --dtype float32 or bfloat16")
        return list((painted * 255).round().astype(np.uint8))

    def _enlarged(self, image: NDArray[np.uint8]) -> Any:
        """As a file of it would come to this size."""
        from PIL import Image

        return Image.fromarray(fit_picture(image, "the first pass", self.plan.size, lambda text: None))

    def _jumps(self, batch: Batch, generators: list[torch.Generator]) -> AbstractContextManager[dict[str, Any]]:
        """Where a mask is painted by RePaint, its walk; else the sampler's own."""
        request, plans = self.plan.request, [job.plan for job in batch.jobs] if batch.mixed else [self.plan]
        canvases = [plan.canvas for plan in plans if plan.canvas]
        if not canvases or request.mask is None or not request.repaints:
            return nullcontext({})
        return repainting(
            self.pipeline,
            canvases,
            request.mask,
            steps=request.steps,
            strength=request.noise_share,
            generators=generators,
        )
