"""The Fréchet distance of two sets of features, each taken for a Gaussian (FID's formula, arXiv:1706.08500).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))

Sums are kept in float64 and pictures may come in any portions: 50,000 need no more memory than 500.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Moments:
    """Mean and covariance of features (N, D) that arrive in portions."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))  # sum of (x - mean)(x - mean)^T

    def add(self, features: NDArray[np.floating]) -> Moments:
        """Take in (N, D) more; merged so that large means cost no digits of small variances (Chan et al., 1979)."""
        more = features.astype(np.float64)
        mean = more.mean(axis=0)
        shift, total = mean - self._mean, self.count + len(more)
        self._scatter += (more - mean).T @ (more - mean) + np.outer(shift, shift) * (self.count * len(more) / total)
        self._mean = self._mean + shift * (len(more) / total)
        self.count = total
        return self

    @property
    def mean(self) -> NDArray[np.float64]:
        return self._mean

    @property
    def covariance(self) -> NDArray[np.float64]:
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(one: Moments, other: Moments) -> float:
    """0 for equal moments. tr (C_a C_b)^(1/2) comes from the symmetric C_a^(1/2) C_b C_a^(1/2), which has the same
    eigenvalues: no root of a product that is not symmetric, no imaginary rest."""
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ other.covariance @ root).clip(0)
    distance = np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance)
    return float(max(0.0, distance - 2 * np.sqrt(crossed).sum()))
