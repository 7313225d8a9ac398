"""What a network may predict about x_t = a_t x_0 + b_t eps, and how each answer becomes any other.

    epsilon       eps, the noise (DDPM, arXiv:2006.11239)
    sample        x_0 itself
    v_prediction  v = a_t eps - b_t x_0 (Salimans & Ho, arXiv:2202.00512, App. D)
    score         grad log q(x_t | x_0) = -eps / b_t (Song et al., arXiv:2011.13456)
    flow          eps - x_0, the velocity of the straight path (SD3, arXiv:2403.03206); diffusers: flow_prediction
    mean          of q(x_{t-1} | x_t, x_0) (DDPM, Eq. 7); needs alpha_bar_prev beside alpha_bar_t

All six are affine in x_0 once x_t is given, so they carry the same knowledge; they differ in how an error of the
network weighs, and in what they can say at the ends: without signal (a_t = 0), eps and score no longer tell x_0.
Where alpha_bar_t stands, a `forward.Path` may be given too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlkit.diffusion.forward import Level, over, path, posterior, posterior_coefficients, q_sample
from controlkit.diffusion.names import unknown

if TYPE_CHECKING:
    from torch import Tensor

    from controlkit.diffusion.schedules import Schedule

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "score", "flow", "mean")


def target(
    prediction_type: str, x_0: Tensor, eps: Tensor, alpha_bar_t: Level, alpha_bar_prev: Level | None = None
) -> Tensor:
    """What the network should have said."""
    at = path(alpha_bar_t)
    match named(prediction_type):
        case "epsilon":
            return eps
        case "sample":
            return x_0
        case "v_prediction":
            return over(at.a, x_0) * eps - over(at.b, x_0) * x_0
        case "score":
            return -eps / over(at.b, x_0)
        case "flow":
            return eps - x_0
        case _:
            return posterior(x_0, q_sample(x_0, eps, at), at, _needed(alpha_bar_prev)).mean


def to_x0(
    prediction_type: str, prediction: Tensor, x_t: Tensor, alpha_bar_t: Level, alpha_bar_prev: Level | None = None
) -> Tensor:
    """x_0 as predicted."""
    at = path(alpha_bar_t)
    a, b = over(at.a, x_t), over(at.b, x_t)
    match named(prediction_type):
        case "epsilon":
            return (x_t - b * prediction) / a
        case "sample":
            return prediction
        case "v_prediction":
            return (a * x_t - b * prediction) / (a**2 + b**2)
        case "score":
            return (x_t + b**2 * prediction) / a
        case "flow":
            return (x_t - b * prediction) / (a + b)
        case _:
            c_0, c_t, _variance = posterior_coefficients(at, _needed(alpha_bar_prev))
            return (prediction - over(c_t, x_t) * x_t) / over(c_0, x_t)


def to_eps(
    prediction_type: str, prediction: Tensor, x_t: Tensor, alpha_bar_t: Level, alpha_bar_prev: Level | None = None
) -> Tensor:
    """eps as predicted; not by way of x_0 where that would divide by a vanishing a_t."""
    at = path(alpha_bar_t)
    a, b = over(at.a, x_t), over(at.b, x_t)
    match named(prediction_type):
        case "epsilon":
            return prediction
        case "v_prediction":
            return (b * x_t + a * prediction) / (a**2 + b**2)
        case "score":
            return -b * prediction
        case "flow":
            return (x_t + a * prediction) / (a + b)
        case _:
            return (x_t - a * to_x0(prediction_type, prediction, x_t, at, alpha_bar_prev)) / b


def convert(
    source: str, to: str, prediction: Tensor, x_t: Tensor, alpha_bar_t: Level, alpha_bar_prev: Level | None = None
) -> Tensor:
    """The same prediction in other words: from the type `source` to the type `to`."""
    match named(to):
        case "sample":
            return to_x0(source, prediction, x_t, alpha_bar_t, alpha_bar_prev)
        case "epsilon":
            return to_eps(source, prediction, x_t, alpha_bar_t, alpha_bar_prev)
        case "score":
            return -to_eps(source, prediction, x_t, alpha_bar_t, alpha_bar_prev) / over(path(alpha_bar_t).b, x_t)
        case "mean":
            return reverse_mean(source, prediction, x_t, alpha_bar_t, _needed(alpha_bar_prev))
        case _:
            x_0 = to_x0(source, prediction, x_t, alpha_bar_t, alpha_bar_prev)
            return target(to, x_0, to_eps(source, prediction, x_t, alpha_bar_t, alpha_bar_prev), alpha_bar_t)


def reverse_mean(
    prediction_type: str, prediction: Tensor, x_t: Tensor, alpha_bar_t: Level, alpha_bar_prev: Level
) -> Tensor:
    """Mean of p(x_{t-1} | x_t): the posterior's, with x_0 as predicted (DDPM, Eq. 7 and Sec. 3.2)."""
    if named(prediction_type) == "mean":
        return prediction
    x_0 = to_x0(prediction_type, prediction, x_t, alpha_bar_t)
    return posterior(x_0, x_t, alpha_bar_t, alpha_bar_prev).mean


def check_prediction(prediction_type: str, schedule: Schedule) -> None:
    """Refuse a network whose answer says nothing about x_0 where the schedule ends."""
    if named(prediction_type) in ("epsilon", "score") and schedule.alpha_bar[-1] == 0:
        raise ValueError(
            f"the schedule ends with alpha_bar = 0, pure noise, of which a prediction of {prediction_type!r} tells "
            "nothing about x_0; use 'v_prediction' or 'sample', or a schedule that is not rescaled to zero terminal SNR"
        )


def named(prediction_type: str) -> str:
    """The type by its name here; refused if there is none such."""
    prediction_type = "flow" if prediction_type == "flow_prediction" else prediction_type
    if prediction_type not in PREDICTION_TYPES:
        raise unknown("prediction type", prediction_type, PREDICTION_TYPES)
    return prediction_type


def _needed(alpha_bar_prev: Level | None) -> Level:
    if alpha_bar_prev is None:
        raise ValueError("prediction type 'mean' is the mean of x_{t-1}: pass alpha_bar_prev beside alpha_bar_t")
    return alpha_bar_prev
