from itertools import pairwise

import diffusers
import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion import schedules
from controlkit.diffusion.ddim import ddim_step, decode, encode, sigma, slerp
from controlkit.diffusion.forward import posterior, q_sample
from controlkit.diffusion.prediction import convert
from controlkit.diffusion.respacing import respace, timestep_grid
from controlkit.diffusion.variance import posterior_variance

from .analytic import SIGMA_MAX, SIGMA_MIN, Mixture, Normal

SCHEDULE = schedules.scaled_linear()


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(data, prediction_type="epsilon", schedule=SCHEDULE):
    """A perfect network for the data, on DDPM's clock."""

    def model(x_t, t):
        sigma_t, alpha_bar_t = schedule.sigmas[t].reshape(-1, 1), schedule.alpha_bar[t]
        x_0 = data.denoise(x_t / alpha_bar_t.reshape(-1, 1) ** 0.5, sigma_t)
        return convert("sample", prediction_type, x_0, x_t, alpha_bar_t)

    return model


# Sum of |x| after ten steps, published in diffusers' tests: prediction, beta_start, beta_end, the end, sum.
GOLDEN = [
    ("epsilon", 0.0001, 0.02, "one", 172.0067),
    ("v_prediction", 0.0001, 0.02, "one", 52.5302),
    ("epsilon", 0.01, 0.02, "one", 149.8295),
    ("epsilon", 0.01, 0.02, "alpha_bar_0", 149.0784),
]


@pytest.mark.parametrize(("prediction_type", "beta_start", "beta_end", "end", "published"), GOLDEN)
def test_ten_steps_give_the_published_sum(prediction_type, beta_start, beta_end, end, published):
    """The model is x t / (t + 1)."""
    x_T = (torch.arange(768, dtype=torch.float64) / 768).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)
    schedule = schedules.linear(1000, beta_start, beta_end)
    x_0 = decode(
        lambda x, t: x * (t / (t + 1)).reshape(-1, 1, 1, 1),
        x_T,
        schedule,
        timestep_grid(1000, 10),
        prediction_type=prediction_type,
        clip=1.0,
        final_alpha_bar=1.0 if end == "one" else schedule.alpha_bar[0].item(),
    )
    assert x_0.abs().sum().item() == pytest.approx(published, abs=3e-4)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_step_is_that_of_diffusers(eta):
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x_t, eps, noise = (randn(2, 4, 8, 8, seed=seed).float() for seed in range(3))
    expected = scheduler.step(eps, 500, x_t, eta=eta, variance_noise=noise if eta else None).prev_sample
    alpha_bar = schedules.linear().alpha_bar
    assert_close(ddim_step(x_t, eps, alpha_bar[500], alpha_bar[400], eta=eta, noise=noise), expected)


@pytest.mark.parametrize(("prediction_type", "alpha_to_one"), [("epsilon", True), ("sample", False)])
def test_clipped_walk_is_that_of_diffusers(prediction_type, alpha_to_one):
    """From noise, a constant answer: x_0 leaves ±1 on the way. Without clipping the walk ends elsewhere."""
    scheduler = diffusers.DDIMScheduler(prediction_type=prediction_type, set_alpha_to_one=alpha_to_one)
    scheduler.set_timesteps(10)
    x = x_T = randn(2, 3, 4, 4)
    answer = 1.5 * randn(2, 3, 4, 4, seed=1)
    for t in scheduler.timesteps:
        x = scheduler.step(answer, t, x).prev_sample
    schedule = schedules.linear()
    end = {"final_alpha_bar": 1.0 if alpha_to_one else schedule.alpha_bar[0].item(), "prediction_type": prediction_type}
    tau = timestep_grid(1000, 10)
    assert_close(decode(lambda x_t, t: answer, x_T, schedule, tau, clip=1.0, **end), x, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(decode(lambda x_t, t: answer, x_T, schedule, tau, **end), x, atol=0.1)


def test_one_step_to_alpha_bar_1_recovers_x_0():
    """With the true eps the prediction is exact (Eq. 9)."""
    x_0, eps = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1)
    assert_close(ddim_step(q_sample(x_0, eps, 0.3), eps, 0.3, 1.0), x_0)


