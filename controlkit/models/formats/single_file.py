"""Bases in a single file, standing wherever a folder does; ControlNets stand in `controlnet_file.py`.

Their configs are read from the shapes, their weights straight from the file when a component is loaded. Nothing is
written: a folder in the cache would double every checkpoint on the disk, keep each process of a launch waiting for the
one that writes, and go stale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.bases import Base
from controlkit.models.formats.contents import Contents, base_contents
from controlkit.models.formats.names import inverse, renamed
from controlkit.models.formats.reading import read_tensors
from controlkit.models.formats.tokenizers import OPEN_CLIP_PADDING, find_tokenizer, load_tokenizer
from controlkit.models.formats.unet import unet_table
from controlkit.models.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch

_CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}
# All published Stable Diffusions were trained on this schedule.
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@dataclass(frozen=True)
class FileBase(Base):
    """A base in a single file; `folder` is the file."""

    contents: Contents = field(kw_only=True, compare=False)  # follows from the file
    tokenizer: Path = field(kw_only=True)

    @cached_property
    def index(self) -> dict[str, Any]:
        kind = "InpaintPipeline" if self.contents.inpaints else "Pipeline"
        index: dict[str, Any] = {"_class_name": f"StableDiffusion{'XL' if self.is_xl else ''}{kind}"}
        if self.is_xl:
            stated = self.contents.configs.get("model_index", {})
            index["force_zeros_for_empty_prompt"] = stated.get("force_zeros_for_empty_prompt", True)
        names = ["unet", "vae", *(f"{name}{suffix}" for name in ("text_encoder", "tokenizer")
                                  for suffix in self.text_parts())]  # fmt: skip
        return {
            **index,
            **{name: list(_CLASSES[name]) for name in names},
            "scheduler": ["diffusers", self.scheduler["_class_name"]],
        }

    @cached_property
    def unet(self) -> dict[str, Any]:
        return self.contents.configs["unet"]

    @cached_property
    def vae(self) -> dict[str, Any]:
        return self.contents.configs["vae"]

    @cached_property
    def scheduler(self) -> dict[str, Any]:
        found = self.contents.prediction
        usual = {
            "_class_name": "EulerDiscreteScheduler" if self.is_xl else "DDIMScheduler",
            **_SCHEDULE,
            "steps_offset": 1,
            "timestep_spacing": "leading",
            **({} if self.is_xl else {"clip_sample": False, "set_alpha_to_one": False}),
            **({"rescale_betas_zero_snr": True} if found.zero_snr else {}),
            "prediction_type": found.type,
        }
        stated = self.contents.configs.get("scheduler") or usual
        return {**stated, **({"prediction_type": self.prediction} if self.prediction else {})}

    @property
    def guesses(self) -> list[str]:
        found = self.contents.prediction
        if self.prediction or not found.guessed or "scheduler" in self.contents.configs:
            return []
        return [
            f"base {self.name!r}: it is taken to predict {found.type}, guessed from {found.source}; if the pictures "
            f"are noise or washed out, say --prediction (in a training base_prediction=)"
        ]

    def config(self, component: str) -> dict[str, Any]:
        return self.contents.configs[component]

    def tensors(self, component: str) -> dict[str, torch.Tensor]:
        return self.contents.tensors(component)

    def load(self, component: str, **options: Any) -> Any:
        quiet_libraries()
        if component.startswith("tokenizer"):
            return load_tokenizer(self.tokenizer_folder(component), self.padding(component))
        if component == "scheduler":
            import diffusers

            return getattr(diffusers, self.scheduler["_class_name"]).from_config(self.scheduler)
        model = empty_model(component, self.contents.configs[component])
        return fill(model, self.tensors(component), options.get("torch_dtype"), f"base {self.name!r}")

    def tokenizer_folder(self, component: str) -> Path:
        """Of the second tokenizer: the one beside the first, where the user gave a whole pipeline."""
        second = self.tokenizer.parent / "tokenizer_2"
        return second if component == "tokenizer_2" and second.is_dir() else self.tokenizer

    def padding(self, component: str) -> str | None:
        """What fills a short prompt up, by the encoder that reads it; None: as the tokenizer's folder has it."""
        if (stated := self.contents.configs.get(component)) is not None:
            return str(stated["pad_token"])
        open_clip = component == "tokenizer_2" or self.contents.layout == "SD 2.x"
        return OPEN_CLIP_PADDING if open_clip else None


def open_base(name: str, *, prediction: str | None = None, tokenizer: str | None = None) -> FileBase:
    """A base in a single file; everything but the weights is read and checked."""
    path = Path(name).expanduser()
    contents = base_contents(read_tensors(path))
    table = inverse(unet_table(contents.configs["unet"]))
    if strange := sorted(key for key in contents.parts["unet"] if renamed(key, table) is None):
        raise RequestError(
            f"{path}: {len(strange)} tensors of its UNet, e.g. {strange[0]!r}, are of no Stable Diffusion; choose "
            f"another base"
        )
    words = contents.configs["text_encoder"]["vocab_size"]
    found = find_tokenizer(tokenizer, path.parent, words=words, what=f"base {name!r}")
    return FileBase(name, path, prediction, contents=contents, tokenizer=found)


def empty_model(component: str, config: dict[str, Any]) -> Any:
    """The network of that config without memory for its weights."""
    from accelerate import init_empty_weights

    quiet_libraries()
    with init_empty_weights(include_buffers=False):
        if component.startswith("text_encoder"):
            import transformers

            text = transformers.CLIPTextConfig(**config)
            return getattr(transformers, _CLASSES[component][1])(text).eval()
        import diffusers

        cls = diffusers.ControlNetModel if component == "controlnet" else getattr(diffusers, _CLASSES[component][1])
        return cls.from_config({key: value for key, value in config.items() if not key.startswith("_")}).eval()


def fill(model: Any, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None, what: str) -> Any:
    """Give an empty model its weights, in that precision (None: as they are)."""
    tensors = fitted(model, tensors, what)
    if dtype is not None:
        for name in tensors:  # one by one, so that gigabytes do not stand in memory twice
            tensors[name] = tensors[name].to(dtype, copy=True)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model


def fitted(model: Any, tensors: dict[str, torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    """The tensors under the names this release of the library has, refused if one is missing, strange or misshapen."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # transformers has dropped "text_model." from the encoder without projection.
    prefix = "text_model."
    flat = not any(name.startswith(prefix) for name in wanted)
    named = {name.removeprefix(prefix) if flat else name: tensor for name, tensor in tensors.items()}
    if missing := sorted(set(wanted) - set(named)):
        raise RequestError(f"{what} lacks {len(missing)} tensors of a {type(model).__name__}, e.g. {missing[0]!r}")
    if strange := sorted(set(named) - set(wanted)):
        raise RequestError(
            f"{what} holds {len(strange)} tensors that no {type(model).__name__} has, e.g. {strange[0]!r}"
        )
    for name, shape in wanted.items():
        if (found := tuple(named[name].shape)) != shape:
            raise RequestError(f"{what}: {name!r} has shape {found}, its {type(model).__name__} expects {shape}")
    return named
