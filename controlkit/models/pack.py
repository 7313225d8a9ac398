"""A pipeline or a ControlNet in half precision: half the bytes, read by everybody as float32."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from controlkit.errors import RequestError
from controlkit.files import atomic_folder
from controlkit.models.locate import read_json
from controlkit.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from pathlib import Path


def pack(source: Path, out: Path) -> int:
    """Write the Stable Diffusion or the ControlNet in `source` to `out`, which must not be there; return its bytes."""
    if out.exists():
        raise RequestError(f"{out} exists; choose another folder, or remove it")
    if (source / "config.json").exists():
        _pack_controlnet(source, out)
    else:
        _pack_pipeline(source, out)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _pack_controlnet(source: Path, out: Path) -> None:
    import torch

    from controlkit.models.controlnets import NOTES, find_controlnet

    controlnet = find_controlnet(str(source))
    notes = source / NOTES
    with atomic_folder(out) as unfinished:
        controlnet.load(torch_dtype=torch.float16).save_pretrained(unfinished, safe_serialization=True)
        if notes.exists():
            (unfinished / NOTES).write_bytes(notes.read_bytes())
        _forget_where_it_lay(unfinished / "config.json")


def _pack_pipeline(source: Path, out: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    if (found := read_json(source / "model_index.json").get("_class_name")) != "StableDiffusionPipeline":
        raise RequestError(f"{source} is a {found}; expected a StableDiffusionPipeline or a ControlNet")
    quiet_libraries()
    pipeline = StableDiffusionPipeline.from_pretrained(source, safety_checker=None, local_files_only=True)
    pipeline.to(torch.float16)
    with atomic_folder(out) as unfinished:
        pipeline.save_pretrained(unfinished, safe_serialization=True)
        # transformers loads in the precision that the config names, diffusers in float32; the two must agree.
        config = unfinished / "text_encoder" / "config.json"
        text = {**read_json(config), "dtype": "float32"}
        config.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        for file in unfinished.rglob("*.json"):
            _forget_where_it_lay(file)


def _forget_where_it_lay(config: Path) -> None:
    """diffusers writes the folder that something was loaded from; that is nobody's business where it is packed for."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