def test_step_with_the_true_eps_stays_on_its_path():
    """Any eta: the mean of x_{t-1} is what q says, and the noise fills up to the marginal's variance (Lemma 1)."""
    x_0, eps, zero = randn(2, 3), randn(2, 3, seed=1), torch.zeros(2, 3, dtype=torch.float64)
    for eta in (0.0, 0.3, 1.0):
        kept = (1 - 0.7 - sigma(eta, torch.tensor(0.3), torch.tensor(0.7)) ** 2) ** 0.5
        expected = 0.7**0.5 * x_0 + kept * eps
        assert_close(
            ddim_step(q_sample(x_0, eps, 0.3), eps, 0.3, 0.7, eta=eta, noise=zero), expected, rtol=1e-6, atol=0
        )


@pytest.mark.parametrize(
    "schedule", [schedules.linear(), respace(SCHEDULE, timestep_grid(1000, 20))], ids=["all", "some"]
)
def test_eta_1_is_ddpm(schedule):
    """sigma² = beta_tilde and the mean is the posterior's, on skipped steps as well (Eq. 16)."""
    levels = schedule.alpha_bar[1:], schedule.alpha_bar_prev[1:]
    assert_close(sigma(1.0, *levels) ** 2, posterior_variance(schedule)[1:])
    x_0, eps = randn(len(levels[0]), 3), randn(len(levels[0]), 3, seed=1)
    x_t = q_sample(x_0, eps, levels[0])
    step = ddim_step(x_t, eps, *levels, eta=1.0, noise=torch.zeros_like(x_t))
    assert_close(step, posterior(x_0, x_t, *levels).mean)


def test_sigma_grows_with_eta_from_0():
    assert [sigma(eta, torch.tensor(0.3), torch.tensor(0.7)).item() for eta in (0.0, 0.5, 1.0)] == pytest.approx(
        [0, 0.5 * (0.3 / 0.7 * (1 - 0.3 / 0.7)) ** 0.5, (0.3 / 0.7 * (1 - 0.3 / 0.7)) ** 0.5]
    )


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match=rf"eta={eta}: expected 0 \(deterministic\) to 1"):
        ddim_step(randn(1, 2), randn(1, 2), 0.3, 0.7, eta=eta)
    with pytest.raises(ValueError, match=r"eta=0\.5 adds noise: pass noise"):
        ddim_step(randn(1, 2), randn(1, 2), 0.3, 0.7, eta=0.5)


