"""The variance of the reverse step p(x_{t-1} | x_t), between its two bounds.

    beta_tilde_t  fixed small: variance of q(x_{t-1} | x_t, x_0) (DDPM, Eq. 7); right if x_0 were one point
    beta_t        fixed large: right if x_0 ~ N(0, 1)
    learned range exp(v log beta_t + (1 - v) log beta_tilde_t) with v from the network (IDDPM, Eq. 15)
Logarithms throughout, as the losses want them; t is an index into the schedule, respaced or not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from controlkit.diffusion.forward import over, posterior_coefficients
from controlkit.diffusion.names import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from controlkit.diffusion.schedules import Schedule

VARIANCES = ("fixed_small", "fixed_large", "learned_range")


def posterior_variance(schedule: Schedule) -> Tensor:
    """beta_tilde (T,), 0 for the first step (DDPM, Eq. 7)."""
    return posterior_coefficients(schedule.alpha_bar, schedule.alpha_bar_prev)[2]


def log_fixed_small(schedule: Schedule) -> Tensor:
    """log beta_tilde (T,); the first, log 0, takes the second's place as in IDDPM's code."""
    beta_tilde = posterior_variance(schedule)
    first = beta_tilde[1:2] if schedule.num_steps > 1 else schedule.betas
    return torch.cat([first, beta_tilde[1:]]).log()


def log_fixed_large(schedule: Schedule) -> Tensor:
    """log beta (T,)."""
    return schedule.betas.log()


def log_learned_range(v_hat: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
    """Log variance in the shape of v_hat, the network's raw output, whose -1 means beta_tilde and 1 means beta.

    IDDPM, Eq. 15, with v = (v_hat + 1) / 2; v_hat is not clipped, there as here.
    """
    t = t.to("cpu")
    v = (v_hat + 1) / 2
    return v * over(log_fixed_large(schedule)[t], v_hat) + (1 - v) * over(log_fixed_small(schedule)[t], v_hat)


def log_variance(kind: str, schedule: Schedule, t: Tensor, x_t: Tensor, v_hat: Tensor | None = None) -> Tensor:
    """By name, ready to broadcast over x_t; v_hat is for "learned_range" alone."""
    if kind not in VARIANCES:
        raise unknown("variance", kind, VARIANCES)
    if (v_hat is not None) != (kind == "learned_range"):
        raise ValueError(f"variance {kind!r} {'needs' if v_hat is None else 'does not take'} the network's v_hat")
    if v_hat is not None:
        return log_learned_range(v_hat, schedule, t)
    log = log_fixed_small(schedule) if kind == "fixed_small" else log_fixed_large(schedule)
    return over(log[t.to("cpu")], x_t)


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Output (B, 2C, H, W) of a network that learns its variance: prediction and v_hat, (B, C, H, W) each."""
    if output.ndim < 2 or output.shape[1] != 2 * channels:
        raise ValueError(
            f"learned variance needs 2 x {channels} = {2 * channels} output channels, the network gave "
            f"{tuple(output.shape)}; build it with out_channels={2 * channels}, or use 'fixed_small' or 'fixed_large'"
        )
    prediction, v_hat = output.chunk(2, dim=1)
    return prediction, v_hat
