"""Depth by MiDaS (DPT-Hybrid) and ZoeDepth, as the older depth ControlNets were trained with."""

from __future__ import annotations

import contextlib
import io
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from annotators import auxiliary
from annotators.dense import load_pickle, load_state
from annotators.depth import DepthAnnotator
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

LIBRARIES = ("torch", "timm", "controlnet-aux", "opencv-python")

# Both networks hand features on through state that all their copies share: one picture at a time.
_ONE_AT_A_TIME = threading.Lock()


@ANNOTATORS.register("depth", backend="midas")
@dataclass(frozen=True)
class DepthMidas(DepthAnnotator):
    """Relative depth by MiDaS 3 (DPT-Hybrid)."""

    resolution: int = 384

    multiple: ClassVar[int] = 32
    licence: ClassVar[str] = "MIT (code and weights)"
    packages: ClassVar[tuple[str, ...]] = LIBRARIES
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights("lllyasviel/Annotators", "dpt_hybrid-midas-501f0c75.pt", 492.8, "MIT"),
    )

    def load(self) -> Any:
        path = self.weight_files()[0]
        network = auxiliary.module("midas.midas.dpt_depth").DPTDepthModel(backbone="vitb_rn50_384")
        state = load_pickle(path)
        return load_state(network, state.get("model", state), path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        with _ONE_AT_A_TIME:
            return network(pixels / 127.5 - 1)[:, None]  # type: ignore[no-any-return]


@ANNOTATORS.register("depth", backend="zoe")
@dataclass(frozen=True)
class DepthZoe(DepthAnnotator):
    """Metric depth by ZoeDepth (NYU), inverted, between its 2nd and 85th percentile."""

    resolution: int = 384

    multiple: ClassVar[int] = 32
    licence: ClassVar[str] = "MIT (code and weights)"
    packages: ClassVar[tuple[str, ...]] = LIBRARIES
    needs: ClassVar[tuple[Weights, ...]] = (Weights("lllyasviel/Annotators", "ZoeD_M12_N.pt", 1443.4, "MIT"),)

    def load(self) -> Any:
        path = self.weight_files()[0]
        zoe = auxiliary.module("zoe")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it builds
            network = zoe.ZoeDepth.build_from_config(zoe.get_config("zoedepth", "infer"))
        return load_state(network, load_pickle(path)["model"], path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        with _ONE_AT_A_TIME:
            return network.infer(pixels / 255)  # type: ignore[no-any-return]

    def nearness(self, raster: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        near, far = np.percentile(raster, (2, 85))
        return -raster.clip(near, far)
