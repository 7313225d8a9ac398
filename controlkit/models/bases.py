"""A base: the Stable Diffusion that a ControlNet is trained on and used with.

`find_base` turns a name into a folder in diffusers' layout, or a single file, and reads its configs; no weight is
loaded before everything that the configs can tell has been checked. Sizes, channels and factors come from the configs:
the VAE's factor is never written down as a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.locate import NOTES, embedded, find_folder, read_json
from controlkit.models.quiet import quiet_libraries
from controlkit.models.random_base import RANDOM_BASES, random_base

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

DEFAULT_BASE = "toybox"
USUAL_CFG = 7.5

_KNOWN_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}


@dataclass(frozen=True)
class Base:
    """A base on disk: its name as it was asked for, its folder, its configs.

    `prediction` is what the user says that it predicts, where its config is not to be believed.
    """

    name: str
    folder: Path
    prediction: str | None = None

    @cached_property
    def index(self) -> dict[str, Any]:
        return read_json(self.folder / "model_index.json")

    @cached_property
    def unet(self) -> dict[str, Any]:
        return read_json(self.part("unet") / "config.json")

    @cached_property
    def vae(self) -> dict[str, Any]:
        return read_json(self.part("vae") / "config.json")

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        stated = read_json(self.part("scheduler") / "scheduler_config.json")
        return {**stated, **({"prediction_type": self.prediction} if self.prediction else {})}

    @property
    def guesses(self) -> list[str]:
        """What had to be guessed about it, each a sentence for the user."""
        return []

    @property
    def is_xl(self) -> bool:
        """SDXL's UNet takes pooled text and sizes beside the time."""
        return self.unet.get("addition_embed_type") == "text_time"

    @property
    def family(self) -> str:
        return family(self.unet)

    @property
    def latent_channels(self) -> int:
        return int(self.vae["latent_channels"])

    @property
    def inpaints(self) -> bool:
        """Its UNet takes the mask and the masked picture beside the latents (9 channels)."""
        return int(self.unet["in_channels"]) > self.latent_channels

    @property
    def vae_factor(self) -> int:
        """Pixels a side of one latent cell."""
        factor: int = 2 ** (len(self.vae["block_out_channels"]) - 1)
        return factor

    @property
    def native_size(self) -> int:
        """Pixels a side that the base was trained at."""
        size = self.unet.get("sample_size") or 64
        return int(size if isinstance(size, int) else max(size)) * self.vae_factor

    @property
    def prediction_type(self) -> str:
        return str(self.scheduler.get("prediction_type", "epsilon"))

    @cached_property
    def rest(self) -> Base | None:
        """The base that it shares its other components with, where it was packed without them."""
        name = _notes(self.folder).get("rest")
        return find_base(name) if name else None

    def part(self, component: str) -> Path:
        """The folder of a component."""
        own = self.folder / component
        return own if self.rest is None or own.is_dir() else self.rest.part(component)

    def config(self, component: str) -> dict[str, Any]:
        """Of a network: "unet", "vae", "text_encoder", …"""
        return read_json(self.part(component) / "config.json")

    def tensors(self, component: str) -> dict[str, torch.Tensor]:
        """The weights of a network as they are kept, under diffusers' or transformers' names."""
        from controlkit.models.formats.reading import folder_tensors

        return folder_tensors(self.part(component))

    def load(self, component: str, **options: Any) -> Any:
        """One component: "unet", "vae", "text_encoder", "tokenizer", "scheduler", … by the class the base names."""
        quiet_libraries()
        import diffusers
        import transformers

        library, class_name = self.index[component]
        cls = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
        return cls.from_pretrained(self.part(component), local_files_only=True, **options)

    def text_parts(self) -> list[str]:
        """The suffixes of its text encoders and tokenizers: [""], for SDXL ["", "_2"]."""
        return ["", "_2"] if self.is_xl else [""]


def family(unet_config: dict[str, Any]) -> str:
    """The family that a UNet's or ControlNet's config tells, for messages: "SD 1.x (cross_attention_dim 768)"."""
    width = unet_config["cross_attention_dim"]
    if unet_config.get("addition_embed_type") == "text_time":
        name = "SDXL"
    elif (name := _KNOWN_FAMILIES.get(width, "")) == "":
        name = "Stable Diffusion"
    return f"{name} (cross_attention_dim {width})"


def find_base(name: str, *, prediction: str | None = None, tokenizer: str | None = None) -> Base:
    """A base by embedded name, folder, single file or hub id; refused in one line if it is none of them.

    `prediction` overrides what it says that it predicts; `tokenizer` is for a single file, which holds none.
    """
    from controlkit.models.formats.prediction import check_prediction_name

    check_prediction_name(prediction)
    names = embedded_bases()
    if name not in names and Path(name).expanduser().is_file():
        from controlkit.models.formats.single_file import open_base

        return open_base(name, prediction=prediction, tokenizer=tokenizer)
    if tokenizer is not None:
        raise RequestError(f"--tokenizer is for a base in a single file; {name!r} has its own, leave it out")
    folder = find_folder(name, "base", "model_index.json", names, lambda: _download(name))
    base = Base(name, folder, prediction)
    supported = (
        *("StableDiffusionPipeline", "StableDiffusionXLPipeline"),
        *("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
    )
    if (found := base.index.get("_class_name")) not in supported:
        raise RequestError(f"base {name!r} is a {found}; expected {', '.join(supported[:-1])} or {supported[-1]}")
    return base


def usual_cfg(name: str) -> float:
    """The guidance that a base is painted with where none is said: its own, if it lies here and says so."""
    folder = embedded("model_index.json").get(name) or Path(name).expanduser()
    return float(_notes(folder).get("cfg", USUAL_CFG))


def embedded_bases() -> dict[str, Callable[[], Path]]:
    """The bases that need no download, each with what gives its folder: packed, or random and built when used."""
    packed = {name: partial(Path, folder) for name, folder in embedded("model_index.json").items()}
    return {**packed, **{name: partial(random_base, name) for name in RANDOM_BASES}}


def _notes(folder: Path) -> dict[str, Any]:
    """What we wrote beside a base that was made with controlkit: its usual guidance, and where the rest of it lies."""
    notes = folder / NOTES
    return read_json(notes) if notes.is_file() else {}


def _download(name: str) -> str | None:
    from diffusers import DiffusionPipeline

    quiet_libraries()
    # Without the safety checker and without pickled weights.
    folder: str | None = DiffusionPipeline.download(name, safety_checker=None, use_safetensors=True)
    return folder
