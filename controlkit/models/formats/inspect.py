"""What there is to know of a model file without running it."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.bases import family
from controlkit.models.formats import detect
from controlkit.models.formats.configs import CONFIGS, stated_configs
from controlkit.models.formats.contents import base_contents
from controlkit.models.formats.controlnet_file import RelativeControlNet, open_controlnet
from controlkit.models.formats.hypernetworks import family_of
from controlkit.models.formats.reading import TensorFile, read_tensors

if TYPE_CHECKING:
    from pathlib import Path

_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL", 2048: "SDXL"}
_STATED_FAMILIES = {"sd_v1": "SD 1.x", "sd_v2": "SD 2.x", "sdxl": "SDXL"}
# The ends of the names of a low-rank layer, and which axis of that tensor is the rank.
_RANK_AXES = {
    "lora_down.weight": 0, "lora_A.weight": 0, "lora.down.weight": 0, "_lora.down.weight": 0,
    "lora_linear_layer.down.weight": 0, "hada_w1_b": 0, "lokr_w1_b": 0, "lokr_w2_b": 0, ".down": 0,
}  # fmt: skip


def inspect_file(path: Path) -> dict[str, Any]:
    """Kind, family, prediction, precision, size and metadata of a model file, as JSON has them."""
    file = read_tensors(path)
    kind = detect.kind_of(file)
    ranks = lora_ranks(file) if kind in (detect.LORA, detect.CONTROL_LORA) else {}
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "container": file.container,
        "kind": kind,
        **_of_kind(file, kind),
        "tensors": len(file),
        "parameters": sum(math.prod(shape) for shape in file.shapes.values()),
        "dtypes": dict(Counter(file.dtypes.values()).most_common()),
        **({"ranks": ranks} if ranks else {}),
        "metadata": {name: value for name, value in file.metadata.items() if name != CONFIGS},
        "controlkit_configs": sorted(stated_configs(file)),
        "facts": {name: value for name, value in file.facts.items() if name and "." not in name},
    }


def lora_ranks(file: TensorFile) -> dict[int, int]:
    """Rank -> in how many modules."""
    found = Counter(
        shape[axis]
        for name, shape in file.shapes.items()
        for end, axis in _RANK_AXES.items()
        if name.endswith(end) and shape
    )
    return dict(sorted(found.items()))


def lora_family(file: TensorFile) -> str | None:
    """By its metadata, else by the width of what enters the cross-attention, else by a second text encoder."""
    stated = file.metadata.get("ss_base_model_version", "")
    for start, name in _STATED_FAMILIES.items():
        if stated.startswith(start):
            return name
    if any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in file):
        return "SDXL"
    for name, shape in file.shapes.items():
        if re.search(r"attn2[._](processor\.)?to_k.*(lora_down|lora_A|lora\.down|hada_w1_b)", name) and len(shape) > 1:
            return _FAMILIES.get(shape[1])
    for name, shape in file.shapes.items():
        if re.search(r"(lora_te1?_|text_encoder\.).*q_proj.*(down|lora_A)", name) and len(shape) > 1:
            return _FAMILIES.get(shape[1])
    return None


def _of_kind(file: TensorFile, kind: str) -> dict[str, Any]:
    """Family and prediction, where the kind has them and the file is whole."""
    try:
        if kind == detect.BASE:
            contents = base_contents(file)
            scheduler = contents.configs.get("scheduler")
            found = contents.prediction
            return {
                "family": family(contents.configs["unet"]),
                "inpaints": contents.inpaints,
                "prediction": scheduler["prediction_type"] if scheduler else found.type,
                "prediction_from": "its config" if scheduler else found.source,
                "prediction_guessed": found.guessed and not scheduler,
                "averaged_weights": any(name.startswith("model_ema.") for name in file),
            }
        if kind in detect.CONTROLNETS:
            net = open_controlnet(str(file.path))
            of_net = net.family if isinstance(net, RelativeControlNet) else family(net.config)
            return {"family": of_net, "condition": net.condition}
    except RequestError as reason:
        return {"family": None, "problem": str(reason)}
    if kind == detect.LORA:
        return {"family": lora_family(file)}
    if kind == detect.EMBEDDING:
        widths = {shape[-1] for shape in file.shapes.values() if shape}
        return {"family": "SDXL" if 1280 in widths else next((_FAMILIES[w] for w in widths if w in _FAMILIES), None)}
    if kind == detect.HYPERNETWORK:
        return {"family": family_of([int(name.partition(".")[0]) for name in file])}
    return {"family": None}
