"""A request by the names of the command line's options: what the command, a line of JSON and a sweep all go through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.diffusion.samplers import ETA_SAMPLERS
from controlkit.errors import RequestError, known
from controlkit.generation.hires import Hires
from controlkit.generation.request import (
    Mask,
    Net,
    Request,
    parse_controls,
    parse_outpaint,
    parse_shares,
    parse_size,
)
from controlkit.generation.upscale import Upscale, tile_controls
from controlkit.generation.ways import REPAINT, complete
from controlkit.models.bases import DEFAULT_BASE, usual_cfg
from controlkit.models.formats.hypernetworks import Hypernetwork
from controlkit.models.formats.lora import Lora

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    """One, or several."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
        raise TypeError("a text, or a list of texts")
    return tuple(values)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError("a number")
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("true or false")
    return value


# Option -> (field of the request, how its value is read).
_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "controlnet": ("controlnets", lambda value: tuple(Net.parse(text) for text in _texts(value))),
    "image": ("image", lambda value: Path(_text(value))),
    "strength": ("strength", _number),
    "hires": ("hires", lambda value: Hires.parse(_text(value))),
    "upscale": ("upscale", lambda value: Upscale.parse(_text(value))),
    "prompt": ("prompt", _text),
    "negative": ("negative", _text),
    "plain-prompt": ("plain_prompt", _switch),
    "base": ("base", _text),
    "prediction": ("prediction", _text),
    "tokenizer": ("tokenizer", _text),
    "lora": ("loras", lambda value: tuple(Lora.parse(text) for text in _texts(value))),
    "hypernetwork": ("hypernetworks", lambda value: tuple(Hypernetwork.parse(text) for text in _texts(value))),
    "embedding": ("embeddings", lambda value: tuple(Path(text) for text in _texts(value))),
    "vae": ("vae", _text),
    "sampler": ("sampler", _text),
    "eta": ("eta", _number),
    "steps": ("steps", _whole),
    "cfg": ("cfg", _number),
    "cfg-interval": ("cfg_interval", lambda value: parse_shares(_text(value), "cfg-interval", "steps")),
    "cfg-rescale": ("cfg_rescale", _number),
    "clip-skip": ("clip_skip", _whole),
    "seed": ("seed", _whole),
    "num": ("num", _whole),
    "batch-size": ("batch_size", _whole),
    "size": ("size", lambda value: parse_size(_text(value))),
    "resize": ("resize", _text),
    "annotate": ("annotate", _switch),
    "control-half": ("control_half", _switch),
    "control-every": ("control_every", _whole),
}
_OF_CONTROLS = ("control", "control-mode", "control-mask", "control-layers")

# Option -> (field of the mask, how its value is read).
_OF_MASK: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "mask": ("file", lambda value: Path(_text(value))),
    "outpaint": ("outpaint", lambda value: parse_outpaint(_text(value))),
    "inpaint": ("way", _text),
    "invert-mask": ("invert", _switch),
    "grow": ("grow", _whole),
    "feather": ("feather", _whole),
    "only-masked": ("only_masked", _whole),
    "jump-length": ("jump", _whole),
    "jump-samples": ("samples", _whole),
    "jump-window": ("window", lambda value: parse_shares(_text(value), "jump-window", "noise")),
}
_OF_REPAINT = ("jump-length", "jump-samples", "jump-window")
OPTIONS = (*_OF_CONTROLS, *_OF_MASK, *_FIELDS)


def request_of(options: Mapping[str, Any]) -> Request:
    """The request of these options; one that is None was not given."""
    given = {name: value for name, value in options.items() if value is not None}
    fields: dict[str, Any] = {}
    of_mask: dict[str, Any] = {}
    if given.get("mask") or given.get("outpaint"):
        given = _of_masked(given)
    if given.get("upscale") and given.get("image") and given.get("controlnet"):
        given = _of_upscaled(given)
    given = {"cfg": usual_cfg(given.get("base", DEFAULT_BASE)), **given}
    for name, value in given.items():
        if name not in OPTIONS:
            raise RequestError(f"unknown option {name!r}: {known(name, OPTIONS)}")
        try:
            if name in _OF_CONTROLS:
                _texts(value)
            elif name in _OF_MASK:
                field, read = _OF_MASK[name]
                of_mask[field] = read(value)
            else:
                field, read = _FIELDS[name]
                fields[field] = read(value)
        except TypeError as expected:
            raise RequestError(f"{name}={value!r}: expected {expected}") from None
    controls = parse_controls(*(_texts(given.get(name, ())) for name in _OF_CONTROLS))
    of_mask = {field: value for field, value in of_mask.items() if value is not False}
    if of_mask and not {"file", "outpaint"} & set(of_mask):
        raise RequestError(
            f"{next(name for name in _OF_MASK if given.get(name))}: says how a mask is used; give --mask FILE "
            f"or --outpaint LEFT,TOP,RIGHT,BOTTOM"
        )
    if of_mask:
        fields["mask"] = Mask(**{"file": None, **of_mask})
    return Request(controls=controls, **fields)


def _of_upscaled(given: dict[str, Any]) -> dict[str, Any]:
    """The options of an upscaled picture, with the controls that show it to its ControlNets for tiles."""
    texts = _texts(given.get("control", ()))
    nets = tuple(Net.parse(text) for text in _texts(given["controlnet"]))
    return {**given, "control": (*texts, *tile_controls(_text(given["image"]), parse_controls(texts), nets))}


def _of_masked(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a masked picture, with those that follow from its way."""
    nets = tuple(Net.parse(text) for text in _texts(given.get("controlnet", ())))
    given = {**given, **complete(given, nets)}
    if "mask" not in given:
        if given.get("invert-mask"):
            raise RequestError("invert-mask: there is no mask; leave it out, or give --mask FILE")
        given = {"feather": 0, **given}  # all of the old picture stays
    if given["inpaint"] == REPAINT:
        given = {"sampler": "ddim", **given}
        # Noise in each step is what brings the two parts together.
        return {"eta": 1.0, **given} if given["sampler"] in ETA_SAMPLERS else given
    if walks := [name for name in _OF_REPAINT if name in given]:
        raise RequestError(f"{walks[0]}: says how RePaint walks, and {given['inpaint']!r} does not; leave it out")
    return given
