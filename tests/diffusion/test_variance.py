import diffusers
import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion import schedules
from controlkit.diffusion.respacing import respace
from controlkit.diffusion.variance import (
    VARIANCES,
    log_fixed_large,
    log_fixed_small,
    log_learned_range,
    log_variance,
    posterior_variance,
    split_output,
)

SCHEDULE = schedules.cosine(100)
T = torch.arange(100)


@pytest.fixture
def x_t():
    return torch.randn(100, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_learned_variance_goes_from_the_small_bound_to_the_large_one(x_t):
    one = torch.ones_like(x_t)
    assert_close(log_learned_range(-one, SCHEDULE, T), log_variance("fixed_small", SCHEDULE, T, x_t).expand_as(x_t))
    assert_close(log_learned_range(one, SCHEDULE, T), log_variance("fixed_large", SCHEDULE, T, x_t).expand_as(x_t))
    halfway = log_learned_range(0 * one, SCHEDULE, T).exp()
    geometric_mean = (log_fixed_small(SCHEDULE).exp() * SCHEDULE.betas).sqrt()
    assert_close(halfway[:, 0, 0, 0], geometric_mean)


def test_learned_variance_is_that_of_diffusers():
    """DDPMScheduler, variance_type "learned_range"; it counts in float32."""
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    v_hat = torch.linspace(-1, 1, 5).reshape(5, 1)
    for t in (1, 10, 500, 999):
        ours = log_learned_range(v_hat, schedules.linear(), torch.tensor(t))
        assert_close(ours, scheduler._get_variance(t, predicted_variance=v_hat), rtol=2e-3, atol=0)


def test_bounds_are_in_order():
    """beta_tilde <= beta (DDPM, Sec. 3.2), for respaced schedules too."""
    for schedule in (SCHEDULE, schedules.linear(), respace(schedules.linear(), torch.tensor([0, 10, 500, 999]))):
        assert (log_fixed_small(schedule)[1:] < log_fixed_large(schedule)[1:]).all()


def test_first_log_variance_is_the_second_one():
    assert posterior_variance(SCHEDULE)[0] == 0
    assert log_fixed_small(SCHEDULE)[0] == log_fixed_small(SCHEDULE)[1]
    assert log_fixed_small(respace(SCHEDULE, torch.tensor([50]))).isfinite().all()


def test_network_with_too_few_channels_cannot_learn_its_variance(x_t):
    prediction, v_hat = split_output(torch.cat([x_t, 2 * x_t], dim=1), 3)
    assert torch.equal(prediction, x_t)
    assert torch.equal(v_hat, 2 * x_t)
    with pytest.raises(
        ValueError, match=r"needs 2 x 3 = 6 output channels, the network gave \(100, 3, 2, 2\); build it "
    ):
        split_output(x_t, 3)


def test_variance_by_name(x_t):
    with pytest.raises(
        ValueError, match=r"unknown variance 'fixed_smal': did you mean 'fixed_small'\? known: fixed_large"
    ):
        log_variance("fixed_smal", SCHEDULE, T, x_t)
    with pytest.raises(ValueError, match="'learned_range' needs the network's v_hat"):
        log_variance("learned_range", SCHEDULE, T, x_t)
    for name in set(VARIANCES) - {"learned_range"}:
        with pytest.raises(ValueError, match=f"{name!r} does not take the network's v_hat"):
            log_variance(name, SCHEDULE, T, x_t, v_hat=x_t)
