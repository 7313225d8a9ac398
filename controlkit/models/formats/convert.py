"""Whole models from one layout to the other: diffusers' folders and single files as webuis read them.

Every tensor that a network uses arrives bit for bit and in its own precision. What stands beside in a training's file
(averages of the weights, the schedule's tables, the optimizer) is left behind. Files written here carry the configs, so
that the way back needs no guess.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.files import atomic_folder, atomic_path
from controlkit.models.bases import Base, find_base
from controlkit.models.controlnets import ControlNet, find_controlnet
from controlkit.models.formats import detect
from controlkit.models.formats.configs import CONFIGS
from controlkit.models.formats.contents import TEXT_PREFIXES, VAE_PREFIX, Layout
from controlkit.models.formats.controlnet_file import CONDITION, FileControlNet, RelativeControlNet
from controlkit.models.formats.reading import DIFFUSERS_WEIGHTS, read_tensors
from controlkit.models.formats.relative import control_lora_file
from controlkit.models.formats.single_file import FileBase, empty_model, fitted
from controlkit.models.formats.text import text_from_transformers, text_to_open_clip, write_text_encoder
from controlkit.models.formats.unet import controlnet_to_ldm, unet_to_ldm
from controlkit.models.formats.vae import vae_to_ldm
from controlkit.models.locate import NOTES

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_ARCHITECTURES: dict[Layout, str] = {
    "SD 1.x": "stable-diffusion-v1", "SD 2.x": "stable-diffusion-v2-512", "SDXL": "stable-diffusion-xl-v1-base",
}  # fmt: skip


def find_model(
    name: str, *, prediction: str | None = None, tokenizer: str | None = None, base: str | None = None
) -> Base | ControlNet:
    """What a folder or file is, a base or a ControlNet; any other kind is refused by its name. `base` is what a
    ControlNet adds to, where the file holds no more than that."""
    from pathlib import Path

    path = Path(name).expanduser()
    if path.is_file():
        kind = detect.kind_of(read_tensors(path))
        if kind not in (detect.BASE, *detect.CONTROLNETS):
            raise RequestError(f"{name} is: {kind}; expected a base or a ControlNet")
        is_base = kind == detect.BASE
    else:
        is_base = not (path / "config.json").is_file()
    if not is_base and (prediction or tokenizer):
        raise RequestError(
            f"{name} is a ControlNet, for which --prediction and --tokenizer mean nothing; leave them out"
        )
    net = None if is_base else find_controlnet(name)
    if base is not None and not isinstance(net, RelativeControlNet):
        raise RequestError(f"{name} is whole and is added to no base; leave out --base")
    if net is None:
        return find_base(name, prediction=prediction, tokenizer=tokenizer)
    return net.on(find_base(base)) if base is not None else net


def to_diffusers(model: Base | ControlNet, out: Path) -> None:
    """Write a model that is a single file as a folder in diffusers' layout."""
    _need_free(out)
    if isinstance(model, FileControlNet):
        with atomic_folder(out) as folder:
            _write_component(folder, "controlnet", model.config, model.tensors(), f"ControlNet {model.name!r}")
            if model.condition:
                (folder / NOTES).write_text(json.dumps({"condition": model.condition}, indent=2) + "\n")
    elif isinstance(model, FileBase):
        with atomic_folder(out) as folder:
            _write_base(folder, model)
    else:
        raise RequestError(f"{model.name} is in diffusers' layout already; expected a single file")


def to_webui(model: Base | ControlNet, out: Path) -> None:
    """Write a model that is a folder in diffusers' layout, or has diffusers' names, as one file under LDM's names."""
    _need_free(out)
    if isinstance(model, Base):
        if isinstance(model, FileBase):
            raise RequestError(f"{model.name} is a single file already; expected a folder in diffusers' layout")
        tensors, metadata = _base_file(model)
    else:
        if isinstance(model, FileControlNet) and model.ldm:
            raise RequestError(f"{model.name} has the names of webuis already; expected diffusers' layout")
        tensors, metadata = _controlnet_file(model)
    _write_file(out, tensors, metadata)


def save_webui(net: ControlNet, out: Path) -> None:
    """Write a ControlNet as `to_webui` does, in the place of what there may be."""
    _write_file(out, *_controlnet_file(net))


def save_control_lora(
    tensors: dict[str, torch.Tensor], config: dict[str, Any], condition: str | None, out: Path
) -> None:
    """Write what a ControlNet adds to its base, given under diffusers' names, as a Control-LoRA's file."""
    _write_file(out, control_lora_file(tensors, config), _net_metadata(config, "control-lora", out.stem, condition))


