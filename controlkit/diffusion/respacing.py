"""Fewer steps than the schedule has: which t are visited, and the schedule that these steps make.

tau is DDIM's word (arXiv:2010.02502, Sec. 4.2) for the visited t; "leading", "trailing" and "linspace" are those of
Lin et al. (arXiv:2305.08891, Table 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from controlkit.diffusion.names import unknown
from controlkit.diffusion.schedules import Schedule

SPACINGS = ("leading", "linspace", "trailing")


def timestep_grid(T: int, steps: int, spacing: str = "leading", offset: int = 0) -> Tensor:
    """tau (steps,) int64, falling. `offset` moves the leading grid (Stable Diffusion: 1); the others have none."""
    if not 1 <= steps <= T:
        raise ValueError(f"{steps} steps on a schedule of {T}: expected 1 to {T}")
    if spacing == "leading":
        tau = torch.arange(steps) * (T // steps) + offset
        if not (tau[0] >= 0 and tau[-1] < T):
            raise ValueError(
                f"{steps} leading steps with offset {offset} reach from t = {int(tau[0])} to {int(tau[-1])}, outside "
                f"0 … {T - 1}; take fewer steps or another offset"
            )
    elif offset:
        raise ValueError(f"offset {offset} with {spacing!r} spacing: only 'leading' has an offset; leave it at 0")
    elif spacing == "linspace":
        tau = torch.linspace(0, T - 1, steps, dtype=torch.float64).round().long()
    elif spacing == "trailing":
        tau = (T - torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (T / steps)).round().long() - 1
    else:
        raise unknown("spacing", spacing, SPACINGS)
    return tau.flip(0)


def respace(schedule: Schedule, tau: Tensor) -> Schedule:
    """The schedule of the steps tau alone: same alpha_bar there, beta_i = 1 - alpha_bar_i / alpha_bar_{i-1}.

    IDDPM (arXiv:2102.09672), Eq. 19. tau in any order, no t twice.
    """
    tau = tau.sort().values
    if len(tau) == 0 or len(set(tau.tolist())) != len(tau) or tau[0] < 0 or tau[-1] >= schedule.num_steps:
        raise ValueError(f"timesteps {tau.tolist()}: expected each once, within 0 … {schedule.num_steps - 1}")
    alpha_bar = schedule.alpha_bar[tau]
    return Schedule(1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]]))
