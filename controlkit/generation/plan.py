"""A request made ready: everything that can be refused is refused here, before a weight is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators.pose_drawing import draw
from controlkit.data.pictures import read_picture
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.files import sha256
from controlkit.generation.controls import (
    LARGEST_AREA,
    Given,
    Map,
    choose_size,
    fit_map,
    fit_picture,
    read_map,
    scaled,
    type_of,
)
from controlkit.generation.inpainting import Canvas
from controlkit.generation.interval import WHOLE
from controlkit.generation.joining import Reader, pair
from controlkit.generation.masks import read_mask
from controlkit.generation.pipelines import need_latent_channels
from controlkit.generation.prompt_chunks import check_length
from controlkit.generation.residuals import layer_weights, residual_count
from controlkit.generation.tiles import tiles_of
from controlkit.generation.upscale import shows_the_picture
from controlkit.generation.ways import MODEL, REPAINT, check_way, fills_holes
from controlkit.generation.windows import extend
from controlkit.models.bases import find_base
from controlkit.models.controlnets import embedded_for, find_controlnet
from controlkit.models.formats.embeddings import find_embeddings, say_unused
from controlkit.models.formats.hypernetworks import find_hypernetworks
from controlkit.models.formats.lora import plan_loras
from controlkit.models.formats.vae_file import find_vae
from controlkit.models.inpaint_hint import INPAINT

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from controlkit.generation.hires import Hires
    from controlkit.generation.request import Control, Mask, Net, Request
    from controlkit.generation.tiles import Tile
    from controlkit.generation.upscale import Upscale
    from controlkit.models.bases import Base
    from controlkit.models.controlnets import ControlNet
    from controlkit.models.formats.embeddings import Embedding
    from controlkit.models.formats.hypernetworks import Found
    from controlkit.models.formats.vae_file import Vae


@dataclass(frozen=True)
class FittedPicture:
    """Pixels at the size of the picture, and the hash of the file they came from."""

    pixels: NDArray[np.uint8]
    file_sha256: str


@dataclass(frozen=True)
class Plan:
    """What a request asks for, found and checked. `maps`, `fitted`, `regions` and `layers` pair by position with the
    controls; `readers` says for each the number of its ControlNet; `filler` is the ControlNet that reads the picture
    with its hole."""

    request: Request
    base: Base
    controlnets: list[ControlNet]
    readers: list[int]
    filler: ControlNet | None
    maps: list[Map]
    fitted: list[NDArray[np.uint8]]  # the maps at the size of the picture
    regions: list[FittedPicture | None]  # where each control holds
    layers: list[list[float] | None]  # how much each residual of each control counts
    start: FittedPicture | None  # what img2img starts from
    canvas: Canvas | None  # what is painted of a picture under a mask
    loras: Any
    hypernetworks: list[Found]
    embeddings: list[Embedding]
    vae: Vae | None
    scheduler: Any
    size: tuple[int, int]  # width, height
    tiles: tuple[Tile, ...] = ()  # what is painted by itself of each step; none: the whole
    second: Plan | None = None  # what starts from the picture of this one, larger

    @property
    def nets(self) -> list[ControlNet]:
        """All of them, as they are computed."""
        return [*self.controlnets, *([self.filler] if self.filler else [])]

    def read_by(self, number: int) -> list[int]:
        """The positions of the controls that this ControlNet reads: one, or those that are joined."""
        return [place for place, reader in enumerate(self.readers) if reader == number]

    @property
    def passes(self) -> list[Plan]:
        """What is painted one after the other."""
        return [self, *([self.second] if self.second else [])]

    @property
    def guided(self) -> bool:
        """Whether the UNet is asked twice, with the prompt and without."""
        return self.request.cfg > 1 and not _knows_cfg(self.base)


def make_plan(request: Request, say: Callable[[str], None]) -> Plan:
    """Find and check everything a request names; `say` hears what was guessed or changed."""
    base = find_base(request.base, prediction=request.prediction, tokenizer=request.tokenizer)
    fillers = [net for net in request.controlnets if fills_holes(net)]
    named = [net for net in request.controlnets if net not in fillers]
    check_way(request.mask.way if request.mask else None, base, fillers)
    if not request.mask:
        need_latent_channels(base)
    for guess in base.guesses:
        say(guess)
    controlnets, readers, maps = _find_controls(request, named, base, say)
    picture = read_picture(request.image) if request.image else None
    canvas = _canvas(request, request.mask, picture, base, say) if request.mask and picture is not None else None
    loras = plan_loras(base, request.loras, say)
    hypernetworks = find_hypernetworks(base, request.hypernetworks)
    embeddings = find_embeddings(base, request.embeddings)
    prompt, negative = request.prompts
    say_unused(embeddings, (prompt.text, negative.text), say)
    check_length(base, {"prompt": prompt, "negative": negative}, embeddings, say)
    _check_guidance(request, base)
    _check_clip_skip(request, base)
    vae = find_vae(request.vae, base) if request.vae else None
    tiles: tuple[Tile, ...] = ()
    if canvas:
        size = canvas.window.size
    elif request.upscale and picture is not None:
        size, tiles = _upscaled(request, request.upscale, Given.of("picture", picture), base, controlnets, say)
    elif maps:
        size = choose_size(request.size, Given.of("map", maps[0].pixels), base, say)
    else:
        size = choose_size(request.size, Given.of("picture", picture) if picture is not None else None, base, say)
    start = None
    if request.image and picture is not None and not canvas:
        start = FittedPicture(fit_picture(picture, request.image.name, size, say), sha256(request.image))
        if request.noise_share == 1:
            say("strength 1: every step is walked, so that hardly anything of the picture stays")
    seen = tiles[0].pixels(base.vae_factor) if tiles else None
    plan = Plan(
        request=request,
        base=base,
        controlnets=controlnets,
        readers=readers,
        filler=_find_filler(fillers, base),
        maps=maps,
        fitted=[
            _on_canvas(control_map, canvas, request.mask)
            if canvas and request.mask
            else start.pixels
            if request.upscale and start and shows_the_picture(control_map.control, request.image)
            else fit_map(control_map, size, say, request.resize, seen=seen)
            for control_map in maps
        ],
        regions=[_region(request, control, size, canvas, say) for control in request.controls],
        layers=[
            layer_weights(control.layers, residual_count(controlnets[reader].config)) if control.layers else None
            for control, reader in zip(request.controls, readers, strict=True)
        ],
        start=start,
        canvas=canvas,
        loras=loras,
        hypernetworks=hypernetworks,
        embeddings=embeddings,
        vae=vae,
        scheduler=_scheduler(request, base),
        size=size,
        tiles=tiles,
    )
    return replace(plan, second=_second_pass(plan, request.hires, say)) if request.hires else plan


def _second_pass(first: Plan, hires: Hires, say: Callable[[str], None]) -> Plan:
    """img2img from a picture of the first pass. Maps and masks come to the large size from their files, so that what
    the small one lost is there again."""
    size = scaled(first.size, hires.scale, first.base.vae_factor)
    small, large = ("x".join(map(str, each)) for each in (first.size, size))
    if size == first.size:
        raise RequestError(
            f"--hires {hires.scale:g}: {small} stays what it is, since the VAE needs multiples of "
            f"{first.base.vae_factor}; take a larger SCALE"
        )
    request = first.request.second_pass(hires, size)
    native = first.base.native_size
    far = size[0] * size[1] > LARGEST_AREA * native**2
    say(
        f"second pass: {small} enlarged to {large} by Lanczos in pixels, then {request.walked_steps} of "
        f"{request.steps} steps{f'; {first.base.name} paints at about {native}x{native}' if far else ''}"
    )
    return replace(
        first,
        request=request,
        fitted=[fit_map(control_map, size, _silent, request.resize) for control_map in first.maps],
        regions=[_region(request, control, size, None, _silent) for control in request.controls],
        scheduler=_scheduler(request, first.base),
        size=size,
    )


def _upscaled(
    request: Request, upscale: Upscale, picture: Given, base: Base, nets: list[ControlNet], say: Callable[[str], None]
) -> tuple[tuple[int, int], tuple[Tile, ...]]:
    """The size of an upscaled picture, and the tiles in which it is painted."""
    for net in nets:
        if net.config.get("global_pool_conditions"):
            raise RequestError(
                f"--upscale {upscale.scale:g}: ControlNet {net.name!r} makes one value of its map for the whole "
                f"picture, and tiles see parts of it; leave it out"
            )
    factor = base.vae_factor
    size = scaled((picture.width, picture.height), upscale.scale, factor)
    tiles = tiles_of(size[0] // factor, size[1] // factor, base.native_size // factor)
    side = tiles[0].pixels(factor)
    say(
        f"upscale: {picture.width}x{picture.height} enlarged to {size[0]}x{size[1]} by Lanczos in pixels, then "
        f"{request.walked_steps} of {request.steps} steps, each in {len(tiles)} tiles of {side[0]}x{side[1]}"
    )
    return size, tiles


def _silent(text: str) -> None:
    """The first pass has said it."""


def _scheduler(request: Request, base: Base) -> Any:
    return make_sampler(request.sampler, base.scheduler, steps=request.steps, eta=request.eta)


def _canvas(request: Request, mask: Mask, picture: NDArray[np.uint8], base: Base, say: Callable[[str], None]) -> Canvas:
    height, width = picture.shape[:2]
    hole = np.zeros((height, width), np.float32)
    if mask.file:
        hole = read_mask(mask.file, (width, height), invert=mask.invert, say=say)
    if any(mask.outpaint):
        picture, hole = extend(picture, hole, mask.outpaint)
        height, width = hole.shape
    area = base.native_size**2
    canvas = Canvas.of(
        picture,
        hole,
        grow=mask.grow,
        feather=mask.feather,
        # diffusers' pipelines for ControlNets and masks ask for multiples of 8, whatever the VAE.
        multiple=base.vae_factor if mask.way == REPAINT else math.lcm(base.vae_factor, 8),
        padding=mask.only_masked,
        area=area,
        mixed=mask.way != REPAINT,
    )
    if mask.only_masked is None and width * height > LARGEST_AREA * area:
        say(
            f"painting {width}x{height} as a whole, where {base.name} paints at about {base.native_size}x"
            f"{base.native_size}; --only-masked 32 paints the masked part at that size"
        )
    how = {REPAINT: "RePaint", MODEL: f"by {base.name}, which reads masks"}.get(mask.way, "by a ControlNet")
    say(f"inpainting: {how}; the network is asked {request.walked_steps} times a picture")
    return canvas


def _region(
    request: Request, control: Control, size: tuple[int, int], canvas: Canvas | None, say: Callable[[str], None]
) -> FittedPicture | None:
    """A control's mask at the size of the picture, brought there as its map is."""
    if control.mask is None:
        return None
    mask = Map(replace(control, file=control.mask), read_picture(control.mask), None, sha256(control.mask))
    if canvas and request.mask:
        fitted = _on_canvas(mask, canvas, request.mask, "--control-mask")
    else:
        fitted = fit_map(mask, size, say, request.resize)
    return FittedPicture(fitted, mask.file_sha256)


