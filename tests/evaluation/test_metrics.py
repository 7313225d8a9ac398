"""Measures of maps: closed forms, and scikit-image's answer."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from annotators.depth import DepthAnnotator
from controlkit.evaluation import metrics
from controlkit.evaluation.metrics import Metric, depth_rmse, edge_f1, map_metrics, mean_iou, overlaps
from controlkit.evaluation.obedience import Judge
from controlkit.evaluation.scores import Score
from tests.conftest import draw_photo


def lines(*columns, size=32):
    drawn = np.zeros((size, size, 3), np.uint8)
    drawn[:, list(columns)] = 255
    return drawn


def test_edges_are_met_within_one_pixel_and_not_two():
    assert edge_f1(lines(8), lines(8)) == 1
    assert edge_f1(lines(9), lines(8)) == 1
    assert edge_f1(lines(10), lines(8)) == 0
    assert edge_f1(lines(9), lines(8), tolerance=0) == 0


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    """One of three found lines is wanted, and it is one of two wanted ones: P = 1/3, R = 1/2, F1 = 2/5."""
    assert edge_f1(lines(4, 12, 20), lines(4, 28)) == pytest.approx(2 / 5)
    assert edge_f1(lines(4, 28), lines(4, 12, 20)) == pytest.approx(2 / 5)


def test_maps_without_edges():
    assert edge_f1(lines(), lines()) == 1
    assert edge_f1(lines(), lines(3)) == 0
    assert edge_f1(lines(3), lines()) == 0


def test_depth_rmse_is_in_shares_of_the_range():
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert depth_rmse(grey, grey) == 0
    assert depth_rmse(np.full_like(grey, 255), np.zeros_like(grey)) == 1
    assert depth_rmse(grey + 51, grey) == pytest.approx(0.2)


def grey(plane):
    return np.repeat(np.round(plane).astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def pair():
    """Two pictures that are somewhat alike, large enough for five scales."""
    one = draw_photo(0, 180, 177).mean(axis=2)
    return grey(one), grey(np.clip(0.7 * one + 20 + np.random.default_rng(0).normal(0, 12, one.shape), 0, 255))


def reference(one, other, **options):
    return structural_similarity(
        one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, **options
    )


def test_ssim_is_scikit_images(pair):
    expected = reference(*(each[:, :, 0].astype(float) for each in pair))
    assert metrics.ssim(*pair) == pytest.approx(expected, abs=1e-6)
    assert 0.1 < expected < 0.9
    assert metrics.ssim(pair[0], pair[0]) == 1
    assert metrics.ssim(pair[0][:10], pair[1][:10]) is None


def halved(plane):
    """Means of two by two pixels; an odd last row or column falls away."""
    plane = plane[: len(plane) // 2 * 2, : plane.shape[1] // 2 * 2]
    return (plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]) / 4


def test_ms_ssim_is_built_of_scikit_images(pair):
    """A huge K1 leaves the brightness out, so that what remains is contrast and structure."""
    one, other = (each[:, :, 0].astype(float) for each in pair)
    expected = 1.0
    for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        expected *= reference(one, other, **({"K1": 1e6} if scale < 4 else {})) ** weight
        one, other = (halved(each) for each in (one, other))
    assert metrics.ms_ssim(*pair) == pytest.approx(expected, abs=1e-6)
    assert metrics.ms_ssim(pair[0], pair[0]) == pytest.approx(1)
    assert metrics.ms_ssim(pair[0][:175], pair[1][:175]) is None


def test_depth_up_to_scale_and_shift():
    """What is the map but for scale and shift is no error; the rest is that of numpy's straight line."""
    random = np.random.default_rng(0)
    found = grey(random.uniform(10, 200, (20, 20)))
    assert metrics.depth_rmse_scale_shift(found, grey(found[:, :, 0] * 0.5 + 30.0) // 2 * 2) < 0.005
    wanted = grey(random.uniform(0, 255, (20, 20)))
    x, y = (each[:, :, 0].ravel() / 255 for each in (found, wanted))
    error = np.polyval(np.polyfit(x, y, 1), x) - y
    assert metrics.depth_rmse_scale_shift(found, wanted) == pytest.approx(np.sqrt((error**2).mean()))
    assert metrics.depth_rmse_scale_shift(grey(np.full((20, 20), 7.0)), wanted) == pytest.approx(y.std())


def test_depth_as_it_was_published():
    """The map 50..150 becomes 0..255; what was read, 100 and 200, becomes 127.5 and 255."""
    wanted, found = grey(np.array([[50.0, 150.0]])), grey(np.array([[100.0, 200.0]]))
    assert metrics.depth_rmse_8bit(found, wanted) == pytest.approx(127.5 / np.sqrt(2))
    assert metrics.depth_rmse_8bit(wanted, wanted) == pytest.approx(255 / 3 / np.sqrt(2))  # 50 is a third of 150
    assert metrics.depth_rmse_8bit(grey(np.zeros((1, 2))), wanted) == pytest.approx(255 / np.sqrt(2))


def test_classes_are_summed_over_pictures_before_they_are_divided():
    """Red: 1 of 2 pixels in one picture, 3 of 3 in the other: 4/5, not the mean of 1/2 and 1. Blue, painted and not
    asked for: 0."""
    red, blue = (255, 0, 0), (0, 0, 255)
    shown = [
        overlaps(np.uint8([[red, blue]]), np.uint8([[red, red]])),
        overlaps(np.uint8([[red, red, red]]), np.uint8([[red, red, red]])),
    ]
    assert mean_iou(shown) == pytest.approx((4 / 5 + 0) / 2)
    assert mean_iou(shown[1:]) == 1
    assert mean_iou([]) is None
    score = Score.of_pool(shown * 20, mean_iou)
    assert score.mean == pytest.approx(2 / 5)
    assert score.low < 2 / 5 < score.high
    assert score.n == 40


def test_depth_as_published_divides_what_the_network_said():
    """Not the map made of it, which begins at 0: 5 and 10 become 127.5 and 255."""
    wanted = grey(np.array([[0.0, 255.0]]))
    assert metrics.depth_rmse_8bit(np.float32([[5, 10]]), wanted) == pytest.approx(127.5 / np.sqrt(2))
    judge = Judge(Nearness())
    shown = judge.compare(judge.look([wanted]), wanted, None)
    assert shown["depth_rmse_8bit"] == pytest.approx(127.5 / np.sqrt(2))
    assert shown["depth_rmse"] == 0


class Nearness(DepthAnnotator):
    """A depth network that says 5 of black and 10 of white."""

    type = "depth"

    def load(self):
        raise NotImplementedError

    forward = load

    def rasters(self, images):
        return [(5 + image[:, :, :1] / 51).astype(np.float32) for image in images]


def test_pictures_of_one_row_are_measured_together():
    """F1 as of one large map, with nothing met across the seam; sums of classes; people of all pictures."""
    f1, exact, *_ = map_metrics("canny")
    wanted, found = lines(4, 28), [lines(4, 12, 20), lines(4, 28, 31)]
    assert exact.of_row(found, wanted) == pytest.approx(2 * 3 / (6 + 4))
    assert exact.of_row(found[:1], wanted) == edge_f1(found[0], wanted, tolerance=0)
    edge = [lines(31), lines(0)]  # beside each other they would touch
    assert f1.of_row(edge, lines(0)) == pytest.approx(0.5)
    (miou,) = map_metrics("segmentation")
    red, blue = np.uint8([[[255, 0, 0]] * 2]), np.uint8([[[0, 0, 255]] * 2])
    assert mean_iou([miou.of_row([red, blue], red)]) == pytest.approx((2 / 4 + 0) / 2)
    assert Metric("any", lambda found, wanted: found or None).of_row([2.0, 0, 4.0], None) == 3
    assert Metric("any", lambda found, wanted: None).of_row([1], None) is None


def test_each_type_has_its_measures():
    names = {type: [metric.name for metric in map_metrics(type)] for type in ("softedge", "depth", "segmentation")}
    assert names["softedge"] == ["softedge_f1_1px", "softedge_f1_exact", "softedge_ms_ssim"]
    assert names["depth"] == ["depth_rmse", "depth_rmse_scale_shift", "depth_rmse_8bit"]
    assert names["segmentation"] == ["segmentation_miou"]
    assert all(metric.lower_is_better for metric in map_metrics("depth"))
    assert map_metrics("shuffle") == ()
    assert Metric("any", depth_rmse).over([0.25, 0.75]) == 0.5
    assert Metric("any", depth_rmse).over([]) is None
