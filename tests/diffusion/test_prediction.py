from itertools import product

import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion import schedules
from controlkit.diffusion.forward import Path, posterior, q_sample
from controlkit.diffusion.prediction import (
    PREDICTION_TYPES,
    check_prediction,
    convert,
    reverse_mean,
    target,
    to_eps,
    to_x0,
)

SCHEDULE = schedules.scaled_linear()
T = torch.tensor([1, 300, 700, 999])
LEVELS = SCHEDULE.alpha_bar[T], SCHEDULE.alpha_bar_prev[T]


def exact(a, b):
    assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.fixture
def x_0():
    return torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def eps():
    return torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_a_perfect_prediction_tells_x_0_and_eps(name, x_0, eps):
    x_t = q_sample(x_0, eps, LEVELS[0])
    prediction = target(name, x_0, eps, *LEVELS)
    assert_close(to_x0(name, prediction, x_t, *LEVELS), x_0, rtol=1e-8, atol=1e-8)
    assert_close(to_eps(name, prediction, x_t, *LEVELS), eps, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_reverse_mean_is_the_same_in_every_parameterisation(name, x_0, eps):
    """An imperfect network, said in each of the six ways (DDPM, Eq. 7)."""
    x_t = q_sample(x_0, eps, LEVELS[0])
    wrong_eps = eps + 0.3 * x_0.sin()
    expected = reverse_mean("epsilon", wrong_eps, x_t, *LEVELS)
    assert (expected - posterior(x_0, x_t, *LEVELS).mean).abs().max() > 1e-4
    prediction = convert("epsilon", name, wrong_eps, x_t, *LEVELS)
    exact(reverse_mean(name, prediction, x_t, *LEVELS), expected)


def test_reverse_mean_from_eps_is_the_formula_of_ddpm(x_0, eps):
    """DDPM, Eq. 11: (x_t - beta_t / sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_t)."""
    x_t, beta_t, alpha_bar_t = (v.reshape(-1, 1, 1, 1) for v in (T, SCHEDULE.betas[T], LEVELS[0]))
    x_t = q_sample(x_0, eps, LEVELS[0])
    exact(
        reverse_mean("epsilon", eps, x_t, *LEVELS),
        (x_t - beta_t / (1 - alpha_bar_t) ** 0.5 * eps) / (1 - beta_t) ** 0.5,
    )


@pytest.mark.parametrize(("source", "to"), list(product(PREDICTION_TYPES, PREDICTION_TYPES)))
def test_conversions_agree_with_the_targets(source, to, x_0, eps):
    x_t = q_sample(x_0, eps, LEVELS[0])
    converted = convert(source, to, target(source, x_0, eps, *LEVELS), x_t, *LEVELS)
    assert_close(converted, target(to, x_0, eps, *LEVELS), rtol=1e-7, atol=1e-7)


def test_score_is_the_gradient_of_the_log_density(x_0, eps):
    x_t = q_sample(x_0, eps, LEVELS[0]).requires_grad_()
    a, b = (v.reshape(-1, 1, 1, 1) for v in (LEVELS[0] ** 0.5, (1 - LEVELS[0]) ** 0.5))
    log_q = torch.distributions.Normal(a * x_0, b).log_prob(x_t).sum()
    exact(target("score", x_0, eps, LEVELS[0]), torch.autograd.grad(log_q, x_t)[0])


def test_v_and_flow_are_velocities_of_their_paths(x_0, eps):
    """v = dx/dangle for x = cos x_0 + sin eps (Salimans & Ho, App. D); flow = dx/dt for x = (1 - t) x_0 + t eps."""
    at = torch.tensor(0.7, dtype=torch.float64)

    def slope(x):
        return (x(at + 1e-5) - x(at - 1e-5)) / 2e-5

    v = slope(lambda angle: angle.cos() * x_0 + angle.sin() * eps)
    assert_close(target("v_prediction", x_0, eps, at.cos() ** 2), v, rtol=0, atol=1e-9)
    flow = slope(lambda t: q_sample(x_0, eps, Path.rectified_flow(t)))
    assert_close(target("flow", x_0, eps, Path.rectified_flow(at)), flow, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PREDICTION_TYPES)
def test_conversions_hold_on_the_straight_path_of_flow_matching(name, x_0, eps):
    levels = Path.rectified_flow(torch.tensor([0.1, 0.4, 0.8, 0.99])), Path.rectified_flow(0.05)
    x_t = q_sample(x_0, eps, levels[0])
    prediction = target(name, x_0, eps, *levels)
    assert_close(to_x0(name, prediction, x_t, *levels), x_0, rtol=1e-6, atol=1e-6)
    assert_close(to_eps(name, prediction, x_t, *levels), eps, rtol=1e-6, atol=1e-6)


def test_flow_prediction_is_the_name_of_flow_in_diffusers(x_0, eps):
    assert torch.equal(target("flow_prediction", x_0, eps, 0.5), target("flow", x_0, eps, 0.5))


@pytest.mark.parametrize("name", ["sample", "v_prediction", "flow"])
def test_pure_noise_still_tells_x_0_to_those_that_can_say_it(name, x_0, eps):
    x_t = q_sample(x_0, eps, 0.0)
    assert torch.equal(x_t, eps)
    exact(to_x0(name, target(name, x_0, eps, 0.0), x_t, 0.0), x_0)


@pytest.mark.parametrize("name", ["epsilon", "score"])
def test_eps_of_a_schedule_that_ends_in_pure_noise_is_refused(name):
    ends_in_noise = schedules.zero_terminal_snr(SCHEDULE)
    with pytest.raises(ValueError, match=rf"ends with alpha_bar = 0, pure noise, .*{name}.*; use 'v_prediction'"):
        check_prediction(name, ends_in_noise)
    check_prediction(name, SCHEDULE)
    check_prediction("v_prediction", ends_in_noise)


def test_mean_asks_for_the_level_it_leads_to(x_0, eps):
    with pytest.raises(ValueError, match="pass alpha_bar_prev beside alpha_bar_t"):
        target("mean", x_0, eps, 0.5)
    with pytest.raises(ValueError, match="pass alpha_bar_prev beside alpha_bar_t"):
        to_x0("mean", x_0, eps, 0.5)


def test_unknown_prediction_type_gets_the_nearest_name_and_the_list(x_0, eps):
    with pytest.raises(
        ValueError, match=r"unknown prediction type 'epsilom': did you mean 'epsilon'\? known: epsilon, fl"
    ):
        target("epsilom", x_0, eps, 0.5)