def _on_canvas(control_map: Map, canvas: Canvas, mask: Mask, option: str = "--control") -> NDArray[np.uint8]:
    """The part of a map, or of a control's mask, that belongs to what is painted. One of the picture before it grew
    stands in black."""
    height, width = canvas.picture.shape[:2]
    pixels, people, window = control_map.pixels, control_map.people, canvas.window
    left, top, right, bottom = mask.outpaint
    if pixels.shape[:2] == (height - top - bottom, width - left - right):
        pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)))
        people = people.part(-left, -top, width, height) if people else None
    found = pixels.shape[1], pixels.shape[0]
    if found != (width, height):
        raise RequestError(
            f"{option} {control_map.control.file} is {found[0]}x{found[1]}, the masked picture {width}x{height}; "
            f"expected a map of the picture's size"
        )
    if people and window.scaled:
        return draw(people.part(window.left, window.top, window.width, window.height), *window.size)
    return canvas.control(pixels, control_map.values)


def _knows_cfg(base: Base) -> bool:
    """A distilled UNet, which takes the guidance as a number."""
    return base.unet.get("time_cond_proj_dim") is not None


def _check_guidance(request: Request, base: Base) -> None:
    if (request.cfg_rescale or request.cfg_interval != WHOLE) and _knows_cfg(base):
        name = "cfg_rescale" if request.cfg_rescale else "cfg_interval"
        raise RequestError(f"{name}: base {base.name!r} is distilled and guides itself; leave it out")


