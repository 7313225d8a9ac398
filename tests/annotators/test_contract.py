"""Over everything that is registered: a new annotator is tested by existing."""

import numpy as np
import pytest

from annotators import ANNOTATORS, annotate_many
from annotators.contract import parameters_of, resize_map
from tests.annotators.random_weights import WRITERS, needs_weights, own_backends
from tests.conftest import draw_photo

SLOW = {("depth", "zoe"), ("segmentation", "sam")}  # seconds a picture, however small it is


def everything():
    """All backends of all types; those of poses, which also give keypoints, have their weights in their own tests."""
    found = []
    for pair in own_backends():
        if pair[0] != "pose" or pair in WRITERS:
            found.append(pytest.param(*pair, id="=".join(pair), marks=[pytest.mark.slow] if pair in SLOW else []))
    return found


def noise_of(shape):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.fixture
def annotator(type_name, backend, make):
    return make(type_name, backend)


@pytest.mark.parametrize(("type_name", "backend"), everything())
def test_the_contract(annotator):
    """Same size at any size, uint8 RGB, declared values, the same map again, the picture untouched."""
    for shape in [(64, 96), (1, 1), (1, 7), (33, 17)]:
        image = noise_of(shape)
        before = image.copy()
        made = annotator(image)
        assert made.shape == image.shape
        assert made.dtype == np.uint8
        assert annotator.values is None or set(np.unique(made)) <= annotator.values
        assert np.array_equal(image, before)
    assert np.array_equal(made, annotator(image))


@pytest.mark.parametrize(("type_name", "backend"), everything())
def test_pictures_that_share_a_batch_do_not_share_their_maps(annotator):
    """Of one size and of several, one of them without contrast: the same within rounding, and no map of another."""
    images = [draw_photo(1), draw_photo(2), draw_photo(3, 41, 70), draw_photo(4)]
    if annotator.values is None or not hasattr(annotator, "needs"):  # else rounding alone decides where all is equal
        images.append(np.full((64, 96, 3), 90, np.uint8))
    alone, together = [annotator(image) for image in images], annotate_many(annotator, images)
    for one, other in zip(alone, together, strict=True):
        different = np.abs(one.astype(int) - other) > 1
        assert different.mean() < 0.005  # a threshold may turn a rounding into another value
    assert not np.array_equal(alone[0], alone[1])


@pytest.mark.parametrize(("type_name", "backend"), everything())
def test_a_view_that_is_not_contiguous_gives_the_same_map(annotator):
    image = noise_of((40, 60))
    assert np.array_equal(annotator(image[:, ::-1]), annotator(np.ascontiguousarray(image[:, ::-1])))


@pytest.mark.parametrize(("type_name", "backend"), everything())
def test_the_ledger_names_what_decides_the_map_and_nothing_else(annotator):
    """Not the device nor where the weights lie, but what they are."""
    assert not {"device", "weights", "offline"} & set(parameters_of(annotator))
    libraries = annotator.libraries()
    assert all(isinstance(version, str) and version for version in libraries.values())
    assert ("weights" in libraries) == hasattr(annotator, "needs")
    assert annotator.licence
    assert annotator.version >= 1


@pytest.mark.parametrize(("type_name", "backend"), everything())
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
def test_what_is_no_picture_is_refused(type_name, backend, image, words):
    """Before a network is loaded."""
    with pytest.raises(ValueError, match=type_name) as reason:
        ANNOTATORS.create(type_name, backend)(image)
    assert words in str(reason.value)


def test_every_network_has_weights_to_be_tested_with():
    """A backend without would be untested in silence."""
    networks = {pair for pair in own_backends() if needs_weights(*pair) and pair[0] != "pose"}
    assert networks == set(WRITERS)


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
