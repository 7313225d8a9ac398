"""DDIM: the same trained network walked straight, forth and back (arXiv:2010.02502).

    eta   0 = deterministic, 1 = as noisy as DDPM
    tau   the timesteps visited, any subset of the schedule (Sec. 4.2); see `respacing.timestep_grid`
The paper writes alpha_t for what DDPM and we write alpha_bar_t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from controlkit.diffusion.ddpm import noise_like
from controlkit.diffusion.forward import over, path
from controlkit.diffusion.prediction import check_prediction, to_eps, to_x0

if TYPE_CHECKING:
    from torch import Tensor

    from controlkit.diffusion.ddpm import Model
    from controlkit.diffusion.schedules import Schedule


def sigma(eta: float, alpha_bar_t: Tensor, alpha_bar_prev: Tensor) -> Tensor:
    """Standard deviation of the noise a step adds, Eq. 16."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta:g}: expected 0 (deterministic) to 1 (as noisy as DDPM)")
    return eta * ((1 - alpha_bar_prev) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_prev)) ** 0.5


def ddim_step(
    x_t: Tensor,
    eps: Tensor,
    alpha_bar_t: Tensor | float,
    alpha_bar_prev: Tensor | float,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
    x_0: Tensor | None = None,
) -> Tensor:
    """One step x_t -> x_{t-1}, Eq. 12. With eta = 0 it may lead to more noise as well, which is the inversion.

    `x_0` replaces the one that eps predicts (Eq. 9): a clipped one, say. eps then stays as it is, as in the released
    code, where the paper leaves this open.
    """
    at, to = path(alpha_bar_t), path(alpha_bar_prev)
    x_0 = to_x0("epsilon", eps, x_t, at) if x_0 is None else x_0
    if eta == 0:
        return over(to.a, x_t) * x_0 + over(to.b, x_t) * eps
    sigma_t = sigma(eta, at.a**2, to.a**2)
    if noise is None:
        raise ValueError(f"eta={eta:g} adds noise: pass noise of the shape of x_t, or eta=0")
    direction = (to.b**2 - sigma_t**2).clamp(min=0) ** 0.5  # "direction pointing to x_t"
    return over(to.a, x_t) * x_0 + over(direction, x_t) * eps + over(sigma_t, x_t) * noise


def decode(
    model: Model,
    x_T: Tensor,
    schedule: Schedule,
    tau: Tensor,
    *,
    prediction_type: str = "epsilon",
    eta: float = 0.0,
    clip: float | None = None,
    final_alpha_bar: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Walk from a latent x_T (B, …) at the last of tau down to x_0.

    `final_alpha_bar` is where the last step leads: 1 is clean; Stable Diffusion's configs say alpha_bar_0
    (set_alpha_to_one: false). `clip` holds the predicted x_0 within ±clip, for pictures.
    """
    check_prediction(prediction_type, schedule)
    tau = tau.sort().values
    alpha_bar = torch.cat([torch.tensor([final_alpha_bar], dtype=torch.float64), schedule.alpha_bar[tau]])
    x_t = x_T
    for i in reversed(range(len(tau))):
        alpha_bar_t, alpha_bar_prev = alpha_bar[i + 1], alpha_bar[i]
        prediction = model(x_t, tau[i].expand(len(x_t)).to(x_t.device))
        x_0 = to_x0(prediction_type, prediction, x_t, alpha_bar_t, alpha_bar_prev)
        x_0 = x_0 if clip is None else x_0.clamp(-clip, clip)
        eps = to_eps(prediction_type, prediction, x_t, alpha_bar_t, alpha_bar_prev)
        noise = noise_like(x_t, generator) if eta > 0 else None
        x_t = ddim_step(x_t, eps, alpha_bar_t, alpha_bar_prev, eta=eta, noise=noise, x_0=x_0)
    return x_t


def encode(model: Model, x_0: Tensor, schedule: Schedule, tau: Tensor, *, prediction_type: str = "epsilon") -> Tensor:
    """A picture x_0 (B, …) to the latent at the last of tau from which `decode` paints it again (Sec. 4.3, Eq. 14).

    Each step takes eps from where it starts, `decode` from where it ends: what is lost falls as the steps grow.
    """
    check_prediction(prediction_type, schedule)
    tau = tau.sort().values
    x_t, alpha_bar_t = x_0, torch.ones((), dtype=torch.float64)
    for i in range(len(tau)):
        # The clean picture has no timestep of its own: its eps is asked for at the first of tau.
        t, alpha_bar_model = tau[max(i - 1, 0)], schedule.alpha_bar[tau[max(i - 1, 0)]]
        prediction = model(x_t, t.expand(len(x_t)).to(x_t.device))
        eps = to_eps(prediction_type, prediction, x_t, alpha_bar_model)
        alpha_bar_next = schedule.alpha_bar[tau[i]]
        x_t = ddim_step(x_t, eps, alpha_bar_t, alpha_bar_next)
        alpha_bar_t = alpha_bar_next
    return x_t


def slerp(z_0: Tensor, z_1: Tensor, fraction: float | Tensor) -> Tensor:
    """On the arc from z_0 to z_1 (B, …), each item on its own (App. D): 0 = z_0, 1 = z_1.

    The straight line would pass through latents shorter than noise ever is, which decode to grey.
    """
    flat_0, flat_1 = z_0.flatten(1), z_1.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_0.double(), flat_1.double(), dim=1, eps=0)
    if (cosine < -1 + 1e-9).any():
        raise ValueError("the two latents are opposite: there is no one arc between them; draw one of them anew")
    theta = cosine.clamp(max=1).acos()
    near = theta < 1e-4  # the arc is a line, and sin(theta) is about to vanish
    fraction = torch.as_tensor(fraction, dtype=torch.float64, device=z_0.device)
    safe = torch.where(near, torch.ones_like(theta), theta)
    weight_0 = torch.where(near, 1 - fraction, ((1 - fraction) * safe).sin() / safe.sin())
    weight_1 = torch.where(near, fraction, (fraction * safe).sin() / safe.sin())
    return over(weight_0, z_0) * z_0 + over(weight_1, z_1) * z_1
