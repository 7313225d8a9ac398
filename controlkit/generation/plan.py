"""A request made ready: everything that can be refused is refused here, before a weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.data.pictures import read_picture
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.files import sha256
from controlkit.generation.controls import LARGEST_AREA, Given, Map, choose_size, fit_map, fit_picture, read_map
from controlkit.generation.inpainting import Canvas
from controlkit.generation.masks import read_mask
from controlkit.generation.pipelines import need_latent_channels
from controlkit.models.bases import find_base
from controlkit.models.controlnets import find_controlnet
from controlkit.models.formats.embeddings import find_embeddings, say_unused
from controlkit.models.formats.lora import plan_loras
from controlkit.models.formats.vae_file import find_vae

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from controlkit.generation.request import Control, Mask, Request
    from controlkit.models.bases import Base
    from controlkit.models.controlnets import ControlNet
    from controlkit.models.formats.embeddings import Embedding
    from controlkit.models.formats.vae_file import Vae


@dataclass(frozen=True)
class StartingPicture:
    """What img2img starts from: pixels at the size of the picture, and the hash of the file they came from."""

    pixels: NDArray[np.uint8]
    file_sha256: str


@dataclass(frozen=True)
class Plan:
    """What a request asks for, found and checked. `maps`, `fitted` and `controlnets` pair by position."""

    request: Request
    base: Base
    controlnets: list[ControlNet]
    maps: list[Map]
    fitted: list[NDArray[np.uint8]]  # the maps at the size of the picture
    start: StartingPicture | None
    canvas: Canvas | None  # what is painted of a picture under a mask
    loras: Any
    embeddings: list[Embedding]
    vae: Vae | None
    scheduler: Any
    size: tuple[int, int]  # width, height

    @property
    def guided(self) -> bool:
        """Whether the UNet is asked twice, with the prompt and without."""
        return self.request.cfg > 1 and not _knows_cfg(self.base)


def make_plan(request: Request, say: Callable[[str], None]) -> Plan:
    """Find and check everything a request names; `say` hears what was guessed or changed."""
    base = find_base(request.base, prediction=request.prediction, tokenizer=request.tokenizer)
    need_latent_channels(base)
    for guess in base.guesses:
        say(guess)
    controlnets, maps = _find_controls(request, base, say)
    picture = read_picture(request.image) if request.image else None
    canvas = _canvas(request, request.mask, picture, base, say) if request.mask and picture is not None else None
    loras = plan_loras(base, request.loras, say)
    embeddings = find_embeddings(base, request.embeddings)
    say_unused(embeddings, (request.prompt, request.negative), say)
    _check_guidance(request, base)
    _check_clip_skip(request, base)
    vae = find_vae(request.vae, base) if request.vae else None
    scheduler = make_sampler(request.sampler, base.scheduler, steps=request.steps, eta=request.eta)
    if canvas:
        size = canvas.window.size
    elif maps:
        size = choose_size(request.size, Given.of("map", maps[0].pixels), base, say)
    else:
        size = choose_size(request.size, Given.of("picture", picture) if picture is not None else None, base, say)
    start = None
    if request.image and picture is not None and not canvas:
        start = StartingPicture(fit_picture(picture, request.image.name, size, say), sha256(request.image))
        if request.noise_share == 1:
            say("strength 1: every step is walked, so that hardly anything of the picture stays")
    return Plan(
        request=request,
        base=base,
        controlnets=controlnets,
        maps=maps,
        fitted=[
            _on_canvas(control_map, canvas) if canvas else fit_map(control_map, size, say, request.resize)
            for control_map in maps
        ],
        start=start,
        canvas=canvas,
        loras=loras,
        embeddings=embeddings,
        vae=vae,
        scheduler=scheduler,
        size=size,
    )


def _canvas(request: Request, mask: Mask, picture: NDArray[np.uint8], base: Base, say: Callable[[str], None]) -> Canvas:
    height, width = picture.shape[:2]
    hole = read_mask(mask.file, (width, height), invert=mask.invert, say=say)
    area = base.native_size**2
    canvas = Canvas.of(
        picture,
        hole,
        grow=mask.grow,
        feather=mask.feather,
        multiple=base.vae_factor,
        padding=mask.only_masked,
        area=area,
    )
    if mask.only_masked is None and width * height > LARGEST_AREA * area:
        say(
            f"painting {width}x{height} as a whole, where {base.name} paints at about {base.native_size}x"
            f"{base.native_size}; --only-masked 32 paints the masked part at that size"
        )
    say(f"RePaint: the network is asked {request.walked_steps} times a picture")
    return canvas


def _on_canvas(control_map: Map, canvas: Canvas) -> NDArray[np.uint8]:
    """The part of a map that belongs to what is painted."""
    height, width = canvas.picture.shape[:2]
    found = control_map.pixels.shape[1], control_map.pixels.shape[0]
    if found != (width, height):
        raise RequestError(
            f"--control {control_map.control.file} is {found[0]}x{found[1]}, the masked picture {width}x{height}; "
            f"expected a map of the picture's size"
        )
    return canvas.control(control_map.pixels, control_map.values)


def _knows_cfg(base: Base) -> bool:
    """A distilled UNet, which takes the guidance as a number."""
    return base.unet.get("time_cond_proj_dim") is not None


def _check_guidance(request: Request, base: Base) -> None:
    if request.cfg_rescale and _knows_cfg(base):
        raise RequestError(
            f"cfg_rescale={request.cfg_rescale:g}: base {base.name!r} is distilled and guides itself; leave it out"
        )


def _check_clip_skip(request: Request, base: Base) -> None:
    layers = min(int(base.config(f"text_encoder{suffix}")["num_hidden_layers"]) for suffix in base.text_parts())
    if request.clip_skip > layers:
        raise RequestError(
            f"clip_skip={request.clip_skip}: the text encoder of base {base.name!r} has {layers} layers; "
            f"expected 1 to {layers}"
        )


def _find_controls(request: Request, base: Base, say: Callable[[str], None]) -> tuple[list[ControlNet], list[Map]]:
    """The ControlNet and the map of each control, which must agree in type and fit the base."""
    found = [(find_controlnet(net.name).on(base), net.type) for net in request.controlnets]
    paired = pair(request.controls, [(controlnet, type or controlnet.condition) for controlnet, type in found])
    maps = []
    for control, (controlnet, type) in zip(request.controls, paired, strict=True):
        control_map = read_map(control, type, annotate=request.annotate, say=say)
        if control_map.type and type and control_map.type != type:
            raise RequestError(
                f"--control {control.file} is a {control_map.type} map, ControlNet {controlnet.name!r} was trained on "
                f"{type}; choose a map or a ControlNet of the other's type"
            )
        maps.append(control_map)
    return [controlnet for controlnet, _ in paired], maps


def pair(
    controls: tuple[Control, ...], controlnets: list[tuple[ControlNet, str | None]]
) -> list[tuple[ControlNet, str | None]]:
    """The ControlNet (and its type) of each control: by type where both are known, else by order."""
    if len(controls) != len(controlnets):
        raise RequestError(
            f"{len(controls)} control maps, {len(controlnets)} ControlNets: expected as many --controlnet as --control"
        )
    left = list(controlnets)
    paired: dict[int, tuple[ControlNet, str | None]] = {}
    for number, control in enumerate(controls):
        match = next((net for net in left if control.type and net[1] == control.type), None)
        if match:
            paired[number] = match
            left.remove(match)
    return [paired[number] if number in paired else left.pop(0) for number in range(len(controls))]
