import math

import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion import schedules
from controlkit.diffusion.forward import q_sample
from controlkit.diffusion.guidance import guide, weight_at
from controlkit.diffusion.prediction import convert

from .analytic import SIGMA_MAX, Normal, walk

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers with numpy 2

ENDS = torch.tensor([[0.0], [1.0]], dtype=torch.float64)  # two starts tell the mean and the spread of an affine walk


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def guided(w, unconditional, conditional, **options):
    return lambda y, sigma: guide(unconditional.denoise(y, sigma), conditional.denoise(y, sigma), w, **options)


def test_w_of_0_1_and_beyond():
    unconditional, conditional = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1)
    assert torch.equal(guide(unconditional, conditional, 0.0), unconditional)
    assert_close(guide(unconditional, conditional, 1.0), conditional)
    assert_close(guide(unconditional, conditional, 3.0), 3 * conditional - 2 * unconditional)


@pytest.mark.parametrize("name", ["sample", "v_prediction", "score", "flow"])
def test_guiding_eps_guides_every_parameterisation(name):
    alpha_bar_t = schedules.scaled_linear().alpha_bar[torch.tensor([200, 800])]
    x_t = q_sample(randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1), alpha_bar_t)
    unconditional, conditional = randn(2, 4, 8, 8, seed=2), randn(2, 4, 8, 8, seed=3)
    said = [convert("epsilon", name, eps, x_t, alpha_bar_t) for eps in (unconditional, conditional)]
    expected = convert("epsilon", name, guide(unconditional, conditional, 7.5), x_t, alpha_bar_t)
    assert_close(guide(*said, 7.5), expected)


@pytest.mark.parametrize(
    ("w", "mean", "found"), [(1, 0.96581, 0.96537), (3, 2.89742, 2.89611), (7.5, 7.24356, 7.24027)]
)
def test_guidance_of_equal_gaussians_moves_the_mean_and_keeps_the_spread(w, mean, found):
    """cond N(1, .5²), uncond N(0, .5²): ends as N(w (1 - s / sqrt(s² + sigma_max²)), s²); start mean 0.

    `found` is what DPM++ 2M makes of it on 20 Karras sigmas and 0.
    """
    s = 0.5
    assert w * (1 - s / math.hypot(s, SIGMA_MAX)) == pytest.approx(mean, abs=6e-6)
    ends = walk("dpmpp_2m_karras", guided(w, Normal(0, s), Normal(1, s)), ENDS, 20, to_zero=True)
    assert ends[0].item() == pytest.approx(found, abs=1e-5)
    assert ends[0].item() == pytest.approx(mean, rel=1e-3)
    assert (ends[1] - ends[0]).item() * math.hypot(s, SIGMA_MAX) == pytest.approx(s, rel=0.02)


@pytest.mark.parametrize(("w", "mean", "spread"), [(3, 1.4743, 0.12566), (7.5, 1.4366, 0.005597)])
def test_guidance_of_unequal_gaussians_collapses_the_spread(w, mean, spread):
    """cond N(1, .5²), uncond N(0, 1): the exponents w / 2 and (1 - w) / 2 of the two variance ratios."""
    s_c, s_u = 0.5, 1.0
    start = math.hypot(s_u, SIGMA_MAX)
    shrink = (s_c / math.hypot(s_c, SIGMA_MAX)) ** w * (s_u / start) ** (1 - w)
    assert start * shrink == pytest.approx(spread, rel=1e-4)
    ends = walk("heun_karras", guided(w, Normal(0, s_u), Normal(1, s_c)), ENDS, 320, to_zero=True)
    assert ends[0].item() == pytest.approx(mean, rel=2e-3)
    assert (ends[1] - ends[0]).item() * start == pytest.approx(spread, rel=0.02)


def test_rescale_gives_back_the_contrast_of_the_conditional_prediction():
    unconditional, conditional = randn(2, 4, 8, 8), 2 + randn(2, 4, 8, 8, seed=1)
    full = guide(unconditional, conditional, 7.5, rescale=1.0)
    assert_close(full.std((1, 2, 3)), conditional.std((1, 2, 3)))
    half, plain = guide(unconditional, conditional, 7.5, rescale=0.5), guide(unconditional, conditional, 7.5)
    assert_close(half, (full + plain) / 2)


def test_rescale_is_that_of_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    unconditional, conditional = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1)
    expected = rescale_noise_cfg(guide(unconditional, conditional, 7.5), conditional, guidance_rescale=0.7)
    assert_close(guide(unconditional, conditional, 7.5, rescale=0.7), expected)


def test_interval_guides_the_middle_of_the_walk_alone():
    assert [weight_at(sigma, 7.5, (0.28, 5.42)) for sigma in (14.6, 5.42, 1.0, 0.28, 0.03)] == [1, 7.5, 7.5, 1, 1]
    assert [weight_at(sigma, 7.5) for sigma in (1e-9, math.inf)] == [7.5, 7.5]


def test_interval_spares_the_spread_that_guidance_costs():
    """Guided where there is little signal, the collapse happens early; on an interval below, much of it is undone."""
    cond, uncond = Normal(1, 0.5), Normal(0, 1.0)

    def on_interval(y, sigma):
        return guide(uncond.denoise(y, sigma), cond.denoise(y, sigma), weight_at(sigma.item(), 3.0, (0.05, 0.5)))

    everywhere = walk("heun_karras", guided(3.0, uncond, cond), ENDS, 40)
    middle = walk("heun_karras", on_interval, ENDS, 40)
    assert (middle[1] - middle[0]) > 2 * (everywhere[1] - everywhere[0])


def test_impossible_rescale_and_interval_are_refused():
    with pytest.raises(ValueError, match=r"guidance rescale 1.5: expected 0 \(off\) to 1"):
        guide(ENDS, ENDS, 2.0, rescale=1.5)
    with pytest.raises(ValueError, match=r"guidance interval \(3, 1\): expected 0 <= low < high"):
        weight_at(1.0, 7.5, (3, 1))
