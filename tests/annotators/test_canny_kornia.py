"""kornia's Canny: ramps whose gradients can be written down.

A ramp of two steps, 0, a/2, a, has one column of greatest gradient. Sobel's weights sum to 4 down the column, and the
blur leaves w_0 + 2 w_1 / 2 of the difference across it, so that the magnitude there is 4 a (w_0 + w_1).
"""

import math

import numpy as np
import pytest

from annotators import ANNOTATORS

_WEIGHTS = [math.exp(-(x**2) / 2) for x in (-2, -1, 0, 1, 2)]
GAIN = 4 * (_WEIGHTS[2] + _WEIGHTS[1]) / sum(_WEIGHTS)
COLUMN = 10


def ramp(*heights, rows=12):
    """One ramp above the other, all at the same column, in grey levels."""
    image = np.zeros((rows * len(heights), 24, 3), np.uint8)
    for place, height in enumerate(heights):
        part = image[place * rows : (place + 1) * rows]
        part[:, COLUMN], part[:, COLUMN + 1 :] = height // 2, height
    return image


def edges(image, **options):
    return ANNOTATORS.create("canny", "kornia", **options)(image)[:, :, 0] > 0


def test_an_edge_begins_above_the_high_threshold():
    low, high = 14, 20
    assert 0.1 < low / 255 * GAIN < 0.2 < high / 255 * GAIN
    found = edges(ramp(high))
    assert found[:, COLUMN].all()
    assert found.sum() == found.shape[0]
    assert not edges(ramp(low)).any()
    assert edges(ramp(low), high=0.12).any()


def test_a_weak_edge_lives_by_a_strong_one():
    """The same weak ramp alone has no edge; nor does one below the low threshold, whatever it leads to."""
    strong, weak, none = 22, 16, 8
    assert none / 255 * GAIN < 0.1 < weak / 255 * GAIN < 0.2 < strong / 255 * GAIN
    assert edges(ramp(strong, weak))[:, COLUMN].all()
    assert not edges(ramp(weak)).any()
    assert not edges(ramp(strong, none))[-8:].any()


def test_turned_pictures_have_turned_edges():
    """All four directions in which neighbours are compared."""
    y, x = np.mgrid[:41, :41] - 20
    disc = np.clip(12 - np.hypot(x, y), 0, 1) * 200
    picture = np.repeat(disc.round().astype(np.uint8)[:, :, None], 3, axis=2)
    found = edges(picture)
    assert found.sum() > 40
    assert (edges(np.ascontiguousarray(np.rot90(picture))) == np.rot90(found)).all()
    assert (edges(np.ascontiguousarray(picture[::-1])) == found[::-1]).all()
    assert (abs(np.hypot(x, y)[found] - 11.5) < 1.5).all()


def test_thresholds_are_shares():
    with pytest.raises(ValueError, match=r"low=100.0 and high=200.0: expected 0 < low <= high < 1"):
        ANNOTATORS.create("canny", "kornia", low=100, high=200)
