"""Measures by networks of others, asked for by name: `--also NAME[=WEIGHTS]`. Nothing is downloaded that nobody named.

clip_score  100 max(cos, 0) of CLIP's picture and caption, which is cut at 77 tokens; not comparable between networks
lpips       distance to the real picture (arXiv:1801.03924), by AlexNet; less is nearer
fid, kid    of Inception's 2048 features, resized and run as TensorFlow did (torch-fidelity)
cmmd        of CLIP's picture embeddings
fd_dinov2   the Fréchet distance of DINOv2's class tokens (arXiv:2306.04675)
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators import MissingWeights
from annotators.hub_models import BESIDE
from annotators.weights import Weights, locate, sha256
from controlkit.errors import RequestError, known
from controlkit.evaluation.contents import ContentJudge
from controlkit.evaluation.metrics import Metric
from controlkit.evaluation.sets import SetFigure, cmmd, frechet, kernel
from controlkit.models.formats.reading import read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from annotators.contract import Image
    from controlkit.data.rows import Row

EXTRA = "pip install 'controlkit[metrics]'"
REFERENCE = "the real pictures of the same rows"

_DINO_SIDE = 224
_CLIP_BESIDE = (*BESIDE, "vocab.json", "merges.txt")
_BIN = ("pytorch_model.bin",)


@dataclass(frozen=True)
class Quality:
    """`needs` is what is looked for in the hub's cache where no weights are named; of what is no hub's, `place` says
    where people get it."""

    judge: Callable[[tuple[Path, ...], str], ContentJudge]
    needs: Weights
    place: str | None = None


@cache
def quality_judge(text: str, device: str) -> ContentJudge:
    """What `NAME` or `NAME=WEIGHTS` asks for, its weights a file, a folder or a hub id."""
    name, _, weights = text.partition("=")
    if name not in QUALITY:
        raise RequestError(f"--also {name}: {known(name, QUALITY)}")
    asked = QUALITY[name]
    try:
        files = _files(name, asked, weights or None)
        return asked.judge(files, device)
    except ImportError as reason:
        raise RequestError(f"--also {name}: {reason.name or reason} is not installed: {EXTRA}") from None
    except (MissingWeights, KeyError, ValueError, RuntimeError, OSError) as reason:
        raise RequestError(f"--also {text}: {' '.join(str(reason).split())[:300]}") from None


def _files(name: str, asked: Quality, weights: str | None) -> tuple[Path, ...]:
    needs = asked.needs
    if asked.place is None:
        return locate(needs, weights, offline=weights is None, fetch=needs.repo, who=name)
    if weights is None or not Path(weights).expanduser().is_file():
        came = f"{weights}: there is no such file; " if weights else ""
        raise MissingWeights(f"{came}expected {name}=FILE, {needs}, from {asked.place}")
    return (Path(weights).expanduser(),)


@cache
def _clip(folder: Path, device: str) -> tuple[Any, Callable[[Image], Any]]:
    """The model, and the unit vector that it makes of a picture."""
    import torch
    from transformers import CLIPModel

    model, prepared = _loaded(CLIPModel, folder, device)

    @torch.inference_mode()
    def read(picture: Image) -> Any:
        return _unit(model.get_image_features(pixel_values=prepared(picture)).pooler_output)

    return model, read


def _clip_score(files: tuple[Path, ...], device: str) -> ContentJudge:
    import torch
    from transformers import CLIPTokenizer

    model, read = _clip(files[0].parent, device)
    tokenizer = CLIPTokenizer.from_pretrained(files[0].parent, local_files_only=True)

    @lru_cache(2)  # of a row, and of the one that tells chance
    @torch.inference_mode()
    def embedded(caption: str) -> Any:
        tokens = tokenizer(caption, truncation=True, max_length=77, return_tensors="pt").to(device)
        return _unit(model.get_text_features(**tokens).pooler_output)

    def wanted(row: Row, real: Image) -> Any:
        return embedded(row.caption)

    def score(found: Any, wanted: Any) -> float:
        return float(100 * max(0.0, float(found @ wanted)))

    about = {**_about("transformers", files), "resize": "as its preprocessor_config.json", "reference": "the caption"}
    return ContentJudge(read, wanted, (Metric("clip_score", score),), about=about)


def _cmmd(files: tuple[Path, ...], device: str) -> ContentJudge:
    _, read = _clip(files[0].parent, device)
    about = {**_about("transformers", files), "resize": "as its preprocessor_config.json", "reference": REFERENCE}
    return ContentJudge(read, features=_itself, figures=(SetFigure("cmmd", cmmd, 1000),), about=about)


def _fd_dinov2(files: tuple[Path, ...], device: str) -> ContentJudge:
    import torch
    from transformers import Dinov2Model

    # Squeezed to a square, as the paper did; the published preprocessor cuts the middle out.
    square = {"size": {"height": _DINO_SIDE, "width": _DINO_SIDE}, "do_center_crop": False}
    model, prepared = _loaded(Dinov2Model, files[0].parent, device, **square)

    @torch.inference_mode()
    def read(picture: Image) -> Any:
        return model(pixel_values=prepared(picture)).pooler_output[0].float().cpu().numpy()

    about = {**_about("transformers", files), "resize": f"{_DINO_SIDE}x{_DINO_SIDE}, bicubic", "reference": REFERENCE}
    return ContentJudge(read, features=_itself, figures=(SetFigure("fd_dinov2", frechet, 10_000),), about=about)


@cache
def _inception(file: Path, device: str) -> Callable[[Image], Any]:
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles whatever it is given; what it gets here are the tensors alone.
    tensors = io.BytesIO()
    torch.save(dict(read_tensors(file)), tensors)
    tensors.seek(0)
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=tensors)
    network.to(device)

    @torch.inference_mode()
    def read(picture: Image) -> Any:
        return network(_batch(picture).to(device))[0][0].cpu().numpy()

    return read


def _by_inception(figure: SetFigure) -> Callable[[tuple[Path, ...], str], ContentJudge]:
    def judge(files: tuple[Path, ...], device: str) -> ContentJudge:
        read = _inception(files[0], device)
        resize = "299x299, bilinear as TensorFlow 1 did"
        about = {**_about("torch-fidelity", files), "resize": resize, "reference": REFERENCE}
        return ContentJudge(read, features=_itself, figures=(figure,), about=about)

    return judge


def _lpips(files: tuple[Path, ...], device: str) -> ContentJudge:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision in a way that is deprecated
        import lpips

        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)  # its own layers lie in the package
    tensors = read_tensors(files[0])
    trunk = network.net.state_dict()  # slice3.6.weight is torchvision's features.6.weight
    network.net.load_state_dict({name: tensors[f"features.{name.partition('.')[2]}"] for name in trunk})
    network.to(device).eval()

    @torch.inference_mode()
    def distance(found: Image, wanted: Image) -> float:
        pair = (_batch(each).to(device).float() / 127.5 - 1 for each in (found, wanted))
        return float(network(*pair))

    about = {**_about("lpips", files), "resize": "none", "reference": "the real picture of the row"}
    return ContentJudge(_itself, lambda row, real: real, (Metric("lpips", distance, True),), about=about)


QUALITY = {
    "clip_score": Quality(
        _clip_score,
        Weights("openai/clip-vit-base-patch16", "model.safetensors", 599, "MIT", _CLIP_BESIDE, _BIN),
    ),
    "lpips": Quality(
        _lpips,
        Weights("torchvision", "alexnet-owt-7be5be79.pth", 244, "BSD-3-Clause"),
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    ),
    **{
        figure.name: Quality(
            _by_inception(figure),
            Weights("torch-fidelity or pytorch-fid", "pt_inception-2015-12-05-6726825d.pth", 96, "Apache-2.0"),
            "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        )
        for figure in (SetFigure("fid", frechet, 10_000), SetFigure("kid", kernel, 1000))
    },
    "cmmd": Quality(
        _cmmd,
        Weights("openai/clip-vit-large-patch14-336", "pytorch_model.bin", 1710, "MIT", BESIDE, ("model.safetensors",)),
    ),
    "fd_dinov2": Quality(
        _fd_dinov2, Weights("facebook/dinov2-large", "model.safetensors", 1220, "Apache-2.0", BESIDE, _BIN)
    ),
}


def _loaded(cls: Any, folder: Path, device: str, **changed: Any) -> tuple[Any, Callable[[Image], Any]]:
    """The model of a folder in float32, and what its preprocessor makes of a picture."""
    from transformers import AutoImageProcessor

    model, report = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{folder}: {len(report['missing_keys'])} weights of {cls.__name__} are missing")
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def prepared(picture: Image) -> Any:
        return processor(images=picture, return_tensors="pt", **changed)["pixel_values"].to(device)

    return model.float().eval().to(device), prepared


def _about(library: str, files: tuple[Path, ...]) -> dict[str, Any]:
    return {"library": f"{library} {version(library)}", "weights": str(files[0]), "sha256": sha256(files[0])}


def _batch(picture: Image) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]


def _unit(embedding: Any) -> Any:
    return (embedding / embedding.norm(dim=-1, keepdim=True))[0].float().cpu().numpy()


def _itself(read: Any) -> Any:
    return read
