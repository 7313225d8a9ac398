"""A score is a mean with the interval in which it lies with 95 % confidence, so that a difference is not noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

_Z = 1.959963984540054  # of the normal distribution, 95 % on both sides
_RESAMPLES = 2000
_POOLED_RESAMPLES = 300  # of figures that take longer than a mean
_DRAWN_TOGETHER = 1_000_000  # places: 8 MB
_MEANINGLESS = 0.025  # share of the draws


@dataclass(frozen=True)
class Score:
    """Over `n` pictures; without an interval where there is none to state."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @staticmethod
    def of_share(hits: Sequence[bool]) -> Score:
        """The share of pictures that pass; Wilson's interval, which holds at 0 and 1 too."""
        n = len(hits)
        if n == 0:
            raise ValueError("a share of no pictures; expected at least one")
        share = sum(hits) / n
        centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * np.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        # At 0 and 1 one bound is the share itself, which rounding must not pass.
        return Score(share, float(min(share, max(0, centre - half))), float(max(share, min(1, centre + half))), n)

    @staticmethod
    def of_values(values: ArrayLike) -> Score:
        """The mean of a value of each picture; bootstrap percentiles, the same whenever they are drawn."""
        each = np.asarray(values, dtype=np.float64)
        if each.size == 0:
            raise ValueError("a mean of no pictures; expected at least one")
        means = np.concatenate([each[places].mean(axis=1) for places in _resamples(each.size)])
        low, high = np.percentile(means, [2.5, 97.5])
        return Score(float(each.mean()), float(low), float(high), each.size)

    @staticmethod
    def of_pool(shown: Sequence[Any], pool: Callable[[Sequence[Any]], float | None]) -> Score | None:
        """A figure that many pictures have together and none alone; bootstrap over the pictures. None where they have
        none."""
        value = pool(shown)
        if value is None:
            return None
        random, draws = np.random.default_rng(0), []
        for _ in range(_POOLED_RESAMPLES):
            drawn = pool([shown[place] for place in random.integers(len(shown), size=len(shown))])
            if drawn is not None:
                draws.append(drawn)
        low, high = np.percentile(draws, [2.5, 97.5])
        return Score(value, float(low), float(high), len(shown))


def paired_share(parts: ArrayLike, wholes: ArrayLike) -> Score | None:
    """The sum of the parts over the sum of the wholes, each pair belonging to one picture; bootstrap over the pictures.
    None where some draws leave nothing of the whole, or turn it round: the share has no meaning then."""
    part, whole = np.asarray(parts, dtype=np.float64), np.asarray(wholes, dtype=np.float64)
    above, below = np.hstack(
        [(part[places].sum(axis=1), whole[places].sum(axis=1)) for places in _resamples(part.size)]
    )
    if whole.sum() == 0 or (np.sign(below) != np.sign(whole.sum())).mean() > _MEANINGLESS:
        return None
    kept = np.sign(below) == np.sign(whole.sum())
    low, high = np.percentile(above[kept] / below[kept], [2.5, 97.5])
    return Score(float(part.sum() / whole.sum()), float(low), float(high), part.size)


def _resamples(count: int) -> Iterator[NDArray[np.int64]]:
    """The places that each resample draws (N, count), the same whenever they are drawn, a portion at a time."""
    random, together = np.random.default_rng(0), max(1, _DRAWN_TOGETHER // count)
    for start in range(0, _RESAMPLES, together):
        yield random.integers(count, size=(min(together, _RESAMPLES - start), count))


def difference(one: ArrayLike, other: ArrayLike) -> Score:
    """Mean of one - other over pictures that both have."""
    return Score.of_values(np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64))
