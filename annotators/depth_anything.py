"""Depth by any depth estimator of transformers; Depth-Anything-V2 unless another is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from annotators.depth import DepthAnnotator
from annotators.hub_models import load_model, model_weights, normalised, patch_of
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

METRIC_MODELS = {"zoedepth", "glpn", "depth_pro"}  # whose configs do not say that they answer in metres
NEAREST_METRES = 0.1  # nothing is nearer: the inverse of less would be all of the range


@ANNOTATORS.register("depth", backend="depth-anything", default=True)
@dataclass(frozen=True)
class DepthAnything(DepthAnnotator):
    """Depth by Depth-Anything-V2-Small, or by the transformers model that `weights` names (DPT, ZoeDepth, GLPN, …).

    metric  whether it answers in metres, which are inverted; auto: as its config says
    """

    resolution: int = 518
    metric: Literal["auto", "yes", "no"] = "auto"

    licence: ClassVar[str] = (
        "Apache-2.0 (code, and weights of V2-Small; V2-Base and V2-Large are CC-BY-NC-4.0: non-commercial)"
    )
    packages: ClassVar[tuple[str, ...]] = ("torch", "transformers", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (
        model_weights("depth-anything/Depth-Anything-V2-Small-hf", "model.safetensors", 99.2, "Apache-2.0"),
    )

    def load(self) -> Any:
        return load_model("AutoModelForDepthEstimation", self.weight_files(), self.torch_device())

    def sides(self, network: Any) -> int:
        return patch_of(network)

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        from torch.nn.functional import interpolate

        depth = network(pixel_values=normalised(pixels, network.preprocessor)).predicted_depth[:, None]
        return interpolate(depth, pixels.shape[-2:], mode="bilinear", align_corners=False)

    def nearness(self, raster: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        if not self._in_metres():
            return raster
        return np.reciprocal(np.maximum(raster, np.float32(NEAREST_METRES)))

    def _in_metres(self) -> bool:
        if self.metric != "auto":
            return self.metric == "yes"
        config = self.network.config
        return config.model_type in METRIC_MODELS or getattr(config, "depth_estimation_type", "") == "metric"
