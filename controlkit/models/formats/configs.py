"""Configs of diffusers and transformers, read from the shapes of a file's tensors.

Shapes tell widths, depths, channels and where attention stands. They do not tell heads, groups and activations: those
come from the family's published networks, all of which this tells apart by width of the text and kind of projection.
Files of our own carry their configs (`CONFIGS` in the metadata), which then count instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from controlkit.models.formats.reading import Shape, TensorFile

    Shapes = Mapping[str, Shape]

CONFIGS = "controlkit.configs"
"""In a safetensors' metadata: JSON, component -> config."""

_HEAD_WIDTH = 64
_TIME_IDS, _TIME_ID_WIDTH = 6, 256  # SDXL: sizes and crop, each embedded beside the pooled text


def stated_configs(file: TensorFile) -> dict[str, dict[str, Any]]:
    """The configs that a file of ours carries; {} for others."""
    try:
        stated = json.loads(file.metadata.get(CONFIGS, "{}"))
    except ValueError:
        stated = None
    if not isinstance(stated, dict) or not all(isinstance(config, dict) for config in stated.values()):
        raise RequestError(f"{file.path}: its metadata {CONFIGS} is damaged; get it again")
    return stated


@dataclass(frozen=True)
class _Level:
    width: int
    layers: int
    attends: bool
    depth: int  # transformer blocks of each attention


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Of a UNet under LDM's names."""
    config = _encoder_config(shapes, _ldm_levels(shapes), ldm=True)
    kinds = ("UpBlock2D", "CrossAttnUpBlock2D")
    attends = [kind.startswith("CrossAttn") for kind in config["down_block_types"]]
    return {
        **config,
        "out_channels": shapes["out.2.weight"][0],
        "up_block_types": [kinds[each] for each in reversed(attends)],
    }


def controlnet_config(shapes: Shapes, *, ldm: bool) -> dict[str, Any]:
    """Of a ControlNet, under cldm's names or diffusers'."""
    config = _encoder_config(shapes, _ldm_levels(shapes) if ldm else _diffusers_levels(shapes), ldm=ldm)
    return {**config, **hint_config(shapes, ldm=ldm)}


def hint_config(shapes: Shapes, *, ldm: bool) -> dict[str, Any]:
    """Of a ControlNet's hint encoder: the channels of its map, and its widths."""
    if ldm:
        numbers = sorted(_numbers(shapes, "input_hint_block."))
        hint = [shapes[f"input_hint_block.{number}.weight"] for number in numbers]
    else:
        blocks = sorted(_numbers(shapes, "controlnet_cond_embedding.blocks."))
        names = ["conv_in", *(f"blocks.{number}" for number in blocks), "conv_out"]
        hint = [shapes[f"controlnet_cond_embedding.{name}.weight"] for name in names]
    if not hint:
        raise RequestError("it has no hint encoder; expected a ControlNet")
    # conv_in, then for each level one that keeps the width and one that goes to the next; conv_out.
    widths = [shape[0] for shape in hint[:-1:2]]
    return {"conditioning_channels": hint[0][1], "conditioning_embedding_out_channels": widths}


