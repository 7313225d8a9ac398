"""DDPM's ancestral walk x_T -> x_0 (arXiv:2006.11239, Algorithm 2), on all steps of a schedule or on some.

Beside diffusers' DDPMScheduler because that takes t - T // N for the previous step whatever the grid, so that a
linspace or a hand-made grid is walked with variances of steps never taken. Here the schedule is respaced to the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from controlkit.diffusion.forward import posterior
from controlkit.diffusion.prediction import check_prediction, to_x0
from controlkit.diffusion.respacing import respace
from controlkit.diffusion.variance import log_variance, split_output

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from controlkit.diffusion.schedules import Schedule

    Model = Callable[[Tensor, Tensor], Tensor]  # (x_t, t (B,) int64) -> prediction


def sample(
    model: Model,
    x_T: Tensor,
    schedule: Schedule,
    *,
    tau: Tensor | None = None,
    prediction_type: str = "epsilon",
    variance: str = "fixed_small",
    clip: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Walk from noise x_T (B, …) through the timesteps tau (all of them where None); the last step adds no noise.

    `variance` as in `variance.VARIANCES`; with "learned_range" the model returns twice the channels. `clip` holds the
    predicted x_0 within ±clip, for pictures.
    """
    check_prediction(prediction_type, schedule)
    tau = torch.arange(schedule.num_steps) if tau is None else tau.sort().values
    spaced = respace(schedule, tau)
    x_t = x_T
    for i in reversed(range(len(tau))):
        output, v_hat = model(x_t, tau[i].expand(len(x_t)).to(x_t.device)), None
        if variance == "learned_range":
            output, v_hat = split_output(output, x_t.shape[1])
        alpha_bar_t, alpha_bar_prev = spaced.alpha_bar[i], spaced.alpha_bar_prev[i]
        x_0 = to_x0(prediction_type, output, x_t, alpha_bar_t, alpha_bar_prev)
        x_0 = x_0 if clip is None else x_0.clamp(-clip, clip)
        mean = posterior(x_0, x_t, alpha_bar_t, alpha_bar_prev).mean
        log = log_variance(variance, spaced, torch.tensor(i), x_t, v_hat)
        x_t = mean + (0.5 * log).exp() * noise_like(x_t, generator) if i > 0 else mean
    return x_t


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) in the shape of x, drawn where the generator lives: a CPU generator draws alike for every device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=device).to(x.device)
