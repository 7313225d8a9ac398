"""The Fréchet distance against its closed forms, scipy's matrix root, and moments taken at once."""

import numpy as np
import pytest
import scipy.linalg

from controlkit.evaluation.frechet import Moments, frechet_distance


def moments_of(features):
    return Moments(features.shape[1]).add(features)


def drawn(seed, count=400, width=6):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, width)) @ random.normal(size=(width, width)) + random.normal(size=width)


def test_moments_do_not_depend_on_the_portions():
    """Also far from zero, where a plain sum of squares would lose the variance."""
    features = drawn(0) + 1e6
    portions = Moments(6)
    for start in (0, 1, 2, 150):
        portions.add(features[start : {0: 1, 1: 2, 2: 150, 150: 400}[start]])
    assert portions.count == 400
    np.testing.assert_allclose(portions.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(portions.covariance, np.cov(features, rowvar=False), rtol=1e-6)


def test_equal_sets_are_at_distance_zero():
    assert frechet_distance(moments_of(drawn(1)), moments_of(drawn(1))) == pytest.approx(0, abs=1e-6)


def test_a_shift_counts_its_square():
    features = drawn(2)
    shifted = features + np.array([3.0, 0, 0, 0, 0, 4.0])
    assert frechet_distance(moments_of(features), moments_of(shifted)) == pytest.approx(25, rel=1e-6)


def test_one_dimension_has_a_closed_form():
    """(m_a - m_b)^2 + (s_a - s_b)^2."""
    random = np.random.default_rng(3)
    one, other = random.normal(1, 2, (500, 1)), random.normal(4, 5, (300, 1))
    expected = (one.mean() - other.mean()) ** 2 + (one.std(ddof=1) - other.std(ddof=1)) ** 2
    assert frechet_distance(moments_of(one), moments_of(other)) == pytest.approx(expected, rel=1e-9)


def test_scipys_root_of_the_product_gives_the_same():
    one, other = moments_of(drawn(4)), moments_of(drawn(5))
    root = scipy.linalg.sqrtm(one.covariance @ other.covariance).real
    expected = np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_fewer_pictures_than_features_are_no_failure():
    few = drawn(6, count=3)
    assert frechet_distance(moments_of(few), moments_of(few + 1)) == pytest.approx(6, rel=1e-6)


def test_one_picture_has_no_covariance():
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        frechet_distance(moments_of(drawn(7)[:1]), moments_of(drawn(7)))
