"""What training minimises. Each loss is (B,), one number per item, so that it can be weighted by noise level.

L_simple  |target - prediction|² (DDPM, arXiv:2006.11239, Eq. 14)
L_vlb     the variational bound, one term per t (DDPM, Eq. 5), in bits per dimension
L_hybrid  L_simple + lambda L_vlb (IDDPM, arXiv:2102.09672, Eq. 16), for a network that learns its variance
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from controlkit.diffusion.forward import Level, over, path, posterior, q_sample
from controlkit.diffusion.names import unknown
from controlkit.diffusion.prediction import named, reverse_mean, target
from controlkit.diffusion.variance import log_learned_range, split_output

if TYPE_CHECKING:
    from torch import Tensor

    from controlkit.diffusion.schedules import Schedule

LOSSES = ("l1", "l2", "huber")


def per_item(
    name: str, prediction: Tensor, wanted: Tensor, *, delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """(B,): mean of |d|, of d², or of Huber's d²/2 up to delta and straight beyond.

    `weight` (B, h, w) says how much each place counts: the mean is over the places that do, so that a row of which
    little counts weighs as much as another; 0 where nothing does.
    """
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    if prediction.shape != wanted.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(wanted.shape)}: expected equal shapes"
        )
    if name == "l1":
        losses = F.l1_loss(prediction, wanted, reduction="none")
    elif name == "l2":
        losses = F.mse_loss(prediction, wanted, reduction="none")
    else:
        losses = F.huber_loss(prediction, wanted, reduction="none", delta=delta)
    if weight is None:
        return mean_per_item(losses)
    counted = mean_per_item(weight)
    return mean_per_item(losses * weight[:, None]) / counted.where(counted > 0, 1)


def l_simple(prediction: Tensor, wanted: Tensor) -> Tensor:
    """(B,), DDPM, Eq. 14; for other prediction types than eps, the same with their target."""
    return per_item("l2", prediction, wanted)


def min_snr_weight(prediction_type: str, snr_t: Tensor, gamma: float = 5.0) -> Tensor:
    """Weight of an L2 loss by min-SNR (arXiv:2303.09556), in the shape of snr_t.

    In x_0 it is min(snr, gamma) for every type; an error of the prediction is worth (d x_0 / d prediction)² of that.
    """
    match named(prediction_type):
        case "sample":
            return snr_t.clamp(max=gamma)
        case "epsilon":
            return (gamma / snr_t).clamp(max=1)
        case "v_prediction":
            return snr_t.clamp(max=gamma) / (snr_t + 1)
        case "flow":
            return snr_t.clamp(max=gamma) / (snr_t**0.5 + 1) ** 2
        case "score":
            return (gamma / snr_t).clamp(max=1) / (snr_t + 1)
        case _:
            raise ValueError("min-SNR weights an error of x_0, eps, v, flow or score; 'mean' has no weight of its own")


def normal_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N_1 || N_2) of each element, in nats."""
    squares = (log_variance_1 - log_variance_2).exp() + (mean_1 - mean_2) ** 2 * (-log_variance_2).exp()
    return (log_variance_2 - log_variance_1 + squares - 1) / 2


def decoder_nll(x_0: Tensor, mean: Tensor, log_variance: Tensor, *, levels: int | None = None) -> Tensor:
    """-log p(x_0 | x_1) of each element, in nats: N's density, for latents.

    With `levels` (256 for 8-bit pictures in [-1, 1]) the probability of the level's whole cell, the outermost two
    reaching to infinity (DDPM, Eq. 13).
    """
    log_variance = log_variance.expand_as(mean)
    if levels is None:
        return 0.5 * (math.log(2 * math.pi) + log_variance + (x_0 - mean) ** 2 * (-log_variance).exp())
    half = 1 / (levels - 1)
    precision = (-0.5 * log_variance).exp()
    below = torch.special.ndtr((x_0 - half - mean) * precision).where(x_0 > -1 + half, torch.zeros_like(x_0))
    above = torch.special.ndtr((x_0 + half - mean) * precision).where(x_0 < 1 - half, torch.ones_like(x_0))
    return -torch.log((above - below).clamp(min=1e-12))


def l_vlb(
    x_0: Tensor,
    x_t: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    alpha_bar_t: Tensor,
    alpha_bar_prev: Tensor,
    *,
    levels: int | None = None,
) -> Tensor:
    """(B,) term t of the bound (DDPM, Eq. 5), bits per dimension, for p(x_{t-1} | x_t) = N(mean, exp(log_variance)).

    KL(q(x_{t-1} | x_t, x_0) || p), or the decoder's -log p(x_0 | x_1) where alpha_bar_prev is 1. The sum over all t
    and `l_prior` is the bound; the mean over random t is a T-th of the sum.
    """
    log_variance = log_variance.expand_as(mean)
    q = posterior(x_0, x_t, alpha_bar_t, alpha_bar_prev)
    # Where the decoder speaks, q has no variance; the clamp keeps log 0 out of a term that is then not taken.
    kl = normal_kl(q.mean, q.variance.clamp(min=1e-20).log(), mean, log_variance)
    nll = decoder_nll(x_0, mean, log_variance, levels=levels)
    first = over((alpha_bar_prev == 1).double(), x_t) > 0  # compared before rounding: 0.9999 is 1 in bfloat16
    return mean_per_item(torch.where(first, nll, kl)) / math.log(2)


def l_prior(x_0: Tensor, alpha_bar_T: Level) -> Tensor:
    """(B,) last term of the bound, KL(q(x_T | x_0) || N(0, 1)) (DDPM, Eq. 5), bits per dimension; nothing to learn."""
    end = path(alpha_bar_T)
    zero = torch.zeros_like(x_0)
    kl = normal_kl(over(end.a, x_0) * x_0, 2 * over(end.b, x_0).log().expand_as(x_0), zero, zero)
    return mean_per_item(kl) / math.log(2)


def l_hybrid(
    output: Tensor,
    x_0: Tensor,
    eps: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    prediction_type: str = "epsilon",
    weight: float = 1e-3,
    levels: int | None = None,
) -> Tensor:
    """(B,) L_simple + weight T L_vlb (IDDPM, Eq. 16) for a network's output (B, 2C, H, W) at x_t, t (B,).

    L_vlb teaches the variance alone: the mean is held still for it (IDDPM, Sec. 3.1). With uniform t, T L_vlb is an
    unbiased draw of the whole sum.
    """
    alpha_bar_t, alpha_bar_prev = schedule.alpha_bar[t.to("cpu")], schedule.alpha_bar_prev[t.to("cpu")]
    prediction, v_hat = split_output(output, x_0.shape[1])
    x_t = q_sample(x_0, eps, alpha_bar_t)
    simple = l_simple(prediction, target(prediction_type, x_0, eps, alpha_bar_t, alpha_bar_prev))
    mean = reverse_mean(prediction_type, prediction.detach(), x_t, alpha_bar_t, alpha_bar_prev)
    log_variance = log_learned_range(v_hat, schedule, t)
    vlb = l_vlb(x_0, x_t, mean, log_variance, alpha_bar_t, alpha_bar_prev, levels=levels)
    return simple + weight * schedule.num_steps * vlb


def mean_per_item(x: Tensor) -> Tensor:
    """(B, …) -> (B,)."""
    return x.flatten(1).mean(1) if x.ndim > 1 else x
