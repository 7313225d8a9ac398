"""Intervals: Wilson's against its equation, the bootstrap against the normal one, both against how often they hold."""

import numpy as np
import pytest

from controlkit.evaluation.scores import Score


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (250, 500)])
def test_wilsons_bounds_solve_their_equation(hits, n):
    """At a bound p the observed share is z standard errors of p away."""
    score = Score.of_share([True] * hits + [False] * (n - hits))
    assert score.mean == hits / n
    assert score.n == n
    for bound in (score.low, score.high):
        if 1e-9 < bound < 1 - 1e-9:
            z = abs(score.mean - bound) / np.sqrt(bound * (1 - bound) / n)
            assert z == pytest.approx(1.96, abs=1e-3)
    assert 0 <= score.low <= score.mean <= score.high <= 1
    assert score.low < score.high


def test_the_bootstrap_is_near_the_normal_interval_and_repeats():
    values = np.random.default_rng(1).normal(5, 2, 400)
    score = Score.of_values(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert score.mean == pytest.approx(values.mean())
    assert score.high - score.mean == pytest.approx(half, rel=0.1)
    assert score.mean - score.low == pytest.approx(half, rel=0.1)
    assert Score.of_values(values) == score


def test_intervals_hold_as_often_as_they_say():
    random = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        score = Score.of_share((random.random(60) < 0.8).tolist())
        held += score.low <= 0.8 <= score.high
    assert held / 300 > 0.91


@pytest.mark.parametrize("make", [Score.of_share, Score.of_values])
def test_nothing_has_no_score(make):
    with pytest.raises(ValueError, match="no pictures"):
        make([])
