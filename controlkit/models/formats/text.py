"""CLIP's text encoders: the names of transformers and those of OpenCLIP (ViT-H of SD 2.x, bigG of SDXL).

OpenCLIP keeps query, key and value in one matrix, one below the other, and its projection transposed. bigG's projection
is square, so that a forgotten transpose shows in no shape.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from controlkit.models.formats.names import inverse, rename

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from controlkit.models.formats.names import Tensors

_PREFIX = "text_model."
_THIRDS = ("q_proj", "k_proj", "v_proj")
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def text_from_transformers(tensors: Tensors) -> dict[str, torch.Tensor]:
    """With `text_model.` before all but the projection, whichever release wrote it, and without position ids.

    The ids are 0, 1, 2, …; merge tools have spoiled them in many files. Some old files name them twice over.
    """
    named = {
        key if key.startswith((_PREFIX, "text_projection")) else _PREFIX + key: value for key, value in tensors.items()
    }
    return {key: value for key, value in named.items() if not key.endswith("position_ids")}


def write_text_encoder(folder: Path, model: PreTrainedModel, tensors: Tensors) -> None:
    """A folder that transformers loads this text encoder from, in float32, whichever process writes: its own
    save_pretrained writes nothing in any but the first of several."""
    from safetensors.torch import save_file

    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"  # transformers loads in the precision that is named here
    model.config.save_pretrained(folder)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})


def text_from_open_clip(tensors: Tensors, *, layers: int, projected: bool) -> dict[str, torch.Tensor]:
    """`layers` and `projected` say what the encoder has: SD 2.x leaves out the last layer and the projection."""
    import torch

    ours: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        number = re.match(r"transformer\.resblocks\.(\d+)\.", key)
        if (number and int(number[1]) >= layers) or key in ("logit_scale", "attn_mask"):
            continue
        if joined := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", key):
            for name, third in zip(_THIRDS, torch.chunk(value, 3), strict=True):
                ours[f"{_PREFIX}encoder.layers.{joined[1]}.self_attn.{name}.{joined[2]}"] = third
        elif key in ("text_projection", "text_projection.weight"):
            if projected:  # newer releases of OpenCLIP hold a linear layer, as transformers does
                ours["text_projection.weight"] = value if key.endswith(".weight") else value.T
        else:
            plain[key] = value
    return ours | rename(plain, inverse(_table(layers)), "OpenCLIP text encoder")


def text_to_open_clip(tensors: Tensors) -> dict[str, torch.Tensor]:
    """As OpenCLIP has it. What transformers leaves out and nobody's picture depends on is made up.

    That is the temperature `logit_scale`, at the ln 100 where OpenCLIP's training stops it, and, for an encoder without
    projection (SD 2.x), the projection (the identity) and the last layer (a copy of the one before), for readers that
    build the whole network before they take its last but one output.
    """
    import torch

    ours = text_from_transformers(tensors)
    layers = 1 + max(int(key.split(".")[3]) for key in ours if key.startswith(f"{_PREFIX}encoder.layers."))
    theirs: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for key, value in ours.items():
        if split := re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", key):
            thirds = [ours[key.replace("q_proj", name)] for name in _THIRDS]
            theirs[f"transformer.resblocks.{split[1]}.attn.in_proj_{split[2]}"] = torch.cat(thirds)
        elif key == "text_projection.weight":
            theirs["text_projection"] = value.T
        elif not re.search(r"\.self_attn\.[kv]_proj\.", key):
            plain[key] = value
    theirs |= rename(plain, _table(layers), "CLIP text encoder")
    final = theirs["ln_final.weight"]
    if "text_projection" not in theirs:
        last = f"transformer.resblocks.{layers - 1}."
        theirs |= {
            f"transformer.resblocks.{layers}.{key.removeprefix(last)}": value.clone()
            for key, value in list(theirs.items())
            if key.startswith(last)
        }
        theirs["text_projection"] = torch.eye(len(final), dtype=final.dtype, device=final.device)
    theirs["logit_scale"] = torch.tensor(math.log(100), dtype=final.dtype, device=final.device)
    return theirs


def _table(layers: int) -> dict[str, str]:
    """transformers' module -> OpenCLIP's, of what is the same tensor in both."""
    table = {
        f"{_PREFIX}embeddings.token_embedding": "token_embedding",
        f"{_PREFIX}embeddings.position_embedding.weight": "positional_embedding",
        f"{_PREFIX}final_layer_norm": "ln_final",
    }
    for number in range(layers):
        for name, other in _LAYER.items():
            table[f"{_PREFIX}encoder.layers.{number}.{name}"] = f"transformer.resblocks.{number}.{other}"
    return table