def _check_clip_skip(request: Request, base: Base) -> None:
    layers = min(int(base.config(f"text_encoder{suffix}")["num_hidden_layers"]) for suffix in base.text_parts())
    if request.clip_skip > layers:
        raise RequestError(
            f"clip_skip={request.clip_skip}: the text encoder of base {base.name!r} has {layers} layers; "
            f"expected 1 to {layers}"
        )


def _find_controls(
    request: Request, named: list[Net], base: Base, say: Callable[[str], None]
) -> tuple[list[ControlNet], list[int], list[Map]]:
    """The ControlNets (of those `named` for maps), for each control the number of its own, and its map, which must
    agree in type and fit the base."""
    types = [type_of(control) for control in request.controls]
    for control, said in zip(request.controls, types, strict=True):
        if said == INPAINT:
            raise RequestError(f"--control {control.file} is a mask; give it with --mask FILE, and --image FILE")
    if request.controls and not named:
        return _embedded_controls(request, base, say)
    found = [Reader.of(find_controlnet(net.name).on(base), net.type) for net in named]
    numbers = pair(request.controls, types, found)
    maps = []
    for control, said, number in zip(request.controls, types, numbers, strict=True):
        controlnet, type = found[number].net, said if found[number].net.is_union else found[number].type
        control_map = read_map(control, type, annotate=request.annotate, say=say)
        if control_map.type and type and control_map.type != type:
            raise RequestError(
                f"--control {control.file} is a {control_map.type} map, ControlNet {controlnet.name!r} was trained on "
                f"{type}; choose a map or a ControlNet of the other's type"
            )
        maps.append(control_map)
        if control.mask and controlnet.config.get("global_pool_conditions"):
            raise RequestError(
                f"--control-mask {control.mask}: ControlNet {controlnet.name!r} makes one value of its map for the "
                f"whole picture; leave its mask out"
            )
    order = list(dict.fromkeys(numbers))
    return [found[number].net for number in order], [order.index(number) for number in numbers], maps


