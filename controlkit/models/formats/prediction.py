"""What a base's network predicts: eps or v. Shapes do not tell; several places in and beside a file may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from controlkit.models.formats.reading import TensorFile

PREDICTIONS = ("epsilon", "v_prediction", "sample")

# Steps after which the published SD 2.x checkpoints stopped.
_STEPS = {875_000: "epsilon", 220_000: "epsilon", 110_000: "v_prediction"}
_SPREAD_OF_V = 0.09


@dataclass(frozen=True)
class Prediction:
    type: str
    source: str  # where that stands, for people
    guessed: bool = False
    zero_snr: bool = False


def check_prediction_name(name: str | None) -> None:
    if name is not None and name not in PREDICTIONS:
        raise RequestError(f"prediction {name!r}: expected {', '.join(PREDICTIONS[:-1])} or {PREDICTIONS[-1]}")


def prediction_of(file: TensorFile, *, second: bool) -> Prediction:
    """`second` says that it is an SD 2.x, the one family published with both."""
    stated = file.metadata.get("modelspec.prediction_type", "").lower()
    architecture = file.metadata.get("modelspec.architecture", "").lower()
    zero_snr = "ztsnr" in file
    if "edm_mean" in file or "edm_vpred.sigma_max" in file:
        raise RequestError(f"{file.path} predicts in EDM's form (Playground), which is not read; choose another base")
    if stated in ("v", "v_prediction", "epsilon", "eps"):
        type = "v_prediction" if stated.startswith("v") else "epsilon"
        return Prediction(type, "modelspec.prediction_type", zero_snr=zero_snr)
    if "-768-v" in architecture:
        return Prediction("v_prediction", "modelspec.architecture", zero_snr=zero_snr)
    if "v_pred" in file:
        return Prediction("v_prediction", "the marker v_pred", zero_snr=zero_snr)
    if (beside := _in_yaml_beside(file)) is not None:
        return Prediction(beside, "the .yaml beside it", zero_snr=zero_snr)
    if not second:
        return Prediction("epsilon", "usual for the family", zero_snr=zero_snr)
    if (steps := file.facts.get("global_step")) in _STEPS:
        return Prediction(_STEPS[steps], f"global_step {steps} of the published checkpoint", guessed=True)
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if name in file:
        spread = float(file[name].float().std(correction=0))
        type = "v_prediction" if spread > _SPREAD_OF_V else "epsilon"
        return Prediction(type, f"a bias of the last block (spread {spread:.3f})", guessed=True, zero_snr=zero_snr)
    return Prediction("epsilon", "nothing in the file", guessed=True, zero_snr=zero_snr)


def _in_yaml_beside(file: TensorFile) -> str | None:
    """X.yaml beside X.ckpt, as the original code and webuis have it."""
    path = file.path.with_suffix(".yaml")
    if not path.is_file():
        return None
    import yaml

    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        parameters = values["model"]["params"]
    except (yaml.YAMLError, OSError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(parameters, dict):
        return None
    scaling = str(_at(parameters, "denoiser_config", "params", "scaling_config", "target") or "")
    if parameters.get("parameterization") == "v" or scaling.endswith("VScaling"):
        return "v_prediction"
    return "epsilon" if parameters.get("parameterization") == "eps" or scaling.endswith("EpsScaling") else None


def _at(values: Any, *names: str) -> Any:
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values
