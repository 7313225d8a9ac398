import diffusers
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion import schedules
from controlkit.diffusion.schedules import Schedule, from_scheduler_config, karras_sigmas, zero_terminal_snr
from controlkit.diffusion.variance import posterior_variance

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2

# alpha_bar at t = 0, 100, 250, 500, 750, 999; then sigma_max; then beta_tilde / beta at 1, 2, 10, 100, 500
CONSTANTS = {
    "linear": (
        [0.9999, 0.895142, 0.521423, 0.0777967, 0.00330016, 4.03583e-5],
        157.407,
        [0.45474, 0.61134, 0.86385, 0.98210, 0.99914],
    ),
    "scaled_linear": (
        [0.99915, 0.894223, 0.673793, 0.276333, 0.0561698, 0.00466010],
        14.6146,
        [0.49883, 0.66512, 0.90701, 0.98828, 0.99815],
    ),
    "cosine": (
        [0.999959, 0.971576, 0.845888, 0.492285, 0.143179, 2.42877e-9],
        20291,
        [0.47223, 0.63159, 0.87545, 0.98181, 0.99693],
    ),
}


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_schedule_has_its_published_constants(name):
    schedule = schedules.schedule(name)
    alpha_bar, sigma_max, ratios = CONSTANTS[name]
    assert schedule.alpha_bar[[0, 100, 250, 500, 750, 999]].tolist() == pytest.approx(alpha_bar, rel=6e-6)
    assert schedule.sigmas[-1].item() == pytest.approx(sigma_max, rel=1e-5)
    ratio = posterior_variance(schedule) / schedule.betas
    assert ratio[[1, 2, 10, 100, 500]].tolist() == pytest.approx(ratios, abs=6e-6)
    assert ratio[0] == 0


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_snr_and_sigma_say_the_same_as_alpha_bar(name):
    """snr = 1 / sigma², and x_t / sqrt(alpha_bar_t) = x_0 + sigma_t eps."""
    schedule = schedules.schedule(name)
    assert_close(schedule.snr, schedule.sigmas**-2)
    assert_close(schedule.alpha_bar, 1 / (1 + schedule.sigmas**2))
    assert (schedule.sigmas.diff() > 0).all()


@pytest.mark.parametrize("T", [50, 250, 4000])
def test_linear_schedule_of_another_length_ends_as_noisy(T):
    """log alpha_bar is about -sum of the betas, and 1000 / T keeps that sum."""
    assert schedules.linear(T).betas.sum().item() == pytest.approx(schedules.linear().betas.sum().item())


def test_linear_schedule_too_short_for_its_betas_is_refused():
    with pytest.raises(ValueError, match=r"linear schedule of 10 steps would need beta 2 .* at least 20 steps"):
        schedules.linear(10)


def test_sigma_goes_back_to_its_timestep():
    schedule = schedules.scaled_linear()
    assert_close(schedule.timestep_of(schedule.sigmas), torch.arange(1000, dtype=torch.float64))


def test_karras_sigmas_of_stable_diffusion():
    schedule = schedules.scaled_linear()
    ends = schedule.sigmas[0].item(), schedule.sigmas[-1].item()
    ten = [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292]
    timesteps = [999, 916.28, 815.04, 687.15, 523.2, 327.15, 145.94, 40.86, 6.73, 0]
    assert karras_sigmas(10, *ends).tolist() == pytest.approx(ten, abs=6e-5)
    assert schedule.timestep_of(karras_sigmas(10, *ends)).tolist() == pytest.approx(timesteps, abs=0.006)
    twenty = [14.6146, 11.7254, 9.3402, 7.3836, 5.7894, 4.4998, 3.4647, 2.6408, 1.9909, 1.4832]
    twenty += [1.0908, 0.7909, 0.5647, 0.3964, 0.2730, 0.1842, 0.1213, 0.0779, 0.0485, 0.0292]
    assert karras_sigmas(20, *ends).tolist() == pytest.approx(twenty, abs=6e-5)


