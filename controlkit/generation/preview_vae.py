"""A tiny decoder for previews: an AutoencoderTiny of diffusers, or a decoder file of TAESD, whose network that is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.formats.reading import read_tensors
from controlkit.models.formats.single_file import fitted
from controlkit.models.locate import read_json
from controlkit.models.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch

    from controlkit.models.bases import Base


@dataclass(frozen=True)
class PreviewVae:
    """Found and checked; `tensors` are a file's, under diffusers' names, None of a folder."""

    path: Path
    model: Any  # of that config, without weights
    tensors: dict[str, torch.Tensor] | None

    def load(self, dtype: torch.dtype, device: torch.device) -> Any:
        """The network; of a file its decoder alone has weights."""
        if self.tensors is None:
            from diffusers import AutoencoderTiny

            model = AutoencoderTiny.from_pretrained(self.path, local_files_only=True)
            return model.to(device, dtype).eval()
        self.model.decoder.load_state_dict(self.tensors, assign=True)
        self.model.decoder.to(device, dtype)
        return self.model


def find_preview_vae(path: Path, base: Base) -> PreviewVae:
    """Refused where it is none, or reads other latents than the base's."""
    path = path.expanduser()
    if not path.exists():
        raise RequestError(f"--preview-vae {path}: no such file or folder")
    model = _empty(path)
    channels, factor = model.config.latent_channels, 2 ** (len(model.config.decoder_block_out_channels) - 1)
    if (channels, factor) != (base.latent_channels, base.vae_factor):
        raise RequestError(
            f"--preview-vae {path} reads latents of {channels} channels and enlarges them by {factor}, base "
            f"{base.name!r} has {base.latent_channels} and {base.vae_factor}; choose one of its family"
        )
    return PreviewVae(path, model, None if path.is_dir() else _decoder_of(path, model))


def _empty(path: Path) -> Any:
    from accelerate import init_empty_weights

    quiet_libraries()
    from diffusers import AutoencoderTiny

    config: dict[str, Any] = {}  # a file says nothing: it is TAESD's own shape, diffusers' default
    if path.is_dir():
        config = read_json(path / "config.json")
        if (found := config.get("_class_name")) != "AutoencoderTiny":
            raise RequestError(f"--preview-vae {path}: its config.json is of a {found}, expected an AutoencoderTiny")
    with init_empty_weights():
        return AutoencoderTiny.from_config(config).eval()


def _decoder_of(path: Path, model: Any) -> dict[str, torch.Tensor]:
    """In diffusers' files the decoder stands beside the encoder. TAESD's is a chain of its own, whose first link clamps
    and has no weights, so that its numbers are one higher."""
    file, prefix = read_tensors(path), "decoder."
    if any(name.startswith(prefix) for name in file):
        tensors = {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}
    else:
        numbered = {name: re.fullmatch(r"(\d+)\.(.+)", name) for name in file}
        tensors = {
            f"layers.{int(match[1]) - 1}.{match[2]}" if match else name: file[name] for name, match in numbered.items()
        }
    return fitted(model.decoder, tensors, f"--preview-vae {path}")
