import diffusers
import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion import schedules
from controlkit.diffusion.ddpm import noise_like, sample
from controlkit.diffusion.forward import posterior_coefficients
from controlkit.diffusion.respacing import respace, timestep_grid
from controlkit.diffusion.variance import log_fixed_large, log_fixed_small

SCHEDULE = schedules.linear()


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(s2):
    """The best eps for x_0 ~ N(0, s2): sqrt(1 - alpha_bar_t) x_t / (marginal variance)."""

    def model(x_t, t):
        alpha_bar_t = SCHEDULE.alpha_bar[t].reshape(-1, *[1] * (x_t.ndim - 1))
        return (1 - alpha_bar_t) ** 0.5 / (alpha_bar_t * s2 + 1 - alpha_bar_t) * x_t

    return model


# Variance after the walk with beta_tilde, with beta, with the exact posterior variance.
VARIANCES = {
    (1.0, 1000): (0.9911, 0.9999, 1),
    (1.0, 250): (0.9661, 0.9999, 1),
    (1.0, 50): (0.8551, 0.9999, 1),
    (1.0, 10): (0.5208, 0.9999, 1),
    (0.25, 1000): (0.2461, 0.2508, 0.25),
    (0.25, 250): (0.2360, 0.2533, 0.25),
    (0.25, 50): (0.1964, 0.2679, 0.25),
    (0.25, 10): (0.1042, 0.3585, 0.25),
}


@pytest.mark.parametrize(("s2", "steps"), VARIANCES)
def test_variance_of_the_respaced_walk(s2, steps):
    """x_0 ~ N(0, s2). Each step is affine, so the walk's variance is a recursion: V <- k² V + sigma_t², and the last
    step adds no noise, except that the exact law of x_0 given x_1 has a variance of its own.
    """
    spaced = respace(SCHEDULE, timestep_grid(1000, steps, "linspace"))
    small = large = exact = 1.0
    for i in reversed(range(steps)):
        alpha_bar_t = spaced.alpha_bar[i].item()
        c_0, c_t, _ = (c.item() for c in posterior_coefficients(spaced.alpha_bar[i], spaced.alpha_bar_prev[i]))
        marginal = alpha_bar_t * s2 + 1 - alpha_bar_t
        k = c_0 * alpha_bar_t**0.5 * s2 / marginal + c_t
        beta_tilde = log_fixed_small(spaced)[i].exp().item() if i else 0.0
        small = k**2 * small + beta_tilde
        large = k**2 * large + (log_fixed_large(spaced)[i].exp().item() if i else 0.0)
        exact = k**2 * exact + beta_tilde + c_0**2 * s2 * (1 - alpha_bar_t) / marginal
    assert (small, large, exact) == pytest.approx(VARIANCES[s2, steps], abs=6e-5)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_walk_has_the_variance_of_the_recursion(variance):
    """20 000 walks of 10 steps; three standard errors of a variance are 3 % of it."""
    tau = timestep_grid(1000, 10, "linspace")
    generator = torch.Generator().manual_seed(0)
    x_0 = sample(network(0.25), randn(20_000, 1), SCHEDULE, tau=tau, variance=variance, generator=generator)
    expected = VARIANCES[0.25, 10][0 if variance == "fixed_small" else 1]
    assert x_0.var().item() == pytest.approx(expected, rel=0.03)


def test_learned_variance_at_its_bounds_walks_as_the_fixed_ones():
    def walk(variance, v_hat=None):
        def model(x_t, t):
            eps = network(0.25)(x_t, t)
            return eps if v_hat is None else torch.cat([eps, torch.full_like(eps, v_hat)], dim=1)

        generator = torch.Generator().manual_seed(0)
        tau = timestep_grid(1000, 10)
        return sample(model, randn(2, 3, 4, 4), SCHEDULE, tau=tau, variance=variance, generator=generator)

    assert_close(walk("learned_range", -1.0), walk("fixed_small"))
    assert_close(walk("learned_range", 1.0), walk("fixed_large"))
    assert not torch.allclose(walk("fixed_small"), walk("fixed_large"))
    with pytest.raises(ValueError, match="needs 2 x 3 = 6 output channels"):
        walk("learned_range")


@pytest.mark.parametrize(("variance", "steps"), [("fixed_small", 10), ("fixed_large", 25)])
def test_walk_is_that_of_diffusers_on_its_own_grid(variance, steps):
    scheduler = diffusers.DDPMScheduler(variance_type=variance, clip_sample=True)
    scheduler.set_timesteps(steps)
    x = x_T = randn(2, 3, 4, 4).float()
    generator = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        x = scheduler.step(network(0.25)(x, t.expand(2)).float(), t, x, generator=generator).prev_sample
    ours = sample(
        lambda x_t, t: network(0.25)(x_t, t).float(),
        x_T,
        SCHEDULE,
        tau=scheduler.timesteps,
        variance=variance,
        clip=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert_close(ours, x, rtol=1e-3, atol=1e-4)


def test_eps_from_pure_noise_is_refused():
    with pytest.raises(ValueError, match="ends with alpha_bar = 0"):
        sample(network(1.0), randn(1, 1), schedules.zero_terminal_snr(SCHEDULE))


def test_noise_depends_on_the_generator_alone():
    a, b = (noise_like(torch.zeros(2, 3), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a, b)
