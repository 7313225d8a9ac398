"""The three ways to paint what is masked, and which of them serves where none is named.

repaint      any base, not trained for it, walks back and forth (`diffusion/repaint.py`)
model        a base that reads the mask and the masked picture beside the latents (9 channels)
controlnet   a base with a ControlNet that reads the picture with the hole
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.bases import DEFAULT_BASE, embedded_bases, find_base
from controlkit.models.controlnets import embedded_for, find_controlnet
from controlkit.models.inpaint_hint import INPAINT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controlkit.generation.request import Net
    from controlkit.models.bases import Base

REPAINT, MODEL, CONTROLNET = WAYS = ("repaint", "model", "controlnet")

WIDENED = "-9ch"
"""Behind the name of a base that comes along: the one made of it for inpainting."""


def complete(options: Mapping[str, Any], nets: tuple[Net, ...]) -> dict[str, Any]:
    """Of the options of a masked picture those that follow from the others: the way, and what comes along for it: the
    base's sibling for inpainting, or the ControlNet that was trained on it."""
    name = options.get("base", DEFAULT_BASE)
    base = find_base(name, prediction=options.get("prediction"), tokenizer=options.get("tokenizer"))
    way = options.get("inpaint") or _way(base, nets)
    found = {"inpaint": way}
    if way == MODEL and not base.inpaints and name + WIDENED in embedded_bases():
        found["base"] = name + WIDENED
    if way == CONTROLNET and not any(map(fills_holes, nets)) and (own := embedded_for(base, INPAINT)):
        found["controlnet"] = [*_as_list(options.get("controlnet", ())), f"{INPAINT}={own.name}"]
    return found


def fills_holes(net: Net) -> bool:
    """Whether a ControlNet reads a picture with a hole instead of a map."""
    return (net.type or find_controlnet(net.name).condition) == INPAINT


def check_way(way: str | None, base: Base, nets: list[Net]) -> None:
    """Refuse a base and ControlNets that cannot paint that way; None: nothing is masked."""
    if way is None and nets:
        raise RequestError(
            f"ControlNet {nets[0].name!r} paints what is masked of a picture; give --image FILE --mask FILE"
        )
    if len(nets) > 1:
        raise RequestError(f"{len(nets)} ControlNets for inpainting: expected one, which reads the picture's hole")
    if way == MODEL and not base.inpaints:
        raise RequestError(
            f"--inpaint model: base {base.name!r} does not read masks ({base.unet['in_channels']} channels); name an "
            f"inpainting base (9 channels), or choose --inpaint repaint"
        )
    if way in (REPAINT, CONTROLNET) and base.inpaints:
        raise RequestError(
            f"--inpaint {way}: base {base.name!r} is an inpainting base; choose --inpaint model, or its text-to-image "
            f"sibling"
        )
    if way == CONTROLNET and not nets:
        raise RequestError(
            f"--inpaint controlnet: no ControlNet for inpainting comes along with base {base.name!r}; name one: "
            f"--controlnet inpaint=FOLDER_FILE_OR_ID"
        )


def _way(base: Base, nets: tuple[Net, ...]) -> str:
    if base.inpaints:
        return MODEL
    return CONTROLNET if any(map(fills_holes, nets)) else REPAINT


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
