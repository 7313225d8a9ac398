"""A ControlNet: made from a base's UNet, saved, found, checked against a base, loaded.

The UNet stays locked. The ControlNet is a trainable copy of its encoder and middle block, a hint encoder that brings
the control map down to the latent grid, and zero convolutions that join the two: at the start they add exactly nothing
(ControlNet, arXiv:2302.05543, Eq. 3).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.files import atomic_folder, atomic_write_text
from controlkit.models.bases import Base, family
from controlkit.models.locate import NOTES, embedded, find_folder, read_json
from controlkit.models.map_hint import CHANNELS
from controlkit.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from diffusers import ControlNetModel, UNet2DConditionModel
    from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding


SILU_GAIN = 1.6765
"""1 / sqrt(E[silu(z)²]) of a standard normal z: a layer whose weights have this spread, over the root of the number of
its inputs, hands on as much as it is given."""


@dataclass(frozen=True)
class ControlNet:
    """A ControlNet on disk: its name as it was asked for, its folder, its config."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.folder / "config.json")

    @cached_property
    def notes(self) -> dict[str, Any]:
        """What it was trained on, where its folder says so."""
        notes = self.folder / NOTES
        return read_json(notes) if notes.exists() else {}

    @property
    def conditions(self) -> tuple[str, ...]:
        """The control types it was trained on, in the order of its hint's channels, where its folder says so."""
        said = self.notes.get("condition") or ()
        return (said,) if isinstance(said, str) else tuple(said)

    @property
    def condition(self) -> str | None:
        """The control type it was trained on, where it is one and known."""
        return self.conditions[0] if len(self.conditions) == 1 else None

    @property
    def is_union(self) -> bool:
        """Whether it reads maps of several types at once (`map_hint.py`)."""
        return len(self.conditions) > 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its weights as they are kept, under diffusers' names."""
        from controlkit.models.formats.reading import folder_tensors

        return folder_tensors(self.folder)

    def load(self, **options: Any) -> ControlNetModel:
        from diffusers import ControlNetModel

        quiet_libraries()
        return ControlNetModel.from_pretrained(self.folder, local_files_only=True, **options)

    def on(self, base: Base) -> ControlNet:
        """The ControlNet as it is used with this base; refused if it was not made for it. Reads no weight."""
        self.check_fits(base)
        return self

    def check_fits(self, base: Base) -> None:
        """Refuse a base that this net was not made for, naming both; reads configs alone."""
        ours, theirs = self.config, base.unet
        if family(ours) != family(theirs):
            raise RequestError(
                f"ControlNet {self.name!r} was made for {family(ours)}, base {base.name!r} is {base.family}; "
                f"choose a base of the ControlNet's family"
            )
        for key in ("block_out_channels", "layers_per_block"):
            if ours[key] != theirs[key]:
                raise RequestError(
                    f"ControlNet {self.name!r} has {key} {ours[key]}, base {base.name!r} has {theirs[key]}; "
                    f"choose the base that it was trained on"
                )
        expected = CHANNELS * max(1, len(self.conditions))
        if (channels := ours.get("conditioning_channels", CHANNELS)) != expected:
            of = f" for {' and '.join(self.conditions)} ({NOTES})" if self.is_union else ""
            raise RequestError(
                f"ControlNet {self.name!r} reads maps of {channels} channels; expected one that reads {expected}{of}"
            )
        factor = hint_factor(ours)
        if factor != base.vae_factor:
            raise RequestError(
                f"ControlNet {self.name!r} reduces its map by {factor}, the VAE of base {base.name!r} by "
                f"{base.vae_factor}; choose the base that it was trained on"
            )


def hint_channels(vae_factor: int) -> tuple[int, ...]:
    """Widths of the hint encoder: each after the first halves the map, so that it ends on the latent grid."""
    widths = (16, 32, 96, 256)
    count = vae_factor.bit_length()  # log2 + 1
    return widths[:count] + widths[-1:] * (count - len(widths))


def hint_factor(controlnet_config: dict[str, Any]) -> int:
    """By how much a ControlNet reduces its map."""
    factor: int = 2 ** (len(controlnet_config["conditioning_embedding_out_channels"]) - 1)
    return factor


