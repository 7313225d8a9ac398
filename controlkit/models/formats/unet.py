"""UNet and ControlNet: diffusers' names and those of the original code (LDM, sgm, cldm). No tensor changes.

The original counts its blocks in one row, downsamplers among them; where attention stands comes from the config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.models.formats.names import inverse, rename

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from controlkit.models.formats.names import Tensors, Value

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def unet_from_ldm(tensors: Tensors, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return rename(tensors, inverse(unet_table(config)), "UNet")


def unet_to_ldm(tensors: Tensors, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return rename(tensors, unet_table(config), "UNet")


def controlnet_from_ldm(tensors: Mapping[str, Value], config: dict[str, Any]) -> dict[str, Value]:
    return rename(tensors, inverse(controlnet_table(config)), "ControlNet")


def controlnet_to_ldm(tensors: Tensors, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    return rename(tensors, controlnet_table(config), "ControlNet")


def unet_table(config: dict[str, Any]) -> dict[str, str]:
    """diffusers' module -> LDM's module, for the UNet of that config."""
    table = {**_encoder(config), "conv_norm_out": "out.0", "conv_out": "out.2"}
    levels = len(config["block_out_channels"])
    layers = _layers(config)[::-1]
    place = 0
    for level, kind in enumerate(config["up_block_types"]):
        attends = "CrossAttn" in kind
        for number in range(layers[level] + 1):
            table |= _resnet(f"up_blocks.{level}.resnets.{number}", f"output_blocks.{place}.0")
            if attends:
                table[f"up_blocks.{level}.attentions.{number}"] = f"output_blocks.{place}.1"
            place += 1
        if level < levels - 1:
            # It follows the last resnet of the level within the same block.
            table[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{place - 1}.{1 + attends}.conv"
    return table


def controlnet_table(config: dict[str, Any]) -> dict[str, str]:
    """diffusers' module -> cldm's module, for the ControlNet of that config."""
    table = _encoder(config)
    blocks = 2 * (len(config["conditioning_embedding_out_channels"]) - 1)
    hint = ["conv_in", *(f"blocks.{number}" for number in range(blocks)), "conv_out"]
    for number, name in enumerate(hint):
        table[f"controlnet_cond_embedding.{name}"] = f"input_hint_block.{2 * number}"  # activations stand between
    zero_convs = sum(_layers(config)) + len(config["block_out_channels"])
    for number in range(zero_convs):
        table[f"controlnet_down_blocks.{number}"] = f"zero_convs.{number}.0"
    table["controlnet_mid_block"] = "middle_block_out.0"
    return table


def _encoder(config: dict[str, Any]) -> dict[str, str]:
    """What UNet and ControlNet share: embeddings, down blocks, middle block."""
    table = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.attentions.0": "middle_block.1",
        **_resnet("mid_block.resnets.0", "middle_block.0"),
        **_resnet("mid_block.resnets.1", "middle_block.2"),
    }
    layers = _layers(config)
    place = 1
    for level, kind in enumerate(config["down_block_types"]):
        for number in range(layers[level]):
            table |= _resnet(f"down_blocks.{level}.resnets.{number}", f"input_blocks.{place}.0")
            if "CrossAttn" in kind:
                table[f"down_blocks.{level}.attentions.{number}"] = f"input_blocks.{place}.1"
            place += 1
        if level < len(layers) - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{place}.0.op"
            place += 1
    return table


def _resnet(here: str, there: str) -> dict[str, str]:
    return {f"{here}.{name}": f"{there}.{other}" for name, other in _RESNET.items()}


def _layers(config: dict[str, Any]) -> list[int]:
    """Resnets a level of the encoder."""
    layers = config["layers_per_block"]
    return [layers] * len(config["block_out_channels"]) if isinstance(layers, int) else list(layers)
