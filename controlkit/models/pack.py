"""A pipeline or a ControlNet in half precision: half the bytes, read by everybody as float32."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from controlkit.errors import RequestError
from controlkit.files import atomic_folder
from controlkit.models.locate import NOTES, read_json
from controlkit.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from pathlib import Path


def pack(source: Path, out: Path, beside: str | None = None, weight: float | None = None) -> int:
    """Write the Stable Diffusion or the ControlNet in `source` to `out`, which must not be there; return its bytes. A
    Stable Diffusion made `beside` another base, which has all but its UNet too, leaves the rest to that. A ControlNet
    whose `weight` is given does at weight 1 what it did at that."""
    if out.exists():
        raise RequestError(f"{out} exists; choose another folder, or remove it")
    if (source / "config.json").exists():
        if beside:
            raise RequestError(f"--beside {beside}: {source} is a ControlNet, which shares nothing; leave it out")
        _pack_controlnet(source, out, 1.0 if weight is None else weight)
    else:
        if weight is not None:
            raise RequestError(f"--weight {weight:g}: {source} is no ControlNet; leave it out")
        _pack_pipeline(source, out, beside)
    return sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def _pack_controlnet(source: Path, out: Path, weight: float) -> None:
    import torch

    from controlkit.models.controlnets import find_controlnet

    controlnet = find_controlnet(str(source))
    notes = source / NOTES
    net = controlnet.load(torch_dtype=torch.float32)
    with torch.no_grad():
        for zero_convolution in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            for parameter in zero_convolution.parameters():  # the last thing that is done, and linear
                parameter.mul_(weight)
    with atomic_folder(out) as unfinished:
        net.to(torch.float16).save_pretrained(unfinished, safe_serialization=True)
        if notes.exists():
            (unfinished / NOTES).write_bytes(notes.read_bytes())
        _forget_where_it_lay(unfinished / "config.json")


def _pack_pipeline(source: Path, out: Path, beside: str | None) -> None:
    import diffusers
    import torch

    found = read_json(source / "model_index.json").get("_class_name")
    if found not in ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline"):
        raise RequestError(f"{source} is a {found}; expected a StableDiffusionPipeline or a ControlNet")
    quiet_libraries()
    pipeline = getattr(diffusers, found).from_pretrained(source, safety_checker=None, local_files_only=True)
    pipeline.to(torch.float16)
    with atomic_folder(out) as unfinished:
        pipeline.save_pretrained(unfinished, safe_serialization=True)
        # transformers loads in the precision that the config names, diffusers in float32; the two must agree.
        config = unfinished / "text_encoder" / "config.json"
        text = {**read_json(config), "dtype": "float32"}
        config.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")
        notes = read_json(source / NOTES) if (source / NOTES).exists() else {}
        if beside:
            _leave_out(unfinished, beside)
            notes["rest"] = beside
        if notes:
            (unfinished / NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")
        for file in unfinished.rglob("*.json"):
            _forget_where_it_lay(file)


def _leave_out(packed: Path, beside: str) -> None:
    """Remove what a base has too, after a look that it is the same."""
    import torch
    from safetensors.torch import load_file

    from controlkit.models.bases import find_base

    base = find_base(beside)
    for name in ("vae", "text_encoder"):
        ours = load_file(next((packed / name).glob("*.safetensors")))
        theirs = {key: value.to(torch.float16) for key, value in base.load(name).state_dict().items()}
        if not all(key in theirs and torch.equal(value.to(torch.float16), theirs[key]) for key, value in ours.items()):
            raise RequestError(f"--beside {beside}: its {name} is another one; leave it out, and all is packed")
    for name in ("vae", "text_encoder", "tokenizer"):
        shutil.rmtree(packed / name)


def _forget_where_it_lay(config: Path) -> None:
    """diffusers writes the folder that something was loaded from; that is nobody's business where it is packed for."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
