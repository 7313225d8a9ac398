"""Measures of a map that was read from a picture against the map that was asked for. Each name carries its settings.

TYPE_f1_1px, TYPE_f1_exact   F1 of the edge pixels, met within one pixel; at the very pixel
canny_ssim                   structural similarity of the maps (Gaussian window of 11 pixels, sigma 1.5)
softedge_ms_ssim, lineart…   the same at five scales (Wang et al., 2003); from 176 pixels a side on
depth_rmse                   in shares of the range from 0 to 255
depth_rmse_scale_shift       the same, after the scale and shift that bring what was read nearest to the map
depth_rmse_8bit              as ControlNet++ published it (arXiv:2404.07987): the map stretched from its least to its
                             greatest value, what the network said divided by its greatest alone, both to 255
segmentation_miou            intersection over union of each colour over all pictures; their mean
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.data.check import LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from annotators.contract import Image

    Plane = NDArray[np.float64]

_REACH = 5  # pixels from the middle of the window of 11 to its edge
_SIGMA = 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # their weights, the finest first (Wang et al., 2003)
MS_SSIM_SIDE = (2 * _REACH + 1) * 2 ** (len(_SCALES) - 1)  # the window fits into the coarsest


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _beside(maps: Sequence[Image]) -> Image:
    """In one row, with black between them, so that no edge is met by another map's."""
    gap = np.zeros_like(maps[0][:, :_REACH])
    return np.hstack([part for each in maps for part in (each, gap)][:-1])


@dataclass(frozen=True)
class Metric:
    """`measure` says what one picture shows (None: nothing), `pool` what many of these say together (None: nothing)."""

    name: str
    measure: Callable[[Any, Any], Any]
    lower_is_better: bool = False
    pool: Callable[[Sequence[Any]], float | None] | None = (
        None  # None: what a picture shows is a number, and all count alike
    )
    join: Callable[[Sequence[Any]], Any] = _mean  # what several pictures of one row show, of what each of them shows
    side_by_side: bool = False  # several pictures of one row are measured as one, pixel by pixel
    raw: bool = False  # measured on what a network said, before it was made a map

    def of_row(self, found: Sequence[Any], wanted: Any) -> Any:
        """What the pictures of a row show, all painted for the same map; None: nothing."""
        if self.side_by_side:
            return self.measure(_beside(found), _beside([wanted] * len(found)))
        shown = [each for one in found if (each := self.measure(one, wanted)) is not None]
        return self.join(shown) if shown else None

    def over(self, shown: Sequence[Any]) -> float | None:
        if self.pool is not None:
            return self.pool(shown)
        return float(np.mean(shown)) if shown else None


def map_metrics(type: str) -> tuple[Metric, ...]:
    """The measures of a type's maps, the leading one first; none for types whose maps say no place."""
    if type in LINES:
        first = (
            Metric(f"{type}_f1_1px", edge_f1, side_by_side=True),
            Metric(f"{type}_f1_exact", edge_f1_exact, side_by_side=True),
        )
        second = {"canny": (Metric("canny_ssim", ssim),)}
        return first + second.get(type, (Metric(f"{type}_ms_ssim", ms_ssim),) if type in _SOFT else ())
    if type == "depth":
        return (
            Metric("depth_rmse", depth_rmse, True),
            Metric("depth_rmse_scale_shift", depth_rmse_scale_shift, True),
            Metric("depth_rmse_8bit", depth_rmse_8bit, True, raw=True),
        )
    if type == "segmentation":
        return (Metric("segmentation_miou", overlaps, pool=mean_iou, join=overlaps_together),)
    return ()


_SOFT = ("lineart", "softedge")


def edge_f1(found: Image, wanted: Image, tolerance: int = 1) -> float:
    """Harmonic mean of precision and recall over the pixels brighter than half, each met if the other map has one at
    most `tolerance` pixels away along each axis. Two maps without an edge agree."""
    import cv2

    one, other = (each.max(axis=2) >= 128 for each in (found, wanted))
    if not one.any() or not other.any():
        return float(one.any() == other.any())
    reach = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8)
    near_one, near_other = (cv2.dilate(each.astype(np.uint8), reach) > 0 for each in (one, other))
    precision, recall = near_other[one].mean(), near_one[other].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def edge_f1_exact(found: Image, wanted: Image) -> float:
    return edge_f1(found, wanted, tolerance=0)


