"""A plan as a call of diffusers: which pipeline, under which names its arguments go, and what is hooked in beside."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from controlkit.generation.inpainting import keeping_strokes
from controlkit.generation.interval import WHOLE, guided_within
from controlkit.generation.joining import hint_of
from controlkit.generation.modes import BALANCED, control_modes, is_guess_mode
from controlkit.generation.pipelines import FROM_PICTURE, FROM_TEXT, INPAINTED, make_pipeline
from controlkit.generation.prompts import prompt_arguments
from controlkit.generation.rescale import has_own_rescale, rescaled_guidance
from controlkit.generation.residuals import weighed_residuals
from controlkit.generation.silent import asked_every, control_both_halves, control_conditional_half, silenced
from controlkit.generation.tiled import in_tiles
from controlkit.models.map_hint import to_control

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlkit.generation.inpainting import Canvas
    from controlkit.generation.plan import Plan

T = TypeVar("T")


def pipeline_of(plan: Plan, parts: dict[str, Any], nets: list[Any]) -> Any:
    """The pipeline of a plan's task, over these networks."""
    controlnets = [silenced(nets)] if nets else []
    if plan.tiles:
        parts, controlnets = in_tiles(plan.tiles, plan.base.vae_factor, parts, nets)
    return make_pipeline(_task(plan), plan.base, parts, controlnets, plan.scheduler)


def arguments_of(plan: Plan, pipeline: Any) -> dict[str, Any]:
    """Everything to call its pipeline with but seeds, callbacks and what the first pass painted."""
    task, masked = _task(plan), _masked(plan)
    arguments = _common(plan) | prompt_arguments(plan, pipeline)
    if plan.nets:
        arguments |= _of_controls(plan, "image" if task == FROM_TEXT else "control_image")
    if task == FROM_PICTURE:
        arguments["strength"] = plan.request.noise_share
    if plan.start:
        arguments["image"] = _pil(plan.start.pixels)
    if masked:
        arguments |= {"image": _pil(masked.shown), "mask_image": _pil(masked.mask)}
        arguments["strength"] = plan.request.noise_share
    if task != FROM_PICTURE or plan.nets:  # img2img alone paints at its picture's size
        arguments |= {"width": plan.size[0], "height": plan.size[1]}
    if plan.request.cfg_rescale and has_own_rescale(pipeline):
        arguments["guidance_rescale"] = plan.request.cfg_rescale
    return arguments


def side_by_side(each: list[dict[str, Any]]) -> dict[str, Any]:
    """The arguments of a call that paints a picture for each of these, which differ in prompts, maps and pictures."""
    return {name: _joined([arguments[name] for arguments in each]) for name in each[0]}


def _joined(values: list[Any]) -> Any:
    """Texts and pictures as a list, embeddings and maps one behind the other, those of several ControlNets each by
    themselves; and what all agree in as it is."""
    import torch
    from PIL.Image import Image

    first = values[0]
    if isinstance(first, str | Image):
        return values
    if isinstance(first, torch.Tensor):
        return torch.cat(values)
    if isinstance(first, list) and isinstance(first[0], torch.Tensor):
        return [torch.cat(of_net) for of_net in zip(*values, strict=True)]
    return first


@contextmanager
def seams(plan: Plan, pipeline: Any, nets: list[Any]) -> Iterator[None]:
    """What the plan asks for beyond the pipeline's arguments, hooked in as long as the block lasts."""
    request = plan.request
    with ExitStack() as hooks:
        if request.control_half:  # before what asks for a half of the steps
            control_conditional_half(pipeline)
            hooks.callback(control_both_halves, pipeline)
        if request.control_every > 1:
            hooks.enter_context(asked_every(pipeline, request.control_every))
        hooks.enter_context(control_modes(nets, _modes(plan), guided=plan.guided))
        regions = [region.pixels if region else None for region in _of_nets(plan, plan.regions)]
        layers = _of_nets(plan, plan.layers)
        hooks.enter_context(weighed_residuals(nets, layers, regions, factor=plan.base.vae_factor))
        if request.cfg_interval != WHOLE:  # before what reads the two halves
            hooks.enter_context(guided_within(pipeline, request.cfg_interval))
        if plan.canvas and not request.repaints:
            hooks.enter_context(keeping_strokes(pipeline))
        if request.cfg_rescale and not has_own_rescale(pipeline):
            hooks.enter_context(rescaled_guidance(pipeline.unet, cfg=request.cfg, rescale=request.cfg_rescale))
        yield


def _task(plan: Plan) -> str:
    if _masked(plan):
        return INPAINTED
    starts = plan.request.image is not None and plan.canvas is None  # from a file, or from the first pass
    return FROM_PICTURE if starts else FROM_TEXT


def _masked(plan: Plan) -> Canvas | None:
    """What the pipeline is told of a mask, unless RePaint sees to it."""
    return plan.canvas if not plan.request.repaints else None


def _common(plan: Plan) -> dict[str, Any]:
    request = plan.request
    return {
        "num_inference_steps": request.steps,
        "guidance_scale": request.cfg,
        "eta": request.eta,
    }


def _of_controls(plan: Plan, name: str) -> dict[str, Any]:
    """One ControlNet takes a value, several take a list, and so do those in tiles. `name` is what the pipeline calls
    its maps. The one that reads the picture with its hole comes last."""
    controls = _of_nets(plan, list(plan.request.controls))
    hint = [plan.canvas.hint[None]] if plan.canvas and plan.filler else []
    always = [1.0] * len(hint)

    def of_each(values: list[Any]) -> Any:
        return values[0] if len(values) == 1 and not plan.tiles else values

    return {
        name: of_each([*(_map(plan, number) for number in range(len(plan.controlnets))), *hint]),
        "controlnet_conditioning_scale": of_each([*(control.weight for control in controls), *always]),
        "control_guidance_start": of_each([*(control.start for control in controls), *(0.0 for _ in hint)]),
        "control_guidance_end": of_each([*(control.end for control in controls), *always]),
        "guess_mode": is_guess_mode(_modes(plan)),
    }


def _modes(plan: Plan) -> list[str]:
    """One for each net."""
    controls = _of_nets(plan, list(plan.request.controls))
    return [*(control.mode for control in controls), *([BALANCED] if plan.filler else [])]


def _of_nets(plan: Plan, of_controls: list[T]) -> list[T]:
    """What is said of controls, for each net: joined ones agree in it."""
    return [of_controls[plan.read_by(number)[0]] for number in range(len(plan.controlnets))]


def _map(plan: Plan, number: int) -> Any:
    """What that net reads."""
    net, places = plan.controlnets[number], plan.read_by(number)
    if net.is_union:
        return hint_of(net, [plan.maps[place] for place in places], [plan.fitted[place] for place in places])
    return to_control(plan.fitted[places[0]])[None]


def _pil(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