def _find_filler(nets: list[Net], base: Base) -> ControlNet | None:
    if not nets:
        return None
    filler = find_controlnet(nets[0].name).on(base)
    if filler.condition not in (None, INPAINT):
        raise RequestError(
            f"ControlNet {filler.name!r} was trained on {filler.condition}, and is asked for as {INPAINT}"
        )
    return filler


def _embedded_controls(
    request: Request, base: Base, say: Callable[[str], None]
) -> tuple[list[ControlNet], list[int], list[Map]]:
    """Where no ControlNet is named, those that come along with the base serve, chosen by the types of the maps."""
    controlnets, maps = [], []
    for control in request.controls:
        control_map = read_map(control, None, annotate=request.annotate, say=say)
        if control_map.type is None:
            raise RequestError(
                f"--control {control.file}: no --controlnet is named, and the file does not say its type; "
                f"say it: --control canny={control.file}"
            )
        controlnet = embedded_for(base, control_map.type)
        if controlnet is None:
            raise RequestError(
                f"--control {control.file}: no ControlNet for {control_map.type} maps comes along with base "
                f"{base.name!r}; name one: --controlnet FOLDER_FILE_OR_ID"
            )
        say(f"controlnet: {controlnet.name}, which comes along; yours: --controlnet FOLDER_FILE_OR_ID")
        controlnets.append(controlnet)
        maps.append(control_map)
    return controlnets, list(range(len(maps))), maps
