"""Data whose best denoiser is known in closed form, and a walk of diffusers' schedulers that asks it.

Everything in sigma's clock: y = x_0 + sigma eps, and D(y, sigma) = E[x_0 | y] is what a perfect network would say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from controlkit.diffusion import schedules
from controlkit.diffusion.samplers import make_sampler

STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SIGMA_MIN, SIGMA_MAX = (schedules.scaled_linear().sigmas[i].item() for i in (0, -1))

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Normal:
    """x_0 ~ N(mu, s²)."""

    mu: float
    s: float

    def denoise(self, y: Tensor, sigma: Tensor) -> Tensor:
        return (self.s**2 * y + sigma**2 * self.mu) / (self.s**2 + sigma**2)

    def flow(self, y: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
        """Where the probability-flow ODE carries y: distances to mu scale with the marginal's deviation."""
        return self.mu + (y - self.mu) * ((self.s**2 + sigma_to**2) / (self.s**2 + sigma_from**2)) ** 0.5


class Mixture:
    """Three bumps in one dimension; there the ODE is the map that keeps quantiles."""

    weight = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
    mean = torch.tensor([-1.2, 0.3, 1.5], dtype=torch.float64)
    s = torch.tensor([0.15, 0.25, 0.1], dtype=torch.float64)

    def denoise(self, y: Tensor, sigma: Tensor) -> Tensor:
        variance = self.s**2 + sigma**2
        each = (self.s**2 * y[..., None] + sigma**2 * self.mean) / variance
        log_density = self.weight.log() - 0.5 * variance.log() - (y[..., None] - self.mean) ** 2 / (2 * variance)
        return (log_density.softmax(-1) * each).sum(-1)

    def quantile(self, p: Tensor, sigma: float) -> Tensor:
        """By bisection of the distribution function."""
        low, high = torch.full_like(p, -100), torch.full_like(p, 100)
        for _ in range(80):
            middle = (low + high) / 2
            cdf = (self.weight * torch.special.ndtr((middle[:, None] - self.mean) / (self.s**2 + sigma**2) ** 0.5)).sum(
                -1
            )
            low, high = middle.where(cdf < p, low), high.where(cdf < p, middle)
        return (low + high) / 2


def walk(name: str, denoise: Denoiser, y: Tensor, n: int, *, to_zero: bool = False) -> Tensor:
    """y (B, 1) at SIGMA_MAX down n Karras sigmas by the named sampler, and only if asked the final step to 0."""
    scheduler: Any = make_sampler(name, STABLE_DIFFUSION)
    scheduler.set_timesteps(n)
    scheduler.set_begin_index(0)  # near the end several sigmas round to one timestep
    variance_preserving = scheduler.init_noise_sigma == 1
    scale = (lambda sigma: (1 + sigma**2) ** 0.5) if variance_preserving else (lambda sigma: 1)
    x = y / scale(scheduler.sigmas[0].double())
    for i, t in enumerate(scheduler.timesteps if to_zero else scheduler.timesteps[:-1]):
        scheduler.scale_model_input(x, t)
        # DPM2 asks every other time between two sigmas.
        between = hasattr(scheduler, "sigmas_interpol") and not scheduler.state_in_first_order
        sigma = (scheduler.sigmas_interpol if between else scheduler.sigmas)[i].double()
        eps = (x * scale(sigma) - denoise(x * scale(sigma), sigma)) / sigma
        x = scheduler.step(eps, t, x).prev_sample.double()
    return x * scale(scheduler.sigmas[scheduler.step_index].double())
