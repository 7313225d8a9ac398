"""Models in the layout of transformers: a folder with config.json, preprocessor_config.json and the weights."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from annotators.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

FILES = ("model.safetensors", "pytorch_model.bin")
BESIDE = ("config.json", "preprocessor_config.json")


def model_weights(repo: str, file: str, megabytes: float, licence: str) -> Weights:
    """The files of a model, whose weights some repositories keep as safetensors and some as a pickle."""
    return Weights(repo, file, megabytes, licence, beside=BESIDE, instead=tuple(name for name in FILES if name != file))


def load_model(auto_class: str, files: tuple[Path, ...], device: str) -> Any:
    """The model of a folder, with its preprocessor's settings as `model.preprocessor`."""
    import transformers

    weights, config, preprocessor = files
    if weights.name not in FILES:
        raise ValueError(f"{weights}: expected a folder with {' or '.join(FILES)}, {' and '.join(BESIDE)}")
    loader = getattr(transformers, auto_class)
    try:
        with _quiet():
            model, report = loader.from_pretrained(
                weights.parent,
                use_safetensors=weights.suffix == ".safetensors",
                local_files_only=True,
                output_loading_info=True,
            )
    except (ValueError, KeyError, OSError, RuntimeError) as reason:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        why = " ".join(str(reason).split())[:200]
        raise ValueError(f"{weights.parent}: a {kind!r} that {auto_class} cannot load: {why}") from None
    if report["missing_keys"]:
        raise ValueError(f"{weights}: {len(report['missing_keys'])} weights of {type(model).__name__} are missing")
    model.preprocessor = json.loads(preprocessor.read_text(encoding="utf-8"))
    return model.float().eval().to(device)


def normalised(pixels: Tensor, preprocessor: dict[str, Any]) -> Tensor:
    """Pixels from 0 to 255 as the model's preprocessor would hand them on."""
    if preprocessor.get("do_rescale", True):
        pixels = pixels * preprocessor.get("rescale_factor", 1 / 255)
    if not preprocessor.get("do_normalize", True):
        return pixels
    mean, std = (pixels.new_tensor(preprocessor[name]).view(1, 3, 1, 1) for name in ("image_mean", "image_std"))
    return (pixels - mean) / std


def patch_of(model: Any) -> int:
    """What the sides of this model's pictures must be multiples of; 32 where it names nothing."""
    backbone = getattr(model.config, "backbone_config", None)
    patches = [getattr(config, "patch_size", None) for config in (model.config, backbone)]
    named = [model.preprocessor.get("ensure_multiple_of"), *patches]
    return math.lcm(*(number for number in named if isinstance(number, int))) if any(named) else 32


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and the advice of transformers."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
