"""Noise schedules: how fast a picture drowns in noise.

Notation of DDPM (arXiv:2006.11239), but t counts 0 … T-1 as in all code, where the papers count 1 … T:
    beta_t       variance of the noise that step t adds
    alpha_bar_t  (1 - beta_0) … (1 - beta_t): the share of x_0's variance left after step t; 1 before the first step
    snr_t        alpha_bar_t / (1 - alpha_bar_t), signal over noise
    sigma_t      snr_t^(-1/2), noise over a signal of unit scale: the clock of Karras et al. (arXiv:2206.00364)
All in float64: near alpha_bar_t = 1, float32 keeps three digits of 1 - alpha_bar_t.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from controlkit.diffusion.names import unknown


@dataclass(frozen=True, eq=False)
class Schedule:
    """beta_t (T,) float64 and all that follows from it."""

    betas: Tensor

    def __post_init__(self) -> None:
        betas = torch.as_tensor(self.betas).detach().to("cpu", torch.float64, copy=True)
        if betas.ndim != 1 or len(betas) == 0:
            raise ValueError(f"betas of shape {tuple(betas.shape)}: expected one value per step, shape (T,)")
        # Only the last step may destroy everything: after beta_t = 1 there is no signal left for a further step.
        wrong = ~((betas > 0) & (betas <= 1))
        wrong[:-1] |= betas[:-1] == 1
        if wrong.any():
            t = int(wrong.nonzero()[0, 0])
            raise ValueError(f"beta_{t} = {betas[t].item():g}: expected 0 < beta < 1 (the last may be 1)")
        object.__setattr__(self, "betas", betas)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.betas)

    @cached_property
    def alpha_bar(self) -> Tensor:
        """(T,): x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM, Eq. 4)."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def alpha_bar_prev(self) -> Tensor:
        """(T,): alpha_bar one step earlier, 1 for the first."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @cached_property
    def snr(self) -> Tensor:
        """(T,)."""
        return self.alpha_bar / (1 - self.alpha_bar)

    @cached_property
    def sigmas(self) -> Tensor:
        """(T,), rising; infinite where alpha_bar is 0."""
        return ((1 - self.alpha_bar) / self.alpha_bar) ** 0.5

    def timestep_of(self, sigma: Tensor) -> Tensor:
        """The t, with fraction, whose noise level is sigma: linear in log sigma, held at both ends."""
        t = np.interp(sigma.cpu().double().log().numpy(), self.sigmas.log().numpy(), np.arange(self.num_steps))
        return torch.as_tensor(t, dtype=torch.float64)


def linear(T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """beta_t linear in t (DDPM, Sec. 4), times 1000 / T for other T so that the end stays as noisy.

    Scaling as in IDDPM's code (arXiv:2102.09672); the two ends are those for T = 1000.
    """
    _at_least_one_step(T)
    scale = 1000 / T
    if beta_end * scale > 1:
        raise ValueError(
            f"linear schedule of {T} steps would need beta {beta_end * scale:g} at its end, above 1; "
            f"take at least {math.ceil(beta_end * 1000)} steps, or respace a longer schedule"
        )
    return Schedule(torch.linspace(beta_start * scale, beta_end * scale, T, dtype=torch.float64))


def scaled_linear(T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Schedule:
    """sqrt(beta_t) linear in t: Stable Diffusion's.

    Called "linear" in latent diffusion's code, which like diffusers takes the same two ends for every T: with T far
    below 1000 it does not end in noise. Respace the long one instead.
    """
    _at_least_one_step(T)
    return Schedule(torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64) ** 2)


def cosine(T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """alpha_bar_t falls like cos^2 (IDDPM, Eq. 17); diffusers' squaredcos_cap_v2."""
    _at_least_one_step(T)
    f = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + s) / (1 + s) * math.pi / 2) ** 2
    return Schedule((1 - f[1:] / f[:-1]).clamp(max=max_beta))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The same schedule, shifted so that it ends in pure noise, alpha_bar = 0 (arXiv:2305.08891, Algorithm 1)."""
    signal = schedule.alpha_bar**0.5
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    alpha_bar = signal**2
    return Schedule(1 - alpha_bar / torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]]))


SCHEDULES = {"linear": linear, "scaled_linear": scaled_linear, "cosine": cosine}


def schedule(name: str, T: int = 1000) -> Schedule:
    """By name, with the constants of its paper."""
    if name not in SCHEDULES:
        raise unknown("schedule", name, SCHEDULES)
    return SCHEDULES[name](T)


def from_scheduler_config(config: Mapping[str, Any] | Any) -> Schedule:
    """The schedule that a diffusers scheduler, or its config, stands for.

    What the config leaves out is the default of the class that it names (DDPMScheduler where it names none).
    """
    scheduler = source_scheduler(config)
    stated = scheduler.config
    ends = stated.get("beta_start"), stated.get("beta_end"), stated.num_train_timesteps
    if stated.get("trained_betas") is not None:
        betas = torch.as_tensor(np.asarray(stated.trained_betas, dtype=np.float64))
    elif stated.get("beta_schedule") == "linear":
        betas = torch.linspace(*ends, dtype=torch.float64)
    elif stated.get("beta_schedule") == "scaled_linear":
        betas = torch.linspace(ends[0] ** 0.5, ends[1] ** 0.5, ends[2], dtype=torch.float64) ** 2
    elif stated.get("beta_schedule") == "squaredcos_cap_v2":
        betas = cosine(stated.num_train_timesteps).betas
    else:
        # Rarer ones (sigmoid, laplace, …) as diffusers makes them, in float32 and, where asked for, already rescaled.
        return Schedule(scheduler.betas)
    found = Schedule(betas)
    return zero_terminal_snr(found) if stated.get("rescale_betas_zero_snr") else found


def source_scheduler(config: Mapping[str, Any] | Any) -> Any:
    """The diffusers scheduler that a config describes (a scheduler is passed through); one without betas is refused."""
    if isinstance(config, Mapping):
        import diffusers

        name = config.get("_class_name", "DDPMScheduler")
        kind = getattr(diffusers, name, None) if isinstance(name, str) else None
        if kind is None or not hasattr(kind, "from_config"):
            raise ValueError(
                f"scheduler config names the class {name!r}, which diffusers {diffusers.__version__} lacks"
            )
        # Not by from_config: it drops the values that a config in memory marks as defaults, which are those of a class
        # that such a config does not name.
        parameters = inspect.signature(kind.__init__).parameters
        try:
            scheduler = kind(**{key: value for key, value in config.items() if key in parameters})
        except NotImplementedError as error:
            raise ValueError(f"{name} knows no beta_schedule {config.get('beta_schedule')!r}") from error
    else:
        scheduler = config
    if not isinstance(getattr(scheduler, "betas", None), Tensor):
        raise ValueError(
            f"{type(scheduler).__name__} has no betas; expected a scheduler of DDPM's family, or its config, "
            "such as DDPMScheduler, DDIMScheduler or EulerDiscreteScheduler"
        )
    return scheduler


def karras_sigmas(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """(n,) noise levels falling from sigma_max to sigma_min, closer together where there is little noise.

    EDM (arXiv:2206.00364), Eq. 5, without its final 0.
    """
    _at_least_one_step(n)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    first, last = math.pow(sigma_max, 1 / rho), math.pow(sigma_min, 1 / rho)
    return (ramp * (last - first) + first).pow(rho)


def _at_least_one_step(n: int) -> None:
    if n < 1:
        raise ValueError(f"{n} steps: expected at least 1")
