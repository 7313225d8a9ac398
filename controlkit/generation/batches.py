"""Which pictures are painted together: those of one request, or of several that ask alike.

Requests ask alike if they differ in prompts, seeds, and the files of maps, pictures and masks alone. Who is painted
with whom follows from the requests and not from what is there already, since kernels round otherwise in another batch:
a picture that is painted again has the same company.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from controlkit.generation.prompts import chunks_read
from controlkit.generation.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from controlkit.generation.plan import Plan

_OF_EACH = ("prompt", "negative", "plain_prompt", "seed", "num", "controls", "image", "mask")
"""Fields of a request in which those painted together may differ."""


@dataclass(frozen=True)
class Job:
    """A picture that is to be painted."""

    plan: Plan
    seed: int


@dataclass(frozen=True)
class Batch:
    """Pictures that are painted together. Those of one plan share its prompt and maps; of `mixed` ones each brings its
    own, and both are computed otherwise, by a rounding."""

    jobs: tuple[Job, ...]
    mixed: bool = False

    def record(self, place: int) -> dict[str, Any]:
        """What the settings of a picture say of it alone."""
        return {
            "seed": self.jobs[place].seed,
            "batch": {"size": len(self.jobs), "place": place, "mixed": self.mixed},
        }

    @staticmethod
    def again(plan: Plan, recorded: dict[str, Any]) -> Batch:
        """That picture in all places of its batch: what else was in it does not count, how large it was does."""
        return Batch((Job(plan, recorded["seed"]),) * recorded["batch"]["size"], recorded["batch"]["mixed"])


def batches_of(plan: Plan) -> list[Batch]:
    """Those of one request."""
    size, jobs = plan.request.batch_size, [Job(plan, seed) for seed in plan.request.seeds]
    return [Batch(tuple(jobs[start : start + size])) for start in range(0, len(jobs), size)]


def batches_of_all(plans: Iterable[Plan]) -> Iterator[Batch]:
    """Those of many, in their order; a batch ends where the next request asks otherwise."""
    waiting: list[Job] = []
    asked: Any = None
    for plan in plans:
        asks = _asks(plan)
        if waiting and asks != asked:
            yield _together(waiting)
            waiting = []
        if asks is None:
            yield from batches_of(plan)
            continue
        asked = asks
        for seed in plan.request.seeds:
            waiting.append(Job(plan, seed))
            if len(waiting) == plan.request.batch_size:
                yield _together(waiting)
                waiting = []
    if waiting:
        yield _together(waiting)


def runs_of(batches: Iterable[Batch]) -> Iterator[tuple[Plan, list[Batch]]]:
    """Batches with the plan that sets up what paints them: all of one request together, mixed ones each alone."""
    run: list[Batch] = []
    for batch in batches:
        if run and (batch.mixed or run[0].mixed or batch.jobs[0].plan is not run[0].jobs[0].plan):
            yield run[0].jobs[0].plan, run
            run = []
        run.append(batch)
    if run:
        yield run[0].jobs[0].plan, run


def _together(jobs: Sequence[Job]) -> Batch:
    return Batch(tuple(jobs), mixed=any(job.plan is not jobs[0].plan for job in jobs))


def _asks(plan: Plan) -> Any:
    """Equal for plans whose pictures can share a batch; None if they can only with others of the same plan."""
    request = plan.request
    if request.batch_size == 1 or request.hires or request.upscale or any(plan.regions):
        return None
    controls = [
        (control_map.type, control.weight, control.start, control.end, control.mode, control.layers)
        for control_map, control in zip(plan.maps, request.controls, strict=True)
    ]
    shared = [getattr(request, field.name) for field in fields(Request) if field.name not in _OF_EACH]
    mask = replace(request.mask, file=None) if request.mask else None
    # Without a negative prompt SDXL is told zeros, with one its text.
    told = (mask, bool(request.image), bool(request.negative), chunks_read(plan))
    return shared, controls, plan.readers, plan.size, told
