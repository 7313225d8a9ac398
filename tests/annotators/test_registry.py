"""Over everything that is registered: a new annotator is tested by existing."""

import cv2
import numpy as np
import pytest

from annotators import ANNOTATORS
from annotators.contract import resize_map
from annotators.registry import Registry


def photo_of(shape):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(64, 96), (1, 1), (1, 7), (33, 17)])
@pytest.mark.parametrize("name", list(ANNOTATORS))
def test_the_contract(name, shape):
    """Same size, uint8 RGB, declared values, the same map again, the picture untouched."""
    image = photo_of(shape)
    before = image.copy()
    annotator = ANNOTATORS.create(name)
    made = annotator(image)
    assert made.shape == image.shape
    assert made.dtype == np.uint8
    assert annotator.values is None or set(np.unique(made)) <= annotator.values
    assert np.array_equal(made, ANNOTATORS.create(name)(image))
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", list(ANNOTATORS))
def test_a_view_that_is_not_contiguous_gives_the_same_map(name):
    image = photo_of((40, 60))
    annotator = ANNOTATORS.create(name)
    assert np.array_equal(annotator(image[:, ::-1]), annotator(np.ascontiguousarray(image[:, ::-1])))


@pytest.mark.parametrize("name", list(ANNOTATORS))
@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((3, 8, 8), np.float32), "float32 (3, 8, 8); pass (image * 255)"),
        (np.zeros((8, 8), np.uint8), "uint8 (8, 8); pass np.stack"),
        (np.zeros((8, 8, 4), np.uint8), "uint8 (8, 8, 4)"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        ([[1]], "got list"),
    ],
)
def test_what_is_no_picture_is_refused(name, image, words):
    with pytest.raises(ValueError, match=name) as reason:
        ANNOTATORS.create(name)(image)
    assert words in str(reason.value)


def test_canny_is_opencv_on_three_channels(photo):
    """Those the published ControlNets were trained on; the edges of the grey picture are others."""
    made = ANNOTATORS.create("canny")(photo)
    assert np.array_equal(made[:, :, 0], cv2.Canny(photo, 100, 200))
    assert np.array_equal(made[:, :, 0], made[:, :, 2])
    assert not np.array_equal(made[:, :, 0], cv2.Canny(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), 100, 200))


def test_lower_thresholds_keep_more_edges(photo):
    few, many = ANNOTATORS.create("canny", low=200, high=400)(photo), ANNOTATORS.create("canny", low=20, high=40)(photo)
    assert few.sum() < many.sum()


def test_parameters_are_read_by_their_type():
    assert ANNOTATORS.create("canny", low="80").low == 80
    with pytest.raises(ValueError, match=r"canny\.low='many': expected int"):
        ANNOTATORS.create("canny", low="many")
    with pytest.raises(ValueError, match="canny: low=300 and high=200: expected 0 <= low <= high"):
        ANNOTATORS.create("canny", low=300)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown annotator 'cany': did you mean 'canny'"):
        ANNOTATORS.create("cany")
    with pytest.raises(ValueError, match="no parameter 'hihg': did you mean 'high'"):
        ANNOTATORS.create("canny", hihg=1)


def test_a_name_is_given_once():
    registry = Registry("annotator")
    registry.register("x")(int)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("x")(float)


@pytest.mark.parametrize("size", [(200, 150), (64, 64), (31, 17), (8, 8)])
def test_a_black_and_white_map_stays_one_at_any_size(size, photo):
    values = frozenset({0, 255})
    resized = resize_map(ANNOTATORS.create("canny")(photo), *size, values)
    assert resized.shape == (size[1], size[0], 3)
    assert set(np.unique(resized)) <= values


@pytest.mark.parametrize("reduction", [2, 3, 4, 8])
def test_a_line_of_one_pixel_survives_any_reduction(reduction):
    """Nearest-neighbour would drop it, averaging would turn it grey."""
    drawn = np.zeros((240, 240, 3), np.uint8)
    drawn[:, 101] = 255
    small = resize_map(drawn, 240 // reduction, 240 // reduction, frozenset({0, 255}))
    assert (small[:, :, 0] == 255).any(axis=1).all()
    assert (small[:, :, 0] == 255).sum(axis=1).max() == 1


def test_a_map_of_labels_keeps_its_labels():
    drawn = np.random.default_rng(0).choice(np.array([0, 7, 200], np.uint8), (40, 40, 1)).repeat(3, axis=2)
    assert set(np.unique(resize_map(drawn, 23, 61, frozenset({0, 7, 200})))) <= {0, 7, 200}