def layout_of(base: Base) -> Layout:
    """Which of the original layouts a base has, by the structure of its UNet."""
    if base.is_xl:
        return "SDXL"
    return "SD 2.x" if base.unet.get("use_linear_projection") else "SD 1.x"


def _need_free(out: Path) -> None:
    if out.exists():
        raise RequestError(f"{out} exists; choose another name, or remove it")


def _write_base(folder: Path, base: FileBase) -> None:
    import diffusers

    components = [name for name in base.index if not name.startswith("_") and isinstance(base.index[name], list)]
    for component in components:
        if component == "scheduler":
            _write_json(folder / component / "scheduler_config.json", base.scheduler)
        elif component.startswith("tokenizer"):
            base.load(component).save_pretrained(folder / component)
        else:
            config, what = base.contents.configs[component], f"base {base.name!r}"
            _write_component(folder / component, component, config, base.contents.tensors(component), what)
    index = {"_diffusers_version": diffusers.__version__, "feature_extractor": [None, None], **base.index}
    if not base.is_xl:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    _write_json(folder / "model_index.json", dict(sorted(index.items())))


def _write_component(
    folder: Path, component: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], what: str
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    model = empty_model(component, config)
    fitted(model, tensors, what)
    if component.startswith("text_encoder"):
        write_text_encoder(folder, model, tensors)
        return
    model.save_config(folder)
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(whole, folder / f"{DIFFUSERS_WEIGHTS}.safetensors", metadata={"format": "pt"})


def _write_file(out: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with atomic_path(out) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished, metadata=metadata)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _base_file(base: Base) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    import torch

    layout = layout_of(base)
    tensors = _prefixed(detect.UNET_PREFIX, unet_to_ldm(base.tensors("unet"), base.unet))
    tensors |= _prefixed(VAE_PREFIX, vae_to_ldm(base.tensors("vae"), base.vae))
    configs: dict[str, Any] = {"unet": base.unet, "vae": base.vae, "scheduler": base.scheduler}
    for component, prefix in TEXT_PREFIXES[layout].items():
        ours = base.tensors(component)
        open_clip = prefix.endswith(".model.")
        tensors |= _prefixed(prefix, text_to_open_clip(ours) if open_clip else text_from_transformers(ours))
        configs[component] = base.config(component)
        tokenizer = component.replace("text_encoder", "tokenizer")
        configs[tokenizer] = {"pad_token": str(base.load(tokenizer).pad_token)}
    if base.is_xl:
        configs["model_index"] = {"force_zeros_for_empty_prompt": base.index.get("force_zeros_for_empty_prompt", True)}
    architecture = _ARCHITECTURES[layout]
    if base.prediction_type == "v_prediction":
        architecture = architecture.replace("v2-512", "v2-768-v")
        tensors["v_pred"] = torch.zeros(0)
        if base.scheduler.get("rescale_betas_zero_snr"):
            tensors["ztsnr"] = torch.zeros(0)
    if base.inpaints:
        architecture = architecture.removesuffix("-512") + "-inpainting"
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}.get(base.prediction_type)
    return tensors, {
        **_modelspec(architecture, base.folder.name, f"{base.native_size}x{base.native_size}"),
        **({"modelspec.prediction_type": prediction} if prediction else {}),
        CONFIGS: json.dumps(configs),
    }


def _controlnet_file(net: ControlNet) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if net.is_union:
        raise RequestError(
            f"ControlNet {net.name!r} reads {' and '.join(net.conditions)} at once, and webuis hand a ControlNet one "
            f"map; it stays in diffusers' layout"
        )
    metadata = {
        **_net_metadata(net.config, "controlnet", net.folder.name, net.condition),
        CONFIGS: json.dumps({"controlnet": net.config}),
    }
    return _prefixed("control_model.", controlnet_to_ldm(net.tensors(), net.config)), metadata


def _net_metadata(config: dict[str, Any], kind: str, title: str, condition: str | None) -> dict[str, str]:
    if config.get("addition_embed_type") == "text_time":
        layout: Layout = "SDXL"
    else:
        layout = "SD 2.x" if config.get("use_linear_projection") else "SD 1.x"
    trained_on = {CONDITION: condition, "modelspec.preprocessor": condition} if condition else {}
    return {**_modelspec(f"{_ARCHITECTURES[layout]}/{kind}", title, None), **trained_on}


def _modelspec(architecture: str, title: str, resolution: str | None) -> dict[str, str]:
    """What model managers read."""
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.architecture": architecture,
        "modelspec.title": title,
        **({"modelspec.resolution": resolution} if resolution else {}),
    }


def _prefixed(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}
