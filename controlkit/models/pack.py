"""A pipeline in half precision: half the bytes, read by everybody as float32."""

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
    """Write the Stable Diffusion in `source` to `out`, which must not be there, and return its bytes."""
    import torch
    from diffusers import StableDiffusionPipeline

    if (found := read_json(source / "model_index.json").get("_class_name")) != "StableDiffusionPipeline":
        raise RequestError(f"{source} is a {found}; expected a StableDiffusionPipeline")
    if out.exists():
        raise RequestError(f"{out} exists; choose another folder, or remove it")
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
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _forget_where_it_lay(config: Path) -> None:
    """diffusers writes the folder that something was loaded from; that is nobody's business where it is packed for."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