def ssim(found: Image, wanted: Image) -> float | None:
    """Of the grey maps, where the window lies within them."""
    return None if min(found.shape[:2]) <= 2 * _REACH else _similarity(_grey(found), _grey(wanted))[0]


def ms_ssim(found: Image, wanted: Image) -> float | None:
    """Contrast and structure at five scales, each half of the one before, and brightness at the coarsest. What points
    the other way counts as nothing alike."""
    if min(found.shape[:2]) < MS_SSIM_SIDE:
        return None
    one, other, product = _grey(found), _grey(wanted), 1.0
    for scale, weight in enumerate(_SCALES):
        whole, structure = _similarity(one, other)
        last = scale == len(_SCALES) - 1
        product *= max(0.0, whole if last else structure) ** weight
        one, other = _halved(one), _halved(other)
    return float(product)


def depth_rmse(found: Image, wanted: Image) -> float:
    return float(np.sqrt(np.square((found.astype(np.float64) - wanted) / 255).mean()))


def depth_rmse_scale_shift(found: Image, wanted: Image) -> float:
    """Least squares; a network that tells depth up to scale and shift loses nothing by it."""
    x, y = (_grey(each).ravel() / 255 for each in (found, wanted))
    away = x - x.mean()
    scale = (away @ (y - y.mean())) / (away @ away) if away.any() else 0.0
    return float(np.sqrt(np.square(scale * away + y.mean() - y).mean()))


def depth_rmse_8bit(found: NDArray[Any], wanted: Image) -> float:
    """`found` in any unit, a plane or a map."""
    x, y = found.astype(np.float64) if found.ndim == 2 else _grey(found), _grey(wanted)
    stretched = (y - y.min()) / max(np.ptp(y), 1e-12) * 255
    return float(np.sqrt(np.square(x / max(x.max(), 1e-12) * 255 - stretched).mean()))


def overlaps(found: Image, wanted: Image) -> dict[int, tuple[int, int]]:
    """Colour -> pixels that have it in both maps, and in either; of the colours of both."""
    one, other = (each.astype(np.int64) @ (65536, 256, 1) for each in (found, wanted))
    counts = {}
    for colour in np.union1d(one, other).tolist():
        here, there = one == colour, other == colour
        counts[colour] = int((here & there).sum()), int((here | there).sum())
    return counts


def overlaps_together(shown: Sequence[dict[int, tuple[int, int]]]) -> dict[int, tuple[int, int]]:
    """Of several pictures."""
    sums: dict[int, tuple[int, int]] = {}
    for picture in shown:
        for colour, (common, all_of_it) in picture.items():
            both, either = sums.get(colour, (0, 0))
            sums[colour] = both + common, either + all_of_it
    return sums


def mean_iou(shown: Sequence[dict[int, tuple[int, int]]]) -> float | None:
    """Sums over all pictures first, as the benchmarks have it: a class that is rare weighs as much as any."""
    sums = overlaps_together(shown)
    return float(np.mean([both / either for both, either in sums.values()])) if sums else None


def _grey(image: Image) -> Plane:
    plane: Plane = image.astype(np.float64).mean(axis=2)
    return plane


def _similarity(one: Plane, other: Plane) -> tuple[float, float]:
    """SSIM, and its part that leaves the brightness out (Wang et al., 2004, Eq. 13)."""
    import cv2

    def blurred(plane: Plane) -> Any:
        side = 2 * _REACH + 1
        return cv2.GaussianBlur(plane, (side, side), _SIGMA)[_REACH:-_REACH, _REACH:-_REACH]

    m_x, m_y = blurred(one), blurred(other)
    v_x, v_y = blurred(one * one) - m_x**2, blurred(other * other) - m_y**2
    structure = (2 * (blurred(one * other) - m_x * m_y) + _C2) / (v_x + v_y + _C2)
    brightness = (2 * m_x * m_y + _C1) / (m_x**2 + m_y**2 + _C1)
    return float((brightness * structure).mean()), float(structure.mean())


def _halved(plane: Plane) -> Plane:
    height, width = (side // 2 * 2 for side in plane.shape)
    halved: Plane = plane[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    return halved
