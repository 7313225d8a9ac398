"""The settings of a picture in the words of webuis: the PNG text `parameters`, which other tools show and load.

Prompt, a line "Negative prompt: …", and a line of "Name: value" apart by commas; a value that holds a comma, a colon or
a line's end stands in JSON's quotes. What a webui has no name for stands in our own JSON alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controlkit.generation.prompt_syntax import escaped

PARAMETERS = "parameters"
"""The name of the PNG text."""

# Our samplers as webuis call them; "_karras" is said apart.
_SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "deis": "DEIS",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2s": "DPM++ 2S",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
    "tcd": "TCD",
    "unipc": "UniPC",
}
_RESIZES = {"crop": "Crop and Resize", "pad": "Resize and Fill", "fit": "Just Resize"}
_MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}


def infotext(settings: dict[str, Any]) -> str:
    """The text for the settings of `record`, a seed among them."""
    files = "".join(
        f" <{kind}:{Path(each['file']).stem}:{each['weight']:g}>"
        for kind, name in (("lora", "loras"), ("hypernet", "hypernetworks"))
        for each in settings[name]
    )
    prompt, negative = (
        escaped(settings[name]) if settings["plain_prompt"] else settings[name] for name in ("prompt", "negative")
    )
    lines = [f"{prompt}{files}"]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    return "\n".join([*lines, _joined(_fields(settings))])


def _fields(settings: dict[str, Any]) -> dict[str, Any]:
    name, karras = settings["sampler"].removesuffix("_karras"), settings["sampler"].endswith("_karras")
    base = Path(settings["base"]["name"])
    fields = {
        "Steps": settings["steps"],
        "Sampler": _SAMPLERS[name],
        "Schedule type": "Karras" if karras else "Automatic",
        "CFG scale": f"{settings['cfg']:g}",
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
    }
    if base.suffix in (".safetensors", ".ckpt"):  # a webui's hash is that of one file
        fields |= {"Model hash": settings["base"]["sha256"][:10], "Model": base.stem}
    else:
        fields["Model"] = base.name
    if settings["vae"]:
        fields["VAE"] = Path(settings["vae"]["name"]).name
    if settings["image"]:
        fields["Denoising strength"] = f"{settings['image']['strength']:g}"
    if hires := settings["hires"]:
        fields |= {
            "Denoising strength": f"{hires['strength']:g}",
            "Hires upscale": f"{hires['scale']:g}",
            "Hires upscaler": "Lanczos",
        }
    if upscale := settings["upscale"]:  # as the extension for tiles has it
        fields |= {
            "Tiled Diffusion upscaler": "Lanczos",
            "Tiled Diffusion scale factor": f"{upscale['scale']:g}",
        }
    if settings["mask"]:
        fields["Mask blur"] = settings["mask"]["feather"]
    if settings["eta"]:
        fields["Eta DDIM" if name == "ddim" else "Eta"] = f"{settings['eta']:g}"
    if settings["clip_skip"] > 1:
        fields["Clip skip"] = settings["clip_skip"]
    for number, control in enumerate(settings["controls"]):
        fields[f"ControlNet {number}"] = _joined(
            {
                "Module": control["type"] if settings["annotate"] else "none",
                "Model": Path(control["controlnet"]["name"]).stem,
                "Weight": f"{control['weight']:g}",
                "Resize Mode": _RESIZES[settings["resize"]],
                "Guidance Start": f"{control['start']:g}",
                "Guidance End": f"{control['end']:g}",
                "Control Mode": _MODES[control["mode"]],
            }
        )
    return {**fields, "Version": f"controlkit {settings['versions']['controlkit']}"}


def _joined(fields: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {_quoted(str(value))}" for name, value in fields.items())


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value
