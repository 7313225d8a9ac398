"""What a model file is, told by the names of its tensors. Their order matters, since kinds share names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from controlkit.models.formats.reading import TensorFile

BASE = "base"
CONTROLNET = "ControlNet"
DIFFUSERS_CONTROLNET = "ControlNet, diffusers' names"
CONTROL_LORA = "Control-LoRA"
DIFFERENCE_CONTROLNET = "difference ControlNet"
VAE = "VAE"
DIFFUSERS_VAE = "VAE, diffusers' names"
LORA = "LoRA"
EMBEDDING = "textual inversion"
HYPERNETWORK = "hypernetwork"
UNKNOWN = "unknown"

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIXES = ("first_stage_model.", "vae.", "")
CONTROLNET_PREFIXES = ("control_model.", "")
RELATIVE_CONTROLNETS = (CONTROL_LORA, DIFFERENCE_CONTROLNET)
CONTROLNETS = (CONTROLNET, DIFFUSERS_CONTROLNET, *RELATIVE_CONTROLNETS)

_LORA_ANYWHERE = re.compile(
    r"\.lora_[AB]\.|\.lora\.(down|up)|_lora\.(down|up)|lora_linear_layer|hada_w1_a|lokr_w[12]|unet:\d+:up"
)
_LORA_START = re.compile(r"lora_unet_|lora_te\d?_|lycoris_")
_LORA_END = (".diff", ".on_input", ".w_norm")
_HYPERNETWORK = re.compile(r"\d+\.[01]\.linear[.12]")
_REFUSED_PARTS = {
    "motion_modules": "AnimateDiff",
    "temporal_res_block": "Stable Video Diffusion",
    "lora_layer": "CtrLoRA",
    "style_embedding": "T2I style adapter",
}


def kind_of(file: TensorFile) -> str:
    """One of the names above, or that of a kind which is only named ("IP-Adapter"), or UNKNOWN."""
    names = set(file)

    def has(*wanted: str) -> bool:
        return all(name in names for name in wanted)

    def some(test: Callable[[str], object]) -> bool:
        return any(test(name) for name in names)

    if has("lora_controlnet"):
        return CONTROL_LORA
    if some(lambda name: "lllite" in name):
        return "ControlNet-LLLite"
    if _is_embedding(file):
        return EMBEDDING
    if some(_HYPERNETWORK.match):
        return HYPERNETWORK
    if some(lambda name: _LORA_START.match(name) or _LORA_ANYWHERE.search(name) or name.endswith(_LORA_END)):
        return LORA
    if some(lambda name: name.startswith("image_proj.")) and some(lambda name: name.startswith("ip_adapter.")):
        return "IP-Adapter"
    for part, kind in _REFUSED_PARTS.items():
        if some(lambda name, part=part: part in name):  # type: ignore[misc]
            return kind
    for prefix in CONTROLNET_PREFIXES:
        if has(f"{prefix}zero_convs.0.0.weight"):
            return DIFFERENCE_CONTROLNET if has("difference") else CONTROLNET
    if has("controlnet_cond_embedding.conv_in.weight"):
        union = has("task_embedding") or has("control_add_embedding.linear_1.bias")
        return "ControlNet-Union" if union else DIFFUSERS_CONTROLNET
    if has("adapter.body.0.resnets.0.block1.weight") or has("body.0.in_conv.weight") or has("body.0.block2.weight"):
        return "T2I-Adapter"
    if has(f"{UNET_PREFIX}input_blocks.0.0.weight"):
        return BASE
    if has("conv_out.weight", "time_embedding.linear_1.weight"):
        return "UNet, diffusers' names"
    if vae_prefix(names) is not None:
        return VAE
    if some(lambda name: name.startswith("encoder.down_blocks.0.")):
        return DIFFUSERS_VAE
    if len(file.shapes.get("encoder.layers.0.weight", ())) == 4 or has("1.conv.0.weight") or has("3.conv.0.weight"):
        return "TAESD"
    if some(lambda name: re.match(r"(text_model\.)?encoder\.layers\.0\.self_attn\.", name)):
        return "CLIP text encoder"
    return UNKNOWN


def vae_prefix(names: Iterable[str]) -> str | None:
    """What stands before the names of an autoencoder of LDM."""
    names = set(names)
    return next((prefix for prefix in VAE_PREFIXES if f"{prefix}encoder.conv_in.weight" in names
                 and f"{prefix}encoder.down.0.block.0.norm1.weight" in names), None)  # fmt: skip


def _is_embedding(file: TensorFile) -> bool:
    """A few vectors as wide as a text encoder, under one of the names that tools give them, or a token's."""
    names = set(file)
    if not names:
        return False
    if any(name.startswith("string_to_param.") for name in names) or "emb_params" in names:
        return True
    if names <= {"clip_l", "clip_g", "clip_l_out", "clip_g_out"}:
        return True
    return len(names) < 10 and all(
        1 <= len(shape) <= 2 and shape[-1] in (768, 1024, 1280) and "." not in name
        for name, shape in file.shapes.items()
    )
