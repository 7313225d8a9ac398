import diffusers
import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion import schedules
from controlkit.diffusion.forward import Path, posterior, q_jump, q_sample, q_step

SCHEDULE = schedules.linear(50)


@pytest.fixture
def x_0():
    return torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def draws(count, like):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(like.shape, dtype=like.dtype, generator=generator) for _ in range(count)]


def test_forward_steps_composed_are_the_forward_jump(x_0):
    """50 steps scale x_0 as the jump does, and their independent noises add up to the jump's variance."""
    zero, signal, variance = torch.zeros_like(x_0), x_0, torch.zeros_like(x_0)
    for beta_t, alpha_bar_t in zip(SCHEDULE.betas, SCHEDULE.alpha_bar, strict=True):
        signal = q_step(signal, zero, beta_t)
        scale, noise = q_step(torch.ones_like(x_0), zero, beta_t), q_step(zero, torch.ones_like(x_0), beta_t)
        variance = scale**2 * variance + noise**2
        assert_close(signal, q_sample(x_0, zero, alpha_bar_t))
        assert_close(variance, q_sample(zero, torch.ones_like(x_0), alpha_bar_t) ** 2)


@pytest.mark.parametrize(("s", "t"), [(0, 1), (3, 40), (20, 49), (7, 7)])
def test_jump_between_any_two_times_lands_where_the_direct_jump_does(x_0, s, t):
    """Law of x_t: mean by x_0 alone; variance what is left of that at s plus the jump's own."""
    zero, one = torch.zeros_like(x_0), torch.ones_like(x_0)
    alpha_bar_s, alpha_bar_t = SCHEDULE.alpha_bar[s], SCHEDULE.alpha_bar[t]
    mean = q_jump(q_sample(x_0, zero, alpha_bar_s), zero, alpha_bar_s, alpha_bar_t)
    assert_close(mean, q_sample(x_0, zero, alpha_bar_t))
    left = q_jump(q_sample(zero, one, alpha_bar_s), zero, alpha_bar_s, alpha_bar_t) ** 2
    own = q_jump(zero, one, alpha_bar_s, alpha_bar_t) ** 2
    assert_close(left + own, q_sample(zero, one, alpha_bar_t) ** 2)


def test_jump_of_one_is_the_step(x_0):
    (noise,) = draws(1, x_0)
    jumped = q_jump(x_0, noise, SCHEDULE.alpha_bar[9], SCHEDULE.alpha_bar[10])
    assert_close(jumped, q_step(x_0, noise, SCHEDULE.betas[10]))


def test_jump_towards_less_noise_is_refused(x_0):
    with pytest.raises(ValueError, match="level t is the cleaner one; swap the two levels"):
        q_jump(x_0, x_0, SCHEDULE.alpha_bar[10], SCHEDULE.alpha_bar[9])


def test_posterior_is_bayes(x_0):
    """q(x_{t-1}|x_t,x_0) q(x_t|x_0) = q(x_t|x_{t-1}) q(x_{t-1}|x_0), as densities at any three points."""
    normal = torch.distributions.Normal
    x_prev, x_t = draws(2, x_0)
    for t in (1, 7, 49):
        alpha_bar_t, alpha_bar_prev, beta_t = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar_prev[t], SCHEDULE.betas[t]
        mean, variance = posterior(x_0, x_t, alpha_bar_t, alpha_bar_prev)
        left = normal(mean, variance.sqrt()).log_prob(x_prev)
        left += normal(alpha_bar_t.sqrt() * x_0, (1 - alpha_bar_t).sqrt()).log_prob(x_t)
        right = normal((1 - beta_t).sqrt() * x_prev, beta_t.sqrt()).log_prob(x_t)
        right += normal(alpha_bar_prev.sqrt() * x_0, (1 - alpha_bar_prev).sqrt()).log_prob(x_prev)
        assert_close(left, right)


def test_posterior_of_the_first_step_is_x_0_itself(x_0):
    (x_t,) = draws(1, x_0)
    mean, variance = posterior(x_0, x_t, SCHEDULE.alpha_bar[0], 1.0)
    assert_close(mean, x_0)
    assert variance == 0


def test_posterior_across_skipped_steps_is_the_steps_chained(x_0):
    """Going 30 -> 20 at once has the mean and variance of 30 -> 29 -> … -> 20 with the same x_0."""
    (x_t,) = draws(1, x_0)
    mean, variance = x_t, torch.zeros((), dtype=torch.float64)
    for t in range(30, 20, -1):
        levels = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar[t - 1]
        of_one = posterior(torch.zeros_like(x_0), torch.ones_like(x_0), *levels).mean
        mean, added = posterior(x_0, mean, *levels)
        variance = of_one**2 * variance + added
    expected = posterior(x_0, x_t, SCHEDULE.alpha_bar[30], SCHEDULE.alpha_bar[20])
    assert_close(mean, expected.mean)
    assert_close(variance, expected.variance.expand_as(variance))


def test_levels_may_differ_within_a_batch(x_0):
    (eps,) = draws(1, x_0)
    t = torch.tensor([0, 20, 49])
    together = q_sample(x_0, eps, SCHEDULE.alpha_bar[t])
    one_by_one = [q_sample(x_0[i], eps[i], SCHEDULE.alpha_bar[t[i]]) for i in range(3)]
    assert torch.equal(together, torch.stack(one_by_one))


def test_jump_is_that_of_diffusers(x_0):
    (eps,) = draws(1, x_0)
    t = torch.tensor([3, 500, 999])
    added = diffusers.DDPMScheduler().add_noise(x_0.float(), eps.float(), t)
    assert_close(q_sample(x_0.float(), eps.float(), schedules.linear().alpha_bar[t]), added)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_result_keeps_the_type_of_x(x_0, dtype):
    assert q_sample(x_0.to(dtype), x_0.to(dtype), SCHEDULE.alpha_bar[torch.tensor([1, 2, 3])]).dtype == dtype
    assert posterior(x_0.to(dtype), x_0.to(dtype), SCHEDULE.alpha_bar[3], SCHEDULE.alpha_bar[2]).mean.dtype == dtype


def test_straight_path_of_flow_matching(x_0):
    """x_t = (1 - t) x_0 + t eps; its jumps compose like the others."""
    eps, noise = draws(2, x_0)
    quarter, half = Path.rectified_flow(0.25), Path.rectified_flow(0.5)
    assert_close(q_sample(x_0, eps, quarter), 0.75 * x_0 + 0.25 * eps)
    zero, one = torch.zeros_like(x_0), torch.ones_like(x_0)
    variance = q_jump(0.25 * one, zero, quarter, half) ** 2 + q_jump(zero, one, quarter, half) ** 2
    assert_close(variance, 0.25 * one)
    with pytest.raises(ValueError, match="level t is the cleaner one"):
        q_jump(x_0, noise, half, quarter)


def test_wrong_levels_are_refused(x_0):
    with pytest.raises(ValueError, match=r"2 levels for a batch of 3; give one per item"):
        q_sample(x_0, x_0, SCHEDULE.alpha_bar[:2])
    with pytest.raises(
        ValueError, match=r"type torch.int64: expected alpha_bar_t; pass schedule.alpha_bar\[t\], not t"
    ):
        q_sample(x_0, x_0, torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"levels of shape \(1, 3\)"):
        q_sample(x_0, x_0, SCHEDULE.alpha_bar[None, :3])
    with pytest.raises(ValueError, match=r"as floats; got torch.uint8: convert them first"):
        q_sample(x_0.to(torch.uint8), x_0, SCHEDULE.alpha_bar[3])
