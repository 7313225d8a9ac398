import inspect
import subprocess
import sys

import diffusers
import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion.samplers import SAMPLERS, accepts_eta, check_eta, check_steps, make_sampler

from .analytic import STABLE_DIFFUSION

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2

ZERO_SNR = {**STABLE_DIFFUSION, "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}


def walk(scheduler, steps, network=torch.tanh):
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    generator = {"generator": torch.Generator().manual_seed(1)}
    generator = generator if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t)), t, x, **generator).prev_sample
    return x


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sampler_walks(name, steps):
    assert walk(make_sampler(name, STABLE_DIFFUSION, steps=steps), steps).isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_betas_and_prediction_type_stay_the_base_s(name):
    config = {**STABLE_DIFFUSION, "beta_start": 0.001, "prediction_type": "v_prediction", "num_train_timesteps": 100}
    sampler = make_sampler(name, config)
    assert_close(sampler.betas, diffusers.DDPMScheduler.from_config(config).betas)
    assert sampler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", SAMPLERS)
def test_betas_left_to_the_defaults_of_the_base_s_class_are_kept(name):
    """These three classes default to three different schedules; from_config alone would take the target's."""
    for source in (diffusers.DDPMScheduler, diffusers.HeunDiscreteScheduler, diffusers.LCMScheduler):
        base = source(num_train_timesteps=100)
        for given in (base, base.config, {"_class_name": source.__name__, "num_train_timesteps": 100}):
            assert_close(make_sampler(name, given).betas, base.betas)


@pytest.mark.parametrize("name", SAMPLERS)
def test_rarer_schedules_reach_every_sampler(name):
    """sigmoid is known to DDPMScheduler alone."""
    base = diffusers.DDPMScheduler(beta_schedule="sigmoid", num_train_timesteps=200)
    assert_close(make_sampler(name, base).betas, base.betas)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {}),
        ("ddpm", {}),
        ("deis", {}),
        ("dpm2", {}),
        ("dpm2_a_karras", {"use_karras_sigmas": True}),
        ("dpmpp_2m", {}),
        ("dpmpp_2m_karras", {"use_karras_sigmas": True}),
        ("dpmpp_2m_sde_karras", {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"}),
        ("euler", {}),
        ("euler_a", {}),
        ("heun", {}),
        ("lcm", {}),
        ("lms", {}),
        ("pndm", {}),
        ("tcd", {}),
        ("unipc", {}),
    ],
)
def test_for_stable_diffusion_the_sampler_is_what_diffusers_users_write(name, options):
    theirs = getattr(diffusers, SAMPLERS[name][0]).from_config(STABLE_DIFFUSION, **options)
    assert torch.equal(walk(make_sampler(name, STABLE_DIFFUSION), 6), walk(theirs, 6))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if f"{name}_karras" in SAMPLERS])
def test_name_says_whether_sigmas_are_karras_whatever_the_base_prefers(name):
    for preferred in (True, False):
        base = diffusers.DPMSolverMultistepScheduler(num_train_timesteps=100, use_karras_sigmas=preferred)
        assert make_sampler(name, base).config.use_karras_sigmas is False
        assert make_sampler(f"{name}_karras", base).config.use_karras_sigmas is True


def test_pndm_asks_the_network_once_a_step_and_once_more():
    """Without the Runge-Kutta steps it begins with elsewhere, at four calls each."""
    sampler = make_sampler("pndm", diffusers.DDPMScheduler(), steps=10)
    sampler.set_timesteps(10)
    assert len(sampler.timesteps) == 11


def test_name_says_the_algorithm_whatever_the_base_prefers():
    base = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3)
    assert torch.equal(walk(make_sampler("dpmpp_2m", base), 6), walk(diffusers.DPMSolverMultistepScheduler(), 6))


@pytest.mark.parametrize("name", ["ddim", "ddpm", "lcm", "tcd", "heun"])
def test_latents_are_not_clipped_unless_the_base_s_own_scheduler_clips(name):
    """SDXL's scheduler, Euler, knows no clipping; DDIM and DDPM clip to ±1 unless told otherwise."""
    latents = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", num_train_timesteps=100)
    for given in (latents, latents.config, {"_class_name": "EulerDiscreteScheduler"}):
        assert make_sampler(name, given).config.clip_sample is False
    pixels = {"_class_name": "DDPMScheduler", "clip_sample": True}
    assert make_sampler(name, pixels).config.clip_sample is True


