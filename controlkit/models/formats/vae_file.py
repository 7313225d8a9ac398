"""An autoencoder of one's own in the place of the base's: a file under LDM's names or diffusers', or a folder.

The autoencoders of SD 1.x and SDXL are alike to the last shape; only the factor by which their latents are scaled tells
them apart, and no file holds it. So a file gets the base's config, and a folder's has to agree with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.formats import detect
from controlkit.models.formats.reading import TensorFile, read_tensors
from controlkit.models.formats.single_file import empty_model, fill, fitted
from controlkit.models.formats.vae import vae_from_ldm, vae_part
from controlkit.models.locate import read_json

if TYPE_CHECKING:
    import torch

    from controlkit.models.bases import Base

_AGREE = ("latent_channels", "block_out_channels", "scaling_factor", "in_channels")


@dataclass(frozen=True)
class Vae:
    """An autoencoder on disk; of a folder `file` is None."""

    name: str
    path: Path
    config: dict[str, Any]
    file: TensorFile | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Of a file, under diffusers' names."""
        assert self.file is not None
        prefix = detect.vae_prefix(self.file)
        part = vae_part(self.file, prefix or "")
        return part.tensors(self.file) if prefix is None else vae_from_ldm(part.tensors(self.file), self.config)

    def load(self, **options: Any) -> Any:
        if self.file is None:
            from diffusers import AutoencoderKL

            return AutoencoderKL.from_pretrained(self.path, local_files_only=True, **options)
        model = empty_model("vae", self.config)
        return fill(model, self.tensors(), options.get("torch_dtype"), f"--vae {self.name}")


def find_vae(name: str, base: Base) -> Vae:
    """Refused where it is none, or none for this base. Loads no weight."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path, base)
    if not path.exists():
        raise RequestError(f"--vae {name!r}: no such file or folder")
    file = read_tensors(path)
    if (kind := detect.kind_of(file)) not in (detect.VAE, detect.DIFFUSERS_VAE):
        raise RequestError(f"--vae {name} is: {kind}; expected a VAE of Stable Diffusion")
    found = Vae(name, path, base.vae, file)
    fitted(empty_model("vae", base.vae), found.tensors(), f"--vae {name} for base {base.name!r}")
    return found


def _folder(name: str, path: Path, base: Base) -> Vae:
    config = read_json(path / "config.json")
    if (found := config.get("_class_name")) != "AutoencoderKL":
        raise RequestError(f"--vae {name}: its config.json is of a {found}, expected an AutoencoderKL")
    for key in _AGREE:
        ours, theirs = config.get(key, base.vae.get(key)), base.vae.get(key)
        if ours != theirs:
            raise RequestError(
                f"--vae {name} has {key} {ours}, the VAE of base {base.name!r} has {theirs}; choose one of its family"
            )
    return Vae(name, path, config)
