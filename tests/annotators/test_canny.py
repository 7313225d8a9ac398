"""Canny with fixed, automatic and random thresholds."""

import cv2
import numpy as np
import pytest

from annotators import ANNOTATORS
from tests.conftest import draw_photo


def test_canny_is_opencv_on_three_channels(photo):
    """Those the published ControlNets were trained on; the edges of the grey picture are others."""
    made = ANNOTATORS.create("canny")(photo)
    assert np.array_equal(made[:, :, 0], cv2.Canny(photo, 100, 200))
    assert np.array_equal(made[:, :, 0], made[:, :, 2])
    assert not np.array_equal(made[:, :, 0], cv2.Canny(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), 100, 200))


def test_lower_thresholds_keep_more_edges(photo):
    few, many = ANNOTATORS.create("canny", low=200, high=400)(photo), ANNOTATORS.create("canny", low=20, high=40)(photo)
    assert few.sum() < many.sum()


def f1(one, other):
    """Of two edge maps, an edge being met by one at most a pixel away."""
    one, other = (each[:, :, 0] > 0 for each in (one, other))
    wide = [cv2.dilate(each.astype(np.uint8), np.ones((3, 3))) > 0 for each in (one, other)]
    precision, recall = (one & wide[1]).sum() / one.sum(), (other & wide[0]).sum() / other.sum()
    return 2 * precision * recall / (precision + recall)


@pytest.fixture
def scene():
    """Smooth shapes of some contrast, without the grain of `photo`."""
    return cv2.GaussianBlur(draw_photo(5, 160, 120), (0, 0), 1.5) // 2 + 30


def test_auto_finds_the_same_edges_in_a_brighter_picture(scene):
    auto = ANNOTATORS.create("canny", mode="auto")
    assert np.array_equal(auto(scene), auto(scene + 60))


def test_auto_keeps_the_edges_of_a_picture_of_little_contrast(scene):
    """Where fixed thresholds lose most of them."""
    pale = (scene.astype(float) * 0.4 + 100).astype(np.uint8)
    auto, fixed = ANNOTATORS.create("canny", mode="auto"), ANNOTATORS.create("canny")
    assert f1(auto(pale), auto(scene)) > 0.9
    assert (fixed(pale) > 0).sum() < (fixed(scene) > 0).sum() / 2


@pytest.mark.parametrize("grain", [2, 8, 40])
def test_auto_leaves_grain_alone(grain):
    """A flat wall, however noisy, is no tenth full of edges."""
    noise = np.random.default_rng(0).normal(120, grain, (128, 128, 3)).clip(0, 255).astype(np.uint8)
    assert (ANNOTATORS.create("canny", mode="auto")(noise) > 0).mean() < 0.05


def test_auto_thresholds_are_quantiles_of_the_gradient():
    """A step of 50 is a gradient of 4 · 50 (Sobel) in the two columns at it, which here are an eighth of all."""
    image = np.full((20, 16, 3), 50, np.uint8)
    image[:, 8:] = 100
    assert ANNOTATORS.create("canny", mode="auto").thresholds(image) == (100, 200)


def test_random_thresholds_belong_to_picture_and_seed(photo):
    random = ANNOTATORS.create("canny", mode="random")
    assert np.array_equal(random(photo), random(photo.copy()))
    drawn = [random.thresholds(draw_photo(number)) for number in range(64)]
    assert all(low * 2 == high and 50 <= low <= 200 for low, high in drawn)
    lows = np.log2([low / 100 for low, _ in drawn])
    assert lows.min() < -0.8
    assert lows.max() > 0.8
    assert abs(lows.mean()) < 0.25
    assert ANNOTATORS.create("canny", mode="random", seed=1).thresholds(photo) != random.thresholds(photo)
    low, high = random.thresholds(photo)
    assert np.array_equal(random(photo)[:, :, 0], cv2.Canny(photo, low, high))