def vae_config(shapes: Shapes, *, scaling_factor: float, pixels: int) -> dict[str, Any]:
    """Of an autoencoder under LDM's names."""
    levels = len(_numbers(shapes, "encoder.down."))
    widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels)]
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": len(_numbers(shapes, "encoder.down.0.block.")),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "norm_num_groups": 32,
        "sample_size": pixels,
        "scaling_factor": scaling_factor,
    }


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Of CLIP-L under the names of transformers (`text_model.…`)."""
    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    layers = len(_numbers(shapes, "text_model.encoder.layers."))
    return _clip(vocabulary, width, layers, shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
                 shapes["text_model.embeddings.position_embedding.weight"][0], "quick_gelu", width)  # fmt: skip


def open_clip_config(shapes: Shapes, *, projected: bool) -> dict[str, Any]:
    """Of OpenCLIP under its own names. Without projection (SD 2.x) the last layer is left out too."""
    vocabulary, width = shapes["token_embedding.weight"]
    layers = len(_numbers(shapes, "transformer.resblocks.")) - (not projected)
    if "text_projection.weight" in shapes:
        projection = shapes["text_projection.weight"][0]
    else:
        projection = shapes.get("text_projection", (width, width))[1]
    return _clip(vocabulary, width, layers, shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
                 shapes["positional_embedding"][0], "gelu", projection)  # fmt: skip


def _clip(
    vocabulary: int, width: int, layers: int, inner: int, positions: int, activation: str, projection: int
) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(width),
        "max_position_embeddings": positions,
        "hidden_act": activation,
        "projection_dim": projection,
        # CLIP's vocabulary ends with them.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def _encoder_config(shapes: Shapes, levels: list[_Level], *, ldm: bool) -> dict[str, Any]:
    kinds = ("DownBlock2D", "CrossAttnDownBlock2D")
    middle = "middle_block.1." if ldm else "mid_block.attentions.0."
    projection = next((shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")), None)
    text = next((shape for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")), None)
    if projection is None or text is None:
        raise RequestError("the network has no attention; expected a Stable Diffusion")
    linear = len(projection) == 2
    mid_depth = len(_numbers(shapes, f"{middle}transformer_blocks."))
    # A level without attention is told the depth of the middle block if it is the last, which the middle block takes.
    depths = [level.depth if level.attends else 1 for level in levels]
    if not levels[-1].attends:
        depths[-1] = mid_depth or 1
    layers = [level.layers for level in levels]
    added = shapes.get("label_emb.0.0.weight" if ldm else "add_embedding.linear_1.weight")
    config: dict[str, Any] = {
        "in_channels": shapes["input_blocks.0.0.weight" if ldm else "conv_in.weight"][1],
        "block_out_channels": [level.width for level in levels],
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": [kinds[level.attends] for level in levels],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if mid_depth else "UNetMidBlock2D",
        "cross_attention_dim": text[1],
        "use_linear_projection": linear,
        # diffusers calls the number of heads by this name.
        "attention_head_dim": [_heads(level.width) for level in levels] if linear else 8,
        "norm_num_groups": 32,
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
    }
    if added is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_ID_WIDTH,
            "projection_class_embeddings_input_dim": added[1],
        }
    return config


def _ldm_levels(shapes: Shapes) -> list[_Level]:
    levels: list[_Level] = []
    found: list[tuple[int, bool, int]] = []
    for place in sorted(_numbers(shapes, "input_blocks."))[1:]:
        if f"input_blocks.{place}.0.op.weight" in shapes:
            levels.append(_level(found))
            found = []
        else:
            width = shapes[f"input_blocks.{place}.0.out_layers.3.weight"][0]
            attention = f"input_blocks.{place}.1."
            found.append(
                (width, f"{attention}norm.weight" in shapes, len(_numbers(shapes, f"{attention}transformer_blocks.")))
            )
    return [*levels, _level(found)]


def _diffusers_levels(shapes: Shapes) -> list[_Level]:
    levels = []
    for number in sorted(_numbers(shapes, "down_blocks.")):
        block = f"down_blocks.{number}"
        found = []
        for layer in sorted(_numbers(shapes, f"{block}.resnets.")):
            attention = f"{block}.attentions.{layer}."
            found.append(
                (
                    shapes[f"{block}.resnets.{layer}.conv2.weight"][0],
                    f"{attention}norm.weight" in shapes,
                    len(_numbers(shapes, f"{attention}transformer_blocks.")),
                )
            )
        levels.append(_level(found))
    return levels


def _level(found: list[tuple[int, bool, int]]) -> _Level:
    if len(set(found)) != 1:
        raise RequestError("the layers of one level differ in width or attention; expected a Stable Diffusion")
    width, attends, depth = found[0]
    return _Level(width, len(found), attends, depth)


def _heads(width: int) -> int:
    """64 wide each, in every published network but the UNets of SD 1.x."""
    if width % _HEAD_WIDTH:
        raise RequestError(
            f"a layer of width {width} does not tell its number of heads, and no published network has it; "
            f"expected a file of controlkit, which says, or a folder in diffusers' layout"
        )
    return width // _HEAD_WIDTH


def _numbers(names: Iterable[str], prefix: str) -> set[int]:
    """The numbers that follow a prefix: "a.1.x", "a.12.x" -> {1, 12}."""
    heads = (name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix))
    return {int(head) for head in heads if head.isdigit()}