def test_zero_terminal_snr_moves_the_end_alone_to_noise():
    """Lin et al., Algorithm 1: the first sqrt(alpha_bar) stays, the last becomes 0, the rest moves in proportion."""
    before, after = schedules.scaled_linear(), zero_terminal_snr(schedules.scaled_linear())
    assert after.alpha_bar[-1] == 0
    assert_close(after.alpha_bar[0], before.alpha_bar[0])
    ratio = after.alpha_bar.sqrt().diff() / before.alpha_bar.sqrt().diff()
    assert_close(ratio, ratio[:1].expand(999))


CONFIGS = [
    {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 0.0002, "beta_end": 0.03},
    {"_class_name": "PNDMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
    {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    {"_class_name": "LMSDiscreteScheduler", "trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4},
    {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid"},
    {"_class_name": "DDPMScheduler", "beta_schedule": "sigmoid", "rescale_betas_zero_snr": True},
    {"_class_name": "DDPMScheduler", "beta_schedule": "laplace", "num_train_timesteps": 100},
    {"_class_name": "LCMScheduler"},  # by default scaled linear
    {"_class_name": "HeunDiscreteScheduler"},  # by default linear, between Stable Diffusion's two ends
    {},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_config_gives_the_betas_of_the_diffusers_scheduler(config):
    scheduler = getattr(diffusers, config.get("_class_name", "DDPMScheduler")).from_config(config)
    assert_close(from_scheduler_config(config).betas.float(), scheduler.betas, rtol=2e-4, atol=1e-6)
    assert_close(from_scheduler_config(config).alpha_bar.float(), scheduler.alphas_cumprod, rtol=2e-4, atol=1e-6)


def test_scheduler_and_its_config_give_the_same_schedule():
    scheduler = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", trained_betas=np.array([0.1, 0.2]))
    assert torch.equal(from_scheduler_config(scheduler).betas, torch.tensor([0.1, 0.2], dtype=torch.float64))
    assert torch.equal(from_scheduler_config(scheduler.config).betas, from_scheduler_config(scheduler).betas)


def test_config_in_memory_names_no_class_and_still_gives_its_betas():
    """Only a saved config has _class_name."""
    scheduler = diffusers.LCMScheduler()
    assert "_class_name" not in scheduler.config
    assert_close(from_scheduler_config(scheduler.config).betas, schedules.scaled_linear().betas)


def test_config_without_betas_is_refused():
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no betas; expected a scheduler of DDPM"):
        from_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    with pytest.raises(ValueError, match=r"names the class 'DimScheduler', which diffusers .* lacks"):
        from_scheduler_config({"_class_name": "DimScheduler"})
    with pytest.raises(ValueError, match="DDIMScheduler knows no beta_schedule 'cosine'"):
        from_scheduler_config({"_class_name": "DDIMScheduler", "beta_schedule": "cosine"})


def test_unknown_schedule_gets_the_nearest_name_and_the_list():
    with pytest.raises(
        ValueError, match=r"unknown schedule 'cosin': did you mean 'cosine'\? known: cosine, linear, scal"
    ):
        schedules.schedule("cosin")


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.1, 0.0], "beta_1 = 0"),
        ([0.1, float("nan")], "beta_1 = nan"),
        ([1.0, 0.1], r"beta_0 = 1: expected 0 < beta < 1 \(the last may be 1\)"),
        ([], r"betas of shape \(0,\)"),
        ([[0.1]], r"betas of shape \(1, 1\)"),
    ],
)
def test_betas_that_are_no_schedule_are_refused(betas, message):
    with pytest.raises(ValueError, match=message):
        Schedule(torch.tensor(betas))


def test_schedule_owns_its_betas():
    betas = torch.full((3,), 0.1, dtype=torch.float64)
    schedule = Schedule(betas)
    betas.zero_()
    assert schedule.betas.tolist() == [0.1] * 3
