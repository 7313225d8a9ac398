"""Samplers against problems with known answers: a Gaussian, and a mixture whose ODE is the quantile map.

n Karras sigmas of Stable Diffusion's schedule, n - 1 steps, without the last step to 0: that one has an error of its
own, sigma_min² / 2s, which no order mends.
"""

import math

import pytest
import torch

from .analytic import SIGMA_MAX, SIGMA_MIN, Mixture, Normal, walk

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2

N = (10, 20, 40, 80, 160)
# |error| of one start for N(.7, .5²); the order between the last two
GAUSSIAN = {
    "euler_karras": ([8.493e-2, 4.219e-2, 2.102e-2, 1.049e-2, 5.239e-3], 1.00),
    "heun_karras": ([3.509e-2, 7.312e-3, 1.677e-3, 4.020e-4, 9.844e-5], 2.03),
    "dpm2_karras": ([1.989e-2, 4.195e-3, 9.665e-4, 2.322e-4, 5.691e-5], 2.03),
    "dpmpp_2m_karras": ([2.671e-2, 7.282e-3, 1.664e-3, 3.946e-4, 9.605e-5], 2.04),
}
# median |error| and root mean square over 999 quantiles, as published to two digits
MIXTURE = {
    "euler_karras": ([6.4e-2, 2.9e-2, 1.4e-2, 6.9e-3, 3.4e-3], [0.190, 0.110, 0.065, 0.038, 0.022]),
    "heun_karras": ([3.4e-2, 6.1e-3, 1.3e-3, 3.1e-4, 7.5e-5], [0.051, 0.016, 4.2e-3, 1.4e-3, 3.9e-4]),
    "dpmpp_2m_karras": ([2.8e-2, 6.6e-3, 1.4e-3, 3.2e-4, 7.7e-5], [0.045, 9.3e-3, 2.7e-3, 7.2e-4, 1.8e-4]),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_error_on_a_gaussian_and_its_order(name):
    data = Normal(0.7, 0.5)
    start = torch.tensor([[0.7]], dtype=torch.float64) + math.hypot(0.5, SIGMA_MAX)
    truth = data.flow(start, SIGMA_MAX, SIGMA_MIN)
    errors = [(walk(name, data.denoise, start, n) - truth).abs().item() for n in N]
    expected, order = GAUSSIAN[name]
    assert errors == pytest.approx(expected, rel=0.02)
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.03)


@pytest.mark.parametrize("name", MIXTURE)
def test_error_on_a_mixture(name):
    data, p = Mixture(), torch.arange(1, 1000, dtype=torch.float64) / 1000
    start, truth = data.quantile(p, SIGMA_MAX)[:, None], data.quantile(p, SIGMA_MIN)[:, None]
    errors = [(walk(name, data.denoise, start, n) - truth).abs() for n in N]
    for found, expected in (
        ([error.median().item() for error in errors], MIXTURE[name][0]),
        ([(error**2).mean().sqrt().item() for error in errors], MIXTURE[name][1]),
    ):
        half_a_digit = [0.5 * 10 ** (math.floor(math.log10(value)) - 1) for value in expected]
        for value, wanted, slack in zip(found, expected, half_a_digit, strict=True):
            assert value == pytest.approx(wanted, abs=0.02 * wanted + slack)


def test_last_step_to_0_costs_second_order_samplers_what_the_schedule_leaves():
    """D at sigma_min is not x_0: the error floors at sigma_min² / 2s = 8.5e-4 where the walk itself errs 2.4e-5."""
    data = Normal(0.7, 0.5)
    start = torch.tensor([[0.7]], dtype=torch.float64) + math.hypot(0.5, SIGMA_MAX)
    error = (walk("heun_karras", data.denoise, start, 320, to_zero=True) - data.flow(start, SIGMA_MAX, 0.0)).abs()
    assert error.item() == pytest.approx(SIGMA_MIN**2 / (2 * 0.5), rel=0.05)


def test_multistep_of_fourth_order():
    pytest.importorskip("scipy")  # diffusers integrates with it
    data = Normal(0.7, 0.5)
    start = torch.tensor([[0.7]], dtype=torch.float64) + math.hypot(0.5, SIGMA_MAX)
    truth = data.flow(start, SIGMA_MAX, SIGMA_MIN)
    errors = [(walk("lms_karras", data.denoise, start, n) - truth).abs().item() for n in (10, 20, 40, 80)]
    assert errors == pytest.approx([3.021e-2, 3.713e-3, 3.191e-4, 2.363e-5], rel=0.02)
