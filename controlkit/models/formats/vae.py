"""The autoencoder: diffusers' names and LDM's. LDM counts the decoder's levels from the picture, diffusers from the
latents; and LDM's attention is made of 1x1 convolutions, diffusers' of linear layers: the same numbers, two axes more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.models.formats.names import Part, inverse, rename, renamed

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from controlkit.models.formats.names import Tensors

_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_ATTENTION_BEFORE_2023 = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LINEAR = tuple(f"mid_block.attentions.0.{name}.weight" for name in _ATTENTION if name != "group_norm")
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def vae_part(names: Iterable[str], prefix: str) -> Part:
    """The autoencoder among the tensors of a file, under whichever names; not what was saved beside it."""
    return Part({name: there for name, there in Part.of(names, prefix).items() if name.startswith(_PARTS)})


def vae_from_ldm(tensors: Tensors, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    ours = rename(tensors, inverse(vae_table(config)), "VAE")
    return {key: value.flatten(1) if key.endswith(_LINEAR) else value for key, value in ours.items()}


def vae_to_ldm(tensors: Tensors, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    old = {
        f"{half}.mid_block.attentions.0.{before}": f"{half}.mid_block.attentions.0.{now}"
        for half in ("encoder", "decoder")
        for before, now in _ATTENTION_BEFORE_2023.items()
    }
    ours = {renamed(key, old) or key: value for key, value in tensors.items()}
    shaped = {
        key: value[..., None, None] if key.endswith(_LINEAR) and value.ndim == 2 else value
        for key, value in ours.items()
    }
    return rename(shaped, vae_table(config), "VAE")


def vae_table(config: dict[str, Any]) -> dict[str, str]:
    """diffusers' module -> LDM's module, for the autoencoder of that config."""
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for half in ("encoder", "decoder"):
        table |= {f"{half}.conv_in": f"{half}.conv_in", f"{half}.conv_out": f"{half}.conv_out"}
        table[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for number in range(2):
            table |= _resnet(f"{half}.mid_block.resnets.{number}", f"{half}.mid.block_{number + 1}")
        for name, other in _ATTENTION.items():
            table[f"{half}.mid_block.attentions.0.{name}"] = f"{half}.mid.attn_1.{other}"
    for level in range(levels):
        for number in range(layers):
            table |= _resnet(f"encoder.down_blocks.{level}.resnets.{number}", f"encoder.down.{level}.block.{number}")
        table[f"encoder.down_blocks.{level}.downsamplers.0"] = f"encoder.down.{level}.downsample"
        from_picture = levels - 1 - level
        for number in range(layers + 1):
            table |= _resnet(f"decoder.up_blocks.{level}.resnets.{number}", f"decoder.up.{from_picture}.block.{number}")
        table[f"decoder.up_blocks.{level}.upsamplers.0"] = f"decoder.up.{from_picture}.upsample"
    return table


def _resnet(here: str, there: str) -> dict[str, str]:
    names = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
    return {f"{here}.{name}": f"{there}.{other}" for name, other in names.items()}
