"""The forward process: how x_0 becomes noise, and what is known of x_s once x_t and x_0 are.

    x_0   the clean latent or picture, (B, C, H, W) or any shape, about unit variance
    x_t   a_t x_0 + b_t eps, with eps ~ N(0, 1) of the same shape
    level where x_t stands: alpha_bar_t, for a_t = sqrt(alpha_bar_t) and b_t = sqrt(1 - alpha_bar_t) (DDPM,
          arXiv:2006.11239); or any other pair as a `Path` (a_t and b_t as in SD3, arXiv:2403.03206, Sec. 2)

A level is one number or one per item of the batch, (B,). What follows from it is computed in its own precision and
rounded to that of x last: pass float64, straight from a `Schedule`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Path:
    """One place, or one per item, on the way from x_0 (a = 1, b = 0) to noise: x_t = a x_0 + b eps."""

    a: Tensor
    b: Tensor

    @staticmethod
    def variance_preserving(alpha_bar_t: Tensor | float) -> Path:
        """DDPM's way, a² + b² = 1."""
        alpha_bar_t = _floats(alpha_bar_t)
        return Path(alpha_bar_t**0.5, (1 - alpha_bar_t) ** 0.5)

    @staticmethod
    def rectified_flow(t: Tensor | float) -> Path:
        """The straight way, a + b = 1, with t from 0 (clean) to 1 (noise); SD3's and Flux's."""
        t = _floats(t)
        return Path(1 - t, t)


Level = Tensor | float | Path


class Gaussian(NamedTuple):
    """N(mean, variance); the variance broadcasts over the mean."""

    mean: Tensor
    variance: Tensor


def q_step(x_prev: Tensor, noise: Tensor, beta_t: Tensor | float) -> Tensor:
    """One step x_{t-1} -> x_t (DDPM, Eq. 2)."""
    step = path(1 - _floats(beta_t))
    return over(step.a, x_prev) * x_prev + over(step.b, x_prev) * noise


def q_sample(x_0: Tensor, eps: Tensor, alpha_bar_t: Level) -> Tensor:
    """All steps at once, x_0 -> x_t (DDPM, Eq. 4)."""
    at = path(alpha_bar_t)
    return over(at.a, x_0) * x_0 + over(at.b, x_0) * eps


def q_jump(x_s: Tensor, noise: Tensor, alpha_bar_s: Level, alpha_bar_t: Level) -> Tensor:
    """From any level to a noisier one, x_s -> x_t, in the notation of VDM (arXiv:2107.00630, Sec. 3.1)."""
    alpha_ts, variance_ts = _between(path(alpha_bar_s), path(alpha_bar_t))
    if (variance_ts < -1e-6).any():
        raise ValueError("q_jump goes from less noise to more, but level t is the cleaner one; swap the two levels")
    return over(alpha_ts, x_s) * x_s + over(variance_ts.clamp(min=0) ** 0.5, x_s) * noise


def posterior(x_0: Tensor, x_t: Tensor, alpha_bar_t: Level, alpha_bar_prev: Level) -> Gaussian:
    """q(x_{t-1} | x_t, x_0) (DDPM, Eqs. 6 and 7), and likewise q(x_s | x_t, x_0) for any cleaner level s."""
    c_0, c_t, variance = posterior_coefficients(alpha_bar_t, alpha_bar_prev)
    return Gaussian(over(c_0, x_t) * x_0 + over(c_t, x_t) * x_t, over(variance, x_t))


def posterior_coefficients(alpha_bar_t: Level, alpha_bar_prev: Level) -> tuple[Tensor, Tensor, Tensor]:
    """c_0, c_t and the variance of q(x_{t-1} | x_t, x_0) = N(c_0 x_0 + c_t x_t, variance)."""
    s, t = path(alpha_bar_prev), path(alpha_bar_t)
    alpha_ts, variance_ts = _between(s, t)
    return s.a * variance_ts / t.b**2, alpha_ts * s.b**2 / t.b**2, variance_ts * s.b**2 / t.b**2


def path(level: Level) -> Path:
    """The level as a_t and b_t."""
    return level if isinstance(level, Path) else Path.variance_preserving(level)


def over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, one number or (B,), in the type and on the device of x and ready to multiply it."""
    if not x.is_floating_point():
        raise ValueError(f"expected latents, or pictures in [-1, 1], as floats; got {x.dtype}: convert them first")
    if coefficient.ndim == 1:
        if len(coefficient) not in (1, x.shape[0] if x.ndim else 1):
            raise ValueError(
                f"{len(coefficient)} levels for a batch of {x.shape[0] if x.ndim else 1}; give one per item"
            )
        coefficient = coefficient.reshape(-1, *[1] * (x.ndim - 1)) if x.ndim else coefficient.reshape(())
    elif coefficient.ndim not in (0, x.ndim):
        raise ValueError(f"levels of shape {tuple(coefficient.shape)}: expected one number or one per item, (B,)")
    return coefficient.to(x)


def _between(s: Path, t: Path) -> tuple[Tensor, Tensor]:
    """q(x_t | x_s) = N(alpha_ts x_s, variance_ts) (VDM, App. A)."""
    alpha_ts = t.a / s.a
    return alpha_ts, t.b**2 - alpha_ts**2 * s.b**2


def _floats(level: Tensor | float) -> Tensor:
    if not isinstance(level, Tensor):
        return torch.tensor(level, dtype=torch.float64)
    if not level.is_floating_point():
        raise ValueError(
            f"a noise level of type {level.dtype}: expected alpha_bar_t; pass schedule.alpha_bar[t], not t"
        )
    return level
