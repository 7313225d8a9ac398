"""A ControlNet in the key layout of the original code, as webui and ComfyUI read it: `control_model.…` in one file.

Both layouts hold the same tensors under other names, so either way is a renaming, bit for bit.

    diffusers                                          original
    conv_in                                            input_blocks.0.0
    down_blocks.I.resnets.J                            input_blocks.N.0      N counts blocks and downsamplers from 1
    down_blocks.I.attentions.J                         input_blocks.N.1
    down_blocks.I.downsamplers.0.conv                  input_blocks.N.0.op
    mid_block.resnets.0, attentions.0, resnets.1       middle_block.0, 1, 2
    controlnet_cond_embedding.conv_in, blocks, conv_out
                                                       input_hint_block.0, 2, 4, …
    controlnet_down_blocks.N, controlnet_mid_block     zero_convs.N.0, middle_block_out.0
    time_embedding.linear_1, linear_2                  time_embed.0, 2
    add_embedding.linear_1, linear_2 (SDXL)            label_emb.0.0, 0.2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

PREFIX = "control_model."

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def to_webui(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of a ControlNetModel with that config under the original names."""
    names = layer_names(config)
    return {PREFIX + _original(key, names): value for key, value in state.items()}


def from_webui(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The way back; `config` is that of the ControlNetModel which is to take it. Other keys of a file that holds more
    than a ControlNet are left out."""
    names = {original: ours for ours, original in layer_names(config).items()}
    inner = {original: ours for ours, original in _RESNET.items()}
    found = {}
    for key, value in state.items():
        if not key.startswith(PREFIX):
            continue
        layer, rest = _split(key.removeprefix(PREFIX), names)
        ours = names[layer]
        if ".resnets." in ours:
            part, dot, kind = rest.rpartition(".")
            rest = inner[part] + dot + kind
        found[f"{ours}.{rest}"] = value
    if not found:
        raise RequestError(f"no key begins with {PREFIX!r}: expected a ControlNet in the original layout")
    return found


def save_webui(state: dict[str, Tensor], config: dict[str, Any], path: Path, notes: dict[str, Any]) -> None:
    """One .safetensors, whole or not at all; `notes` go into its metadata."""
    from safetensors.torch import save

    from controlkit.files import atomic_write_bytes

    tensors = {key: value.detach().cpu().contiguous() for key, value in to_webui(state, config).items()}
    atomic_write_bytes(path, save(tensors, metadata={key: str(value) for key, value in notes.items()}))


def layer_names(config: dict[str, Any]) -> dict[str, str]:
    """Layer of diffusers -> layer of the original, for every layer that has weights of its own."""
    names = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "controlnet_mid_block": "middle_block_out.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    if config.get("addition_embed_type") == "text_time":
        names |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
    number = 0
    last = len(config["down_block_types"]) - 1
    for level, kind in enumerate(config["down_block_types"]):
        for layer in range(config["layers_per_block"]):
            number += 1
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            if kind.startswith("CrossAttn"):
                names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
        if level < last:
            number += 1
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
    names |= {f"controlnet_down_blocks.{each}": f"zero_convs.{each}.0" for each in range(number + 1)}
    # Between the convolutions of the hint encoder stand activations, which count too.
    widths = config["conditioning_embedding_out_channels"]
    hint = ["conv_in", *(f"blocks.{each}" for each in range(2 * (len(widths) - 1))), "conv_out"]
    names |= {f"controlnet_cond_embedding.{each}": f"input_hint_block.{2 * place}" for place, each in enumerate(hint)}
    return names


def _original(key: str, names: dict[str, str]) -> str:
    layer, rest = _split(key, names)
    if ".resnets." in layer:
        part, dot, kind = rest.rpartition(".")
        rest = _RESNET[part] + dot + kind
    return f"{names[layer]}.{rest}"


def _split(key: str, layers: dict[str, str]) -> tuple[str, str]:
    """A key as the layer that it belongs to and the rest."""
    parts = key.split(".")
    for count in range(len(parts) - 1, 0, -1):
        layer = ".".join(parts[:count])
        if layer in layers:
            return layer, ".".join(parts[count:])
    raise RequestError(f"{key!r} is no part of a ControlNet for Stable Diffusion 1.x, 2.x or SDXL")