def make_controlnet(
    unet: UNet2DConditionModel,
    *,
    vae_factor: int,
    latent_channels: int,
    seed: int,
    types: int = 1,
    weights: dict[str, torch.Tensor] | None = None,
) -> ControlNetModel:
    """A fresh ControlNet for this UNet, of its weights or those given, which reads maps of so many types. Its hint
    encoder is random, so it is a function of `seed`.

    From a 9-channel base it takes the latent channels alone: mask and masked picture are the UNet's own business, and
    the pipelines hand a ControlNet nothing else.
    """
    import torch
    from diffusers import ControlNetModel

    quiet_libraries()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet = ControlNetModel.from_unet(
            unet,
            conditioning_embedding_out_channels=hint_channels(vae_factor),
            conditioning_channels=CHANNELS * types,
            load_weights_from_unet=False,
        )
        if controlnet.config["in_channels"] != latent_channels:
            torch.manual_seed(seed)
            controlnet = ControlNetModel.from_config({**controlnet.config, "in_channels": latent_channels})
        torch.manual_seed(seed)
        let_maps_through(controlnet.controlnet_cond_embedding)
    own = controlnet.state_dict()
    weights = unet.state_dict() if weights is None else weights
    copied = {key: value for key, value in weights.items() if key in own}
    copied["conv_in.weight"] = copied["conv_in.weight"][:, :latent_channels]
    left = controlnet.load_state_dict(copied, strict=False)
    strange = [key for key in left.missing_keys if not key.startswith("controlnet_")]
    assert not strange, f"not in the UNet: {strange}"
    return controlnet


def let_maps_through(encoder: ControlNetConditioningEmbedding) -> None:
    """Draw the weights of a hint encoder anew, so that a map is as strong behind its layers as before them.

    As PyTorch draws them, each layer keeps a third of what the map says and adds a bias of its own: behind the seven
    layers for SD's VAE some hundred-thousandths are left beside a hundredth of bias. A training then has next to
    nothing to learn from, and walks for long before it suddenly sees the map. The last convolution stays zero.
    """
    import torch

    for layer in [encoder.conv_in, *encoder.blocks]:
        fan_in = layer.weight[0].numel()
        torch.nn.init.normal_(layer.weight, std=SILU_GAIN / fan_in**0.5)
        torch.nn.init.zeros_(layer.bias)


def begin_controlnet(
    base: Base, unet: UNet2DConditionModel, start: str | None, seed: int, types: int = 1
) -> ControlNetModel:
    """What a training begins from: the ControlNet named `start`, in float32, or a fresh one for so many types. What
    that copies is the base as it is kept, since `unet` may have been rounded to a lower precision."""
    import torch

    if start is None:
        return make_controlnet(
            unet,
            vae_factor=base.vae_factor,
            latent_channels=base.latent_channels,
            seed=seed,
            types=types,
            weights=None if unet.dtype == torch.float32 else base.tensors("unet"),
        )
    return find_controlnet(start).on(base).load(torch_dtype=torch.float32)


def save_controlnet(controlnet: ControlNetModel, folder: Path, notes: dict[str, Any]) -> None:
    """In diffusers' layout, whole or not at all; `notes` say what it was trained on."""
    quiet_libraries()
    with atomic_folder(folder) as unfinished:
        controlnet.save_pretrained(unfinished, safe_serialization=True)
        atomic_write_text(unfinished / NOTES, json.dumps(notes, indent=2) + "\n")


def find_controlnet(name: str) -> ControlNet:
    """A ControlNet by embedded name, folder, single file or hub id."""
    names = embedded_controlnets()
    if name not in names and Path(name).expanduser().is_file():
        from controlkit.models.formats.controlnet_file import open_controlnet

        return open_controlnet(name)
    folder = find_folder(name, "ControlNet", "config.json", names, lambda: _download(name))
    controlnet = ControlNet(name, folder)
    if (found := controlnet.config.get("_class_name")) != "ControlNetModel":
        raise RequestError(f"ControlNet {name!r}: its config.json is of a {found}, expected a ControlNetModel")
    return controlnet


def embedded_controlnets() -> dict[str, Callable[[], Path]]:
    """The ControlNets that come with the package."""
    return {name: partial(Path, folder) for name, folder in embedded("config.json").items()}


def embedded_for(base: Base, condition: str) -> ControlNet | None:
    """The one that comes with the package for maps of this type, trained on this base or on what it was made of."""
    bases = [base.name, *([base.rest.name] if base.rest else [])]
    for name, folder in embedded_controlnets().items():
        controlnet = ControlNet(name, folder())
        if controlnet.condition == condition and controlnet.notes.get("base") in bases:
            return controlnet
    return None


def _download(name: str) -> str:
    from huggingface_hub import snapshot_download

    patterns = ["config.json", NOTES, "diffusion_pytorch_model*.safetensors", "*.index.json"]
    folder: str = snapshot_download(name, allow_patterns=patterns)
    return folder