@pytest.mark.parametrize("name", SAMPLERS)
def test_eta_is_accepted_where_the_step_takes_it(name):
    sampler = make_sampler(name, STABLE_DIFFUSION)
    assert accepts_eta(name) == ("eta" in inspect.signature(sampler.step).parameters)


def test_eta_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match=r"eta=0\.5: sampler 'euler' has no eta; leave it at 0, or use ddim or tcd"):
        make_sampler("euler", STABLE_DIFFUSION, eta=0.5)
    with pytest.raises(ValueError, match=r"eta=1\.5: expected 0"):
        check_eta("ddim", 1.5)
    check_eta("ddim", 1.0)
    check_eta("euler", 0.0)


def test_steps_that_the_schedule_lacks_are_refused():
    with pytest.raises(ValueError, match="1001 steps: the schedule of this base has 1000; expected 1 to 1000"):
        make_sampler("euler", STABLE_DIFFUSION, steps=1001)
    with pytest.raises(ValueError, match="0 steps: the schedule"):
        check_steps("ddim", 0, STABLE_DIFFUSION)
    with pytest.raises(ValueError, match="51 steps: sampler 'lcm' takes some of the 50 it was distilled from"):
        make_sampler("lcm", STABLE_DIFFUSION, steps=51)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_number_of_steps_that_is_let_through_works(name, spacing):
    """On a short schedule, up to its last step: no index past the end, no grid that stands still."""
    config = {**STABLE_DIFFUSION, "num_train_timesteps": 12, "timestep_spacing": spacing, "beta_end": 0.2}
    let_through = []
    for steps in range(1, 13):
        try:
            sampler = make_sampler(name, config, steps=steps)
        except ValueError as refused:
            assert "take at most" in str(refused)  # noqa: PT017
            continue
        assert walk(sampler, steps).isfinite().all()
        let_through.append(steps)
    assert let_through[:10] == list(range(1, 11))


@pytest.mark.parametrize("name", SAMPLERS)
def test_pure_noise_at_the_end_is_started_from_or_refused(name):
    """v-prediction on a zero-terminal-SNR schedule: the classes that lack the rescaling would silently undo it."""
    base = {**ZERO_SNR, "prediction_type": "v_prediction"}
    known = inspect.signature(getattr(diffusers, SAMPLERS[name][0]).__init__).parameters
    if "rescale_betas_zero_snr" in known:
        sampler = make_sampler(name, base)
        assert_close(sampler.betas, diffusers.DDIMScheduler.from_config(base).betas)
        assert walk(sampler, 4).isfinite().all()
    else:
        with pytest.raises(ValueError, match=f"sampler '{name}' cannot start at alpha_bar = 0.*use one of ddim, ddpm"):
            make_sampler(name, base)


def test_eps_from_pure_noise_is_refused():
    with pytest.raises(ValueError, match="ends with alpha_bar = 0, pure noise"):
        make_sampler("ddim", ZERO_SNR)


@pytest.mark.parametrize("name", SAMPLERS)
def test_prediction_of_x_0_is_walked_or_refused(name):
    base = {**STABLE_DIFFUSION, "_class_name": "DDPMScheduler", "prediction_type": "sample"}
    try:
        sampler = make_sampler(name, base)
    except ValueError as refused:
        assert f"sampler {name!r} cannot take a base that predicts 'sample'; use one of ddim" in str(refused)  # noqa: PT017
        theirs = getattr(diffusers, SAMPLERS[name][0]).from_config(base)
        with pytest.raises((NotImplementedError, ValueError)):
            walk(theirs, 4)
    else:
        assert walk(sampler, 4).isfinite().all()


def test_bases_of_other_families_are_refused():
    with pytest.raises(
        ValueError, match="this base predicts 'flow_prediction'; the samplers here take epsilon, sample"
    ):
        make_sampler("unipc", {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"})
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler has no betas"):
        make_sampler("euler", {"_class_name": "FlowMatchEulerDiscreteScheduler"})


@pytest.mark.parametrize(
    "ask", [lambda name: make_sampler(name, {}), accepts_eta, lambda name: check_steps(name, 1, {})]
)
def test_unknown_sampler_gets_the_nearest_name_and_the_list(ask):
    with pytest.raises(
        ValueError, match=r"unknown sampler 'dpmpp_2m_karas': did you mean 'dpmpp_2m_karras'\? known: ddim,"
    ):
        ask("dpmpp_2m_karas")


def test_names_can_be_listed_without_torch():
    code = "import controlkit.diffusion.samplers, sys; print({'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
