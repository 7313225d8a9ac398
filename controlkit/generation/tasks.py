"""A plan as a call of diffusers: which pipeline, under which names its arguments go, and what is hooked in beside."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from controlkit.generation.inpainting import keeping_strokes
from controlkit.generation.interval import WHOLE, guided_within
from controlkit.generation.joining import hint_of
from controlkit.generation.modes import BALANCED, control_modes, is_guess_mode
from controlkit.generation.pipelines import FROM_PICTURE, FROM_TEXT, INPAINTED, make_pipeline
from controlkit.generation.rescale import has_own_rescale, rescaled_guidance
from controlkit.generation.residuals import weighed_residuals
from controlkit.generation.silent import asked_every, control_both_halves, control_conditional_half, silenced
from controlkit.generation.tiled import in_tiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlkit.generation.plan import Plan

T = TypeVar("T")


def pipeline_and_arguments(plan: Plan, parts: dict[str, Any], nets: list[Any]) -> tuple[Any, dict[str, Any]]:
    """The pipeline of a plan's task, and everything to call it with but prompts, seeds, callbacks and what the first
    pass painted."""
    masked = plan.canvas if not plan.request.repaints else None
    task = INPAINTED if masked else FROM_PICTURE if _starts(plan) else FROM_TEXT
    controlnets = [silenced(nets)] if nets else []
    if plan.tiles:
        parts, controlnets = in_tiles(plan.tiles, plan.base.vae_factor, parts, nets)
    pipeline = make_pipeline(task, plan.base, parts, controlnets, plan.scheduler)
    arguments = _common(plan)
    if nets:
        arguments |= _of_controls(plan, "image" if task == FROM_TEXT else "control_image")
    if task == FROM_PICTURE:
        arguments["strength"] = plan.request.noise_share
    if plan.start:
        arguments["image"] = _pil(plan.start.pixels)
    if masked:
        arguments |= {"image": _pil(masked.shown), "mask_image": _pil(masked.mask)}
        arguments["strength"] = plan.request.noise_share
    if task != FROM_PICTURE or nets:  # img2img alone paints at its picture's size
        arguments |= {"width": plan.size[0], "height": plan.size[1]}
    if plan.request.cfg_rescale and has_own_rescale(pipeline):
        arguments["guidance_rescale"] = plan.request.cfg_rescale
    return pipeline, arguments


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


def _starts(plan: Plan) -> bool:
    """From a picture: one of a file, or one of the first pass."""
    return plan.request.image is not None and plan.canvas is None


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
    return _pil(plan.fitted[places[0]])


def _pil(pixels: Any) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)