def test_steps_are_euler_steps_in_sigma():
    """With y = x / sqrt(alpha_bar): y' = y + (sigma' - sigma) eps, at whatever levels; the DDIM row of a Gaussian."""
    data = Normal(0.7, 0.5)
    start = torch.tensor([[0.7]], dtype=torch.float64) + (0.5**2 + SIGMA_MAX**2) ** 0.5
    errors = []
    for n in (10, 20, 40, 80, 160, 320):
        sigmas = schedules.karras_sigmas(n, SIGMA_MIN, SIGMA_MAX)
        alpha_bar = 1 / (1 + sigmas**2)
        x = start * alpha_bar[0] ** 0.5
        for i in range(n - 1):
            y = x / alpha_bar[i] ** 0.5
            x = ddim_step(x, (y - data.denoise(y, sigmas[i])) / sigmas[i], alpha_bar[i], alpha_bar[i + 1])
        errors.append((x / alpha_bar[-1] ** 0.5 - data.flow(start, SIGMA_MAX, SIGMA_MIN)).abs().item())
    assert errors == pytest.approx([8.493e-2, 4.219e-2, 2.102e-2, 1.049e-2, 5.239e-3, 2.618e-3], rel=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample", "score", "flow", "mean"])
def test_walk_is_the_same_in_every_parameterisation(prediction_type):
    x_T, tau = randn(5, 1), timestep_grid(1000, 12, "trailing")
    expected = decode(network(Normal(0.7, 0.5)), x_T, SCHEDULE, tau)
    if prediction_type == "mean":
        spaced = respace(SCHEDULE, tau)
        before = dict(zip(tau.flip(0).tolist(), spaced.alpha_bar_prev, strict=True))

        def model(x_t, t):
            said = network(Normal(0.7, 0.5))(x_t, t)
            return convert("epsilon", "mean", said, x_t, SCHEDULE.alpha_bar[t], before[int(t[0])])

    else:
        model = network(Normal(0.7, 0.5), prediction_type)
    assert_close(decode(model, x_T, SCHEDULE, tau, prediction_type=prediction_type), expected, rtol=1e-9, atol=1e-9)


def test_walk_with_eta_is_drawn_from_its_generator():
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return decode(
            network(Normal(0, 1)), randn(4, 1), SCHEDULE, timestep_grid(1000, 5), eta=1.0, generator=generator
        )

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def there_and_back(data, x_0, steps, prediction_type="epsilon"):
    """Mean |error| of a picture encoded and decoded again."""
    model, tau = network(data, prediction_type), timestep_grid(1000, steps)
    latent = encode(model, x_0, SCHEDULE, tau, prediction_type=prediction_type)
    return (decode(model, latent, SCHEDULE, tau, prediction_type=prediction_type) - x_0).abs().mean().item()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow"])
def test_picture_encoded_and_decoded_comes_back_the_better_the_more_steps(prediction_type):
    """Error of order 1 in the step: about halved when the steps double (Sec. 5.4)."""
    x_0 = torch.tensor([[0.2], [0.9], [1.5]], dtype=torch.float64)
    errors = [there_and_back(Normal(0.7, 0.5), x_0, steps, prediction_type) for steps in (25, 50, 100, 200, 500)]
    assert [more / fewer for fewer, more in pairwise(errors[:-1])] == pytest.approx([0.53] * 3, abs=0.03)
    assert errors[-1] < 0.006


def test_picture_of_several_modes_comes_back_too():
    """Between the modes the walk is stiff, and the error falls more slowly."""
    x_0 = Mixture().quantile(torch.arange(1, 20, dtype=torch.float64) / 20, 0.0)[:, None]
    errors = [there_and_back(Mixture(), x_0, steps) for steps in (25, 100, 500)]
    assert all(more < 0.6 * fewer for fewer, more in pairwise(errors))
    assert errors[-1] < 0.025


def test_latent_of_a_picture_is_its_noise():
    """Data N(.7, .5²) encoded have the deviation of the marginal at the last of tau, near that of noise."""
    x_0 = 0.7 + 0.5 * torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    tau = torch.arange(1000)
    latent = encode(network(Normal(0.7, 0.5)), x_0, SCHEDULE, tau)
    a = SCHEDULE.alpha_bar[-1] ** 0.5
    assert_close(latent[1], a[None] * 0.7, rtol=0, atol=2e-3)
    assert_close(latent[2] - latent[1], ((0.25 * a**2 + 1 - a**2) ** 0.5)[None], rtol=5e-3, atol=0)


def test_interpolated_latents_stay_as_long_as_noise():
    z_0, z_1 = randn(3, 4, 16, 16), randn(3, 4, 16, 16, seed=1)
    assert_close(slerp(z_0, z_1, 0.0), z_0)
    assert_close(slerp(z_0, z_1, 1.0), z_1)
    assert_close(slerp(z_0, z_1, 0.3), slerp(z_1, z_0, 0.7))
    length = slerp(z_0, z_1, 0.5).flatten(1).norm(dim=1)
    assert (length / z_0.flatten(1).norm(dim=1) - 1).abs().max() < 0.05
    assert ((z_0 + z_1) / 2).flatten(1).norm(dim=1).max() < 0.8 * length.min()


def test_interpolation_turns_by_equal_angles():
    z_0, z_1 = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.5, 0.75**0.5]])
    third = slerp(z_0, z_1, 1 / 3)
    assert_close(third, torch.tensor([[2 * 0.75**0.5, 1.0], [0.9396926, 0.3420201]]))


def test_interpolation_between_equal_latents_is_that_latent_and_between_opposite_ones_refused():
    z = randn(2, 4, 8, 8)
    assert_close(slerp(z, z, 0.4), z)
    assert_close(slerp(z, 2 * z, 0.5), 1.5 * z)
    with pytest.raises(ValueError, match="the two latents are opposite"):
        slerp(z, -z, 0.5)


def test_eps_from_pure_noise_is_refused():
    ends_in_noise, tau = schedules.zero_terminal_snr(SCHEDULE), timestep_grid(1000, 4, "trailing")
    with pytest.raises(ValueError, match="ends with alpha_bar = 0"):
        decode(network(Normal(0, 1)), randn(1, 1), ends_in_noise, tau)
    with pytest.raises(ValueError, match="ends with alpha_bar = 0"):
        encode(network(Normal(0, 1)), randn(1, 1), ends_in_noise, tau)
