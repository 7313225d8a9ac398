"""diffusers' pipeline for a task, a base and its ControlNets, from parts that are loaded or trained elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    import torch
    from diffusers import ControlNetModel

    from controlkit.models.bases import Base
    from controlkit.models.formats.vae_file import Vae

FROM_TEXT = "text"
FROM_PICTURE = "picture"
INPAINTED = "hole"

# (task, with ControlNets) -> the pipeline of SD 1.x and 2.x, that of SDXL.
PIPELINES = {
    (FROM_TEXT, False): ("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
    (FROM_TEXT, True): ("StableDiffusionControlNetPipeline", "StableDiffusionXLControlNetPipeline"),
    (FROM_PICTURE, False): ("StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"),
    (FROM_PICTURE, True): ("StableDiffusionControlNetImg2ImgPipeline", "StableDiffusionXLControlNetImg2ImgPipeline"),
    (INPAINTED, False): ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
    (INPAINTED, True): ("StableDiffusionControlNetInpaintPipeline", "StableDiffusionXLControlNetInpaintPipeline"),
}


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
    return make_pipeline(FROM_TEXT, base, parts, controlnets, scheduler)


def make_pipeline(
    task: str, base: Base, parts: dict[str, Any], controlnets: list[ControlNetModel], scheduler: Any
) -> Any:
    """diffusers' pipeline for that task and the base's family, under these ControlNets or none."""
    import diffusers

    if task != INPAINTED:
        need_latent_channels(base)
    kind = getattr(diffusers, PIPELINES[task, bool(controlnets)][base.is_xl])
    options = {**parts, "scheduler": scheduler}
    if controlnets:
        options["controlnet"] = controlnets[0] if len(controlnets) == 1 else controlnets
    if base.is_xl:
        options["force_zeros_for_empty_prompt"] = bool(base.index.get("force_zeros_for_empty_prompt", True))
        options["add_watermarker"] = False
    else:
        options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = kind(**options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def nets_of(pipeline: Any) -> list[Any]:
    """The ControlNets of a pipeline: none, one or several."""
    controlnet = getattr(pipeline, "controlnet", None)
    return list(getattr(controlnet, "nets", [] if controlnet is None else [controlnet]))


def unet_of(pipeline: Any) -> Any:
    """The UNet that computes: where a pipeline paints in tiles, the one that is asked for each of them."""
    return getattr(pipeline.unet, "of_tile", pipeline.unet)


def need_latent_channels(base: Base) -> None:
    """Refuse a base whose UNet takes more than latents."""
    if base.inpaints:
        raise RequestError(
            f"base {base.name!r} is an inpainting base ({base.unet['in_channels']} channels), which cannot paint from "
            f"text alone; choose its text-to-image sibling"
        )
