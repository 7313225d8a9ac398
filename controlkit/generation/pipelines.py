"""diffusers' pipeline for a base and its ControlNets, put together from parts that are loaded or trained elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    import torch
    from diffusers import ControlNetModel

    from controlkit.models.bases import Base
    from controlkit.models.formats.vae_file import Vae


def load_parts(
    base: Base, *, dtype: torch.dtype, device: torch.device | str, locked: bool = False, vae: Vae | None = None
) -> dict[str, Any]:
    """UNet, VAE (the base's own, or the one given), text encoders and tokenizers of a base, ready to compute.

    `locked` is for training: no parameter asks for a gradient. Painting leaves them as they are, since PyTorch chooses
    other kernels for parameters that ask for none, and the pixels would differ from those of diffusers' own loading.
    """
    parts: dict[str, Any] = {}
    for name in ["unet", "vae", *(f"text_encoder{suffix}" for suffix in base.text_parts())]:
        loaded = vae.load(torch_dtype=dtype) if name == "vae" and vae else base.load(name, torch_dtype=dtype)
        parts[name] = loaded.to(device).eval()
        if locked:
            parts[name].requires_grad_(False)
    for suffix in base.text_parts():
        parts[f"tokenizer{suffix}"] = base.load(f"tokenizer{suffix}")
    return parts


def control_pipeline(base: Base, parts: dict[str, Any], controlnets: list[ControlNetModel], scheduler: Any) -> Any:
    """The text-to-image pipeline of the base's family under these ControlNets."""
    from diffusers import StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline

    if base.inpaints:
        raise RequestError(
            f"base {base.name!r} is an inpainting base ({base.unet['in_channels']} channels), which cannot paint from "
            f"text alone; choose its text-to-image sibling"
        )
    controlnet = controlnets[0] if len(controlnets) == 1 else controlnets
    if base.is_xl:
        empty_is_zero = bool(base.index.get("force_zeros_for_empty_prompt", True))
        pipeline: Any = StableDiffusionXLControlNetPipeline(
            **parts,
            controlnet=controlnet,
            scheduler=scheduler,
            force_zeros_for_empty_prompt=empty_is_zero,
            add_watermarker=False,
        )
    else:
        pipeline = StableDiffusionControlNetPipeline(
            **parts,
            controlnet=controlnet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
