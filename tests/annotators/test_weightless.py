"""The types without weights: what each does to a picture."""

import cv2
import numpy as np
import pytest

from annotators import ANNOTATORS, auxiliary
from annotators.chance import seed_of
from tests.conftest import draw_photo


def test_grey_is_the_luma_of_bt601(photo):
    luma = photo @ np.array([0.299, 0.587, 0.114])
    made = ANNOTATORS.create("grey")(photo)
    assert np.abs(made - luma[:, :, None]).max() <= 1


def test_tile_keeps_the_means_and_drops_the_detail(photo):
    """The mean of 8 x 8 independent pixels spreads an eighth as far as they do."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    made = ANNOTATORS.create("tile", factor=8)(noise)
    assert abs(made.mean() - noise.mean()) < 1
    assert made.std() < noise.std() / 8 * 1.1
    assert np.array_equal(ANNOTATORS.create("tile", factor=1)(photo), photo)
    with pytest.raises(ValueError, match=r"factor=0\.5"):
        ANNOTATORS.create("tile", factor=0.5)


def test_blur_is_a_gaussian():
    """A square becomes a bell: the variances add up."""
    image = np.zeros((81, 81, 3), np.uint8)
    image[40, 40] = 255
    wide = cv2.dilate(image, np.ones((9, 9)))  # one pixel would be lost in the rounding
    made = ANNOTATORS.create("blur", sigma=5)(wide)[:, :, 0].astype(float)
    places = np.arange(81) - 40
    variance = (made.sum(axis=0) * places**2).sum() / made.sum()
    assert variance == pytest.approx(5**2 + (9**2 - 1) / 12, rel=0.05)


@pytest.mark.parametrize("scale", [256, 20])
def test_shuffle_is_the_librarys_with_its_seed_fixed(scale):
    """At a size that the library does not round; it draws from numpy's global generator."""
    photo = draw_photo(3, 192, 128)
    np.random.seed(seed_of(photo, 4))  # noqa: NPY002
    theirs = auxiliary.module("shuffle").ContentShuffleDetector()
    expected = theirs(photo, f=scale, detect_resolution=128, image_resolution=128, output_type="np")
    assert np.array_equal(ANNOTATORS.create("shuffle", scale=scale, seed=4)(photo), expected)


def test_shuffle_does_not_touch_the_global_generator(photo):
    np.random.seed(0)  # noqa: NPY002
    first = np.random.random()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    ANNOTATORS.create("shuffle")(photo)
    assert np.random.random() == first  # noqa: NPY002


@pytest.mark.parametrize("type_name", ["shuffle", "inpaint"])
def test_what_is_drawn_belongs_to_picture_and_seed(type_name):
    first, second = draw_photo(1, 80, 60), draw_photo(2, 80, 60)
    annotator = ANNOTATORS.create(type_name)
    assert np.array_equal(annotator(first), annotator(first.copy()))
    assert not np.array_equal(annotator(first), annotator(second))
    assert not np.array_equal(annotator(first), ANNOTATORS.create(type_name, seed=1)(first))


@pytest.mark.parametrize("shapes", ["mixed", "boxes", "strokes"])
def test_the_white_share_of_a_mask_is_as_asked(shapes):
    """At least the least; the last shape may carry it a little over the most."""
    annotator = ANNOTATORS.create("inpaint", shapes=shapes, least=0.2, most=0.4)
    shares = [(annotator(draw_photo(number, 120, 90)) == 255).mean() for number in range(20)]
    assert all(0.2 <= share <= 0.4 + 0.16 for share in shares)  # a box takes 0.4 x 0.4 at most
    assert max(shares) - min(shares) > 0.1


def test_boxes_are_boxes():
    """The first one: all that is white fills its own bounding box."""
    annotator = ANNOTATORS.create("inpaint", shapes="boxes", least=0.001, most=0.001)
    mask = annotator(draw_photo(1, 120, 90))[:, :, 0]
    rows, columns = np.where(mask)
    assert (mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 255).all()


def test_lineart_standard_is_the_librarys():
    photo = draw_photo(3, 192, 128)
    expected = auxiliary.module("lineart_standard").LineartStandardDetector()(
        photo, guassian_sigma=6.0, intensity_threshold=8, detect_resolution=128, output_type="np"
    )
    made = ANNOTATORS.create("lineart", "standard", resolution=128)(photo)
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert made.max() > 100


@pytest.mark.parametrize("backend", ["standard", "xdog"])
def test_a_dark_line_is_drawn_bright_on_black(backend):
    """Paper with one dark line: bright along the line, black far from it."""
    paper = np.full((256, 256, 3), 230, np.uint8)
    cv2.line(paper, (128, 0), (128, 255), (20, 20, 20), 3)
    made = ANNOTATORS.create({"standard": "lineart", "xdog": "scribble"}[backend], backend)(paper)
    assert (made[:, 128] > 120).all()
    assert (made[:, :90] == 0).all()


def test_a_flat_picture_has_no_lines(recwarn):
    flat = np.full((60, 80, 3), 120, np.uint8)
    for type_name, backend in (("lineart", "standard"), ("scribble", "xdog"), ("canny", None)):
        assert not ANNOTATORS.create(type_name, backend)(flat).any()
    assert not list(recwarn)


def test_a_drawing_becomes_a_map():
    drawing = np.full((40, 60, 3), 255, np.uint8)
    cv2.line(drawing, (5, 5), (50, 30), (90, 90, 90), 2)
    assert np.array_equal(ANNOTATORS.create("lineart", "invert")(drawing), 255 - drawing)
    strokes = ANNOTATORS.create("scribble", "threshold")(drawing)
    assert np.array_equal(strokes == 255, drawing < 128)
