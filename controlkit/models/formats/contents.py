"""What a base in a single file consists of: which tensors are which component, and each component's config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from controlkit.errors import RequestError
from controlkit.models.formats import detect
from controlkit.models.formats.configs import open_clip_config, stated_configs, text_config, unet_config, vae_config
from controlkit.models.formats.names import Part
from controlkit.models.formats.prediction import Prediction, prediction_of
from controlkit.models.formats.text import text_from_open_clip, text_from_transformers
from controlkit.models.formats.unet import unet_from_ldm
from controlkit.models.formats.vae import vae_from_ldm, vae_part

if TYPE_CHECKING:
    import torch

    from controlkit.models.formats.reading import TensorFile

Layout = Literal["SD 1.x", "SD 2.x", "SDXL"]

VAE_PREFIX = "first_stage_model."
# Where each layout keeps its text encoders, as written; the second of a pair is OpenCLIP's under its own names.
TEXT_PREFIXES: dict[Layout, dict[str, str]] = {
    "SD 1.x": {"text_encoder": "cond_stage_model.transformer."},
    "SD 2.x": {"text_encoder": "cond_stage_model.model."},
    "SDXL": {
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
# How SD 1.x and 2.x look when they were saved by the code of SDXL.
_SGM_TEXT: dict[Layout, str] = {
    "SD 1.x": "conditioner.embedders.0.transformer.",
    "SD 2.x": "conditioner.embedders.0.model.",
}
_SCALING = {"SD 1.x": 0.18215, "SD 2.x": 0.18215, "SDXL": 0.13025}
_PIXELS = {"SD 1.x": 512, "SD 2.x": 512, "SDXL": 1024}
_REFINER_WIDTH = 1280
_CHANNELS = {5: "depth-to-image", 7: "an upscaler", 8: "InstructPix2Pix"}


@dataclass(frozen=True)
class Contents:
    """A base in a single file. `parts` and `configs` go by component: "unet", "vae", "text_encoder", …"""

    file: TensorFile
    layout: Layout
    parts: dict[str, Part]
    configs: dict[str, dict[str, Any]]
    prediction: Prediction

    @property
    def inpaints(self) -> bool:
        return bool(self.configs["unet"]["in_channels"] > self.configs["vae"]["latent_channels"])

    def tensors(self, component: str) -> dict[str, torch.Tensor]:
        """Of a component, under diffusers' and transformers' names."""
        theirs, config = self.parts[component].tensors(self.file), self.configs[component]
        if component == "unet":
            return unet_from_ldm(theirs, config)
        if component == "vae":
            return vae_from_ldm(theirs, config)
        projected = component == "text_encoder_2"
        if projected or self.layout == "SD 2.x":
            return text_from_open_clip(theirs, layers=config["num_hidden_layers"], projected=projected)
        return text_from_transformers(theirs)


def base_contents(file: TensorFile) -> Contents:
    """Refused in one line if the file is no whole Stable Diffusion, or one that nothing here can run."""
    if f"{detect.UNET_PREFIX}input_blocks.0.0.weight" not in file:
        raise RequestError(f"{file.path} is: {detect.kind_of(file)}; expected a base (a whole Stable Diffusion)")
    stated = stated_configs(file)
    unet = Part.of(file, detect.UNET_PREFIX)
    vae = vae_part(file, VAE_PREFIX)
    layout, texts = _texts(file)
    if "encoder.conv_in.weight" not in vae or "decoder.conv_in.weight" not in vae:
        raise RequestError(f"{file.path} holds no VAE; expected a whole Stable Diffusion, not its UNet alone")
    shapes = unet.shapes(file)
    if (kind := _CHANNELS.get(shapes["input_blocks.0.0.weight"][1])) is not None:
        raise RequestError(f"{file.path} is {kind} by its input channels; choose a text-to-image base")
    if ("label_emb.0.0.weight" in shapes) != (layout == "SDXL"):
        raise RequestError(f"{file.path} is an {layout} with other inputs (unCLIP, say); choose a text-to-image base")
    prediction = prediction_of(file, second=layout == "SD 2.x")
    try:
        configs = {
            "unet": stated.get("unet") or unet_config(shapes),
            "vae": stated.get("vae")
            or vae_config(vae.shapes(file), scaling_factor=_SCALING[layout], pixels=_PIXELS[layout]),
        }
        for component, part in texts.items():
            configs[component] = stated.get(component) or _text_config(component, part, file, layout)
    except (KeyError, IndexError, ValueError) as reason:
        if isinstance(reason, RequestError):
            raise RequestError(f"{file.path}: {reason}") from None
        raise RequestError(f"{file.path} lacks the tensor {reason}; it is no whole Stable Diffusion") from None
    if "unet" not in stated:
        configs["unet"]["sample_size"] = _latent_size(file, layout, prediction, configs["vae"])
    others = {name: config for name, config in stated.items() if name not in configs}
    return Contents(file, layout, {"unet": unet, "vae": vae, **texts}, configs | others, prediction)


def _texts(file: TensorFile) -> tuple[Layout, dict[str, Part]]:
    """The layout, which the text encoders tell, and their tensors."""
    refined = file.shapes.get("conditioner.embedders.0.model.ln_final.weight")
    if refined == (_REFINER_WIDTH,) and "conditioner.embedders.1.model.ln_final.weight" not in file:
        raise RequestError(f"{file.path} is the refiner of SDXL, which paints no picture of its own; choose a base")
    for layout in ("SDXL", "SD 2.x", "SD 1.x"):
        ways = [TEXT_PREFIXES[layout]]
        if layout in _SGM_TEXT:
            ways.append({"text_encoder": _SGM_TEXT[layout]})
        for prefixes in ways:
            parts = {component: Part.of(file, prefix) for component, prefix in prefixes.items()}
            if all(_is_text(part) for part in parts.values()):
                return layout, {
                    component: part if "ln_final.weight" in part else _only_text(part)
                    for component, part in parts.items()
                }
    raise RequestError(f"{file.path} holds no text encoder; expected a whole Stable Diffusion, not its UNet alone")


def _is_text(part: Part) -> bool:
    return any(name in part for name in ("ln_final.weight", "final_layer_norm.weight")) or any(
        name == "text_model.final_layer_norm.weight" for name in part
    )


def _only_text(part: Part) -> Part:
    """Without what stands beside the encoder in some files: projection, temperature, half a CLIP for pictures."""
    kept = ("text_model.", "embeddings.", "encoder.", "final_layer_norm.")
    return Part({name: there for name, there in part.items() if name.startswith(kept)})


def _text_config(component: str, part: Part, file: TensorFile, layout: Layout) -> dict[str, Any]:
    shapes = part.shapes(file)
    if component == "text_encoder_2" or layout == "SD 2.x":
        return open_clip_config(shapes, projected=component == "text_encoder_2")
    prefix = "text_model."
    return text_config({name if name.startswith(prefix) else prefix + name: shape for name, shape in shapes.items()})


def _latent_size(file: TensorFile, layout: Layout, prediction: Prediction, vae: dict[str, Any]) -> int:
    """Cells a side that it was trained at: as the file says, else as its family was."""
    pixels = _PIXELS[layout]
    if layout == "SD 2.x" and prediction.type == "v_prediction":
        pixels = 768
    side = file.metadata.get("modelspec.resolution", "").partition("x")[0]
    if side.isdigit() and int(side) > 0:
        pixels = int(side)
    factor: int = 2 ** (len(vae["block_out_channels"]) - 1)
    return max(1, pixels // factor)
