"""Straight line segments by M-LSD: the map of rooms and buildings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from annotators import auxiliary
from annotators.dense import DenseAnnotator, load_pickle, load_state
from annotators.geometry import working_size
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from annotators.contract import Image

SEGMENTS = 200  # the strongest centres that are looked at


@ANNOTATORS.register("mlsd")
@dataclass(frozen=True)
class Mlsd(DenseAnnotator):
    """Straight segments, white on black, drawn one pixel wide at the picture's own size.

    score   the least confidence of a segment's centre
    length  the least length, in the network's cells of two pixels
    """

    score: float = 0.1
    length: float = 0.1

    multiple: ClassVar[int] = 64
    values: ClassVar[frozenset[int] | None] = frozenset({0, 255})
    licence: ClassVar[str] = "Apache-2.0 (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("torch", "controlnet-aux", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights("lllyasviel/Annotators", "mlsd_large_512_fp32.pth", 6.3, "Apache-2.0"),
    )

    def load(self) -> Any:
        path = self.weight_files()[0]
        network = auxiliary.module("mlsd.models.mbv2_mlsd_large").MobileV2_MLSD_Large()
        return load_state(network, load_pickle(path), path).to(self.torch_device())

    def forward(self, network: Any, pixels: Tensor) -> Tensor:
        """(B, 9, H/2, W/2): of a cell whether it is a centre, then from there to both ends."""
        import torch

        fourth = torch.ones_like(pixels[:, :1])  # it was trained with a channel of ones, scaled like the others
        return network(torch.cat([pixels, fourth], dim=1) / 127.5 - 1)  # type: ignore[no-any-return]

    def finish(self, raster: NDArray[np.float32], height: int, width: int) -> Image:
        import cv2
        import numpy as np

        drawn = np.zeros((height, width, 3), np.uint8)
        small_height, small_width = working_size(height, width, self.resolution)
        scale = np.array([width / small_width, height / small_height] * 2)
        for x_start, y_start, x_end, y_end in (self._segments(raster) * scale).astype(int).tolist():
            cv2.line(drawn, (x_start, y_start), (x_end, y_end), (255, 255, 255), 1)
        return drawn

    def _segments(self, raster: NDArray[np.float32]) -> NDArray[np.float64]:
        """(n, 4): x and y of both ends, in pixels of the working size; none where there are none."""
        import numpy as np
        import torch

        cells = torch.from_numpy(np.ascontiguousarray(raster.transpose(2, 0, 1)))[None]
        strongest = min(SEGMENTS, cells.shape[2] * cells.shape[3])
        decode = auxiliary.module("mlsd.utils").deccode_output_score_and_ptss  # so it is spelled
        centres, scores, ways = decode(cells, strongest, 3)
        rows, columns = centres.T
        to_ends = ways[rows, columns].astype(np.float64)
        lengths = np.hypot(*(to_ends[:, :2] - to_ends[:, 2:]).T)
        ends = to_ends + np.stack([columns, rows, columns, rows], axis=1)
        return np.asarray(2 * ends[(scores > self.score) & (lengths > self.length)])
