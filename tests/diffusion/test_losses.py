import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from controlkit.diffusion import losses, schedules
from controlkit.diffusion.forward import posterior, q_sample
from controlkit.diffusion.prediction import convert, reverse_mean, target
from controlkit.diffusion.respacing import respace
from controlkit.diffusion.variance import log_variance

SCHEDULE = schedules.linear(100)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_l1_l2_and_huber_by_hand():
    prediction, wanted = torch.tensor([[0.0, 0.0], [1.0, 4.0]]), torch.tensor([[0.5, -3.0], [1.0, 4.0]])
    assert losses.per_item("l1", prediction, wanted).tolist() == [1.75, 0]
    assert losses.per_item("l2", prediction, wanted).tolist() == [4.625, 0]
    assert losses.per_item("huber", prediction, wanted).tolist() == [(0.125 + 2.5) / 2, 0]
    assert losses.per_item("huber", prediction, wanted, delta=2.0).tolist() == [(0.125 + 2 * (3 - 1)) / 2, 0]


def test_l_simple_is_the_mean_square_of_each_item():
    prediction, wanted = randn(5, 3, 4, 4), randn(5, 3, 4, 4, seed=1)
    assert_close(losses.l_simple(prediction, wanted), ((prediction - wanted) ** 2).mean(dim=(1, 2, 3)))


def test_unknown_loss_and_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"unknown loss 'hubert': did you mean 'huber'\? known: huber, l1, l2"):
        losses.per_item("hubert", randn(1, 2), randn(1, 2))
    with pytest.raises(ValueError, match=r"prediction \(2, 1\) and target \(2, 3\): expected equal shapes"):
        losses.per_item("l2", randn(2, 1), randn(2, 3))


@pytest.mark.parametrize("name", ["sample", "epsilon", "v_prediction", "flow", "score"])
def test_min_snr_weighs_an_error_of_x_0_alike_however_it_is_said(name):
    """min(snr, gamma) |x_0 - x_0'|², whichever of the five the network predicts."""
    t = torch.tensor([0, 5, 30, 60, 99])
    alpha_bar_t, snr_t = SCHEDULE.alpha_bar[t], SCHEDULE.snr[t]
    x_0, eps, error = randn(5, 3), randn(5, 3, seed=1), randn(5, 3, seed=2)
    x_t = q_sample(x_0, eps, alpha_bar_t)
    prediction = convert("sample", name, x_0 + error, x_t, alpha_bar_t)
    weighted = losses.min_snr_weight(name, snr_t) * losses.l_simple(prediction, target(name, x_0, eps, alpha_bar_t))
    assert_close(weighted, snr_t.clamp(max=5.0) * (error**2).mean(1), rtol=1e-6, atol=1e-9)


def test_min_snr_weight_of_pure_noise_is_finite():
    for name in ("sample", "epsilon", "v_prediction", "flow", "score"):
        assert losses.min_snr_weight(name, torch.zeros(1)).isfinite().all()
    with pytest.raises(ValueError, match="'mean' has no weight"):
        losses.min_snr_weight("mean", torch.ones(1))


def test_l_vlb_is_the_kl_of_two_gaussians():
    """Against torch.distributions, for random means and variances (DDPM, Eq. 5)."""
    t = torch.tensor([1, 20, 99])
    levels = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar_prev[t]
    x_0, x_t, mean, log = (
        randn(3, 2, 4, 4),
        randn(3, 2, 4, 4, seed=1),
        randn(3, 2, 4, 4, seed=2),
        randn(3, 2, 4, 4, seed=3),
    )
    q_mean, q_variance = posterior(x_0, x_t, *levels)
    kl = kl_divergence(Normal(q_mean, q_variance.sqrt().expand_as(q_mean)), Normal(mean, (log / 2).exp()))
    bits = kl.mean(dim=(1, 2, 3)) / math.log(2)
    assert_close(losses.l_vlb(x_0, x_t, mean, log, *levels), bits)


def test_l_vlb_vanishes_where_the_network_says_the_posterior():
    t = torch.tensor([1, 20, 99])
    levels = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar_prev[t]
    x_0, x_t = randn(3, 2), randn(3, 2, seed=1)
    mean, variance = posterior(x_0, x_t, *levels)
    assert_close(losses.l_vlb(x_0, x_t, mean, variance.log(), *levels), torch.zeros(3, dtype=torch.float64))


def test_terms_of_the_bound_add_up_to_the_exact_likelihood():
    """For x_0 ~ N(0, 1) the reverse of every step is exactly Gaussian, mean by E[x_0|x_t] = sqrt(alpha_bar_t) x_t and
    variance beta_t. So the bound is tight: at every x_0 it is -log N(x_0; 0, 1). Its expectation over x_t takes two
    points, since the terms are quadratic in x_t.
    """
    schedule = respace(schedules.cosine(), torch.arange(9, 700, 45))  # to alpha_bar = 0.2: the prior counts too
    x_0 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    bound = losses.l_prior(x_0, schedule.alpha_bar[-1])
    for t in range(schedule.num_steps):
        levels = schedule.alpha_bar[t].expand(9), schedule.alpha_bar_prev[t].expand(9)
        for eps in (-torch.ones_like(x_0), torch.ones_like(x_0)):
            x_t = q_sample(x_0, eps, levels[0])
            mean = reverse_mean("sample", levels[0][:, None] ** 0.5 * x_t, x_t, *levels)
            log = log_variance("fixed_large", schedule, torch.tensor(t), x_t)
            bound += losses.l_vlb(x_0, x_t, mean, log, *levels) / 2
    assert_close(bound, -Normal(0.0, 1.0).log_prob(x_0)[:, 0] / math.log(2))


def test_decoder_of_pictures_shares_out_all_probability():
    """256 levels in [-1, 1], the outermost open (DDPM, Eq. 13)."""
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None]
    for mean, s in ((0.0, 0.1), (-0.99, 0.5), (1.2, 0.003)):
        nll = losses.decoder_nll(
            levels, torch.full_like(levels, mean), torch.tensor(s, dtype=torch.float64).log() * 2, levels=256
        )
        assert (-nll).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_decoder_of_pictures_is_density_times_cell_where_that_is_smooth():
    x_0 = (torch.arange(100, 150, dtype=torch.float64) / 127.5 - 1)[:, None]
    mean, log = torch.full_like(x_0, 0.1), torch.tensor(2 * math.log(0.2), dtype=torch.float64)
    density = losses.decoder_nll(x_0, mean, log)
    assert_close(density, -Normal(0.1, 0.2).log_prob(x_0).double())
    assert_close(losses.decoder_nll(x_0, mean, log, levels=256), density - math.log(2 / 255), atol=1e-4, rtol=0)


def test_first_term_is_the_decoder():
    x_0, x_t, mean, log = randn(2, 3), randn(2, 3, seed=1), randn(2, 3, seed=2), randn(2, 3, seed=3)
    first = SCHEDULE.alpha_bar[:1].expand(2), torch.ones(2, dtype=torch.float64)
    expected = losses.decoder_nll(x_0, mean, log).mean(1) / math.log(2)
    assert_close(losses.l_vlb(x_0, x_t, mean, log, *first), expected)


def test_hybrid_is_l_simple_and_a_share_of_the_whole_bound():
    """IDDPM, Eq. 16, with T L_t for the sum over t."""
    t, x_0, eps, output = (
        torch.tensor([0, 30, 99]),
        randn(3, 2, 4, 4),
        randn(3, 2, 4, 4, seed=1),
        randn(3, 4, 4, 4, seed=2),
    )
    levels = SCHEDULE.alpha_bar[t], SCHEDULE.alpha_bar_prev[t]
    x_t = q_sample(x_0, eps, levels[0])
    log = log_variance("learned_range", SCHEDULE, t, x_t, output[:, 2:])
    vlb = losses.l_vlb(x_0, x_t, reverse_mean("epsilon", output[:, :2], x_t, *levels), log, *levels)
    simple = losses.l_simple(output[:, :2], eps)
    assert_close(losses.l_hybrid(output, x_0, eps, t, SCHEDULE), simple + 0.001 * 100 * vlb)


def test_bound_teaches_the_variance_alone():
    """Within the hybrid the mean's gradient is that of L_simple (IDDPM, Sec. 3.1)."""
    t, x_0, eps = torch.tensor([0, 30, 99]), randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    output = randn(3, 4, 4, 4, seed=2).requires_grad_()
    of_hybrid = torch.autograd.grad(losses.l_hybrid(output, x_0, eps, t, SCHEDULE).sum(), output)[0]
    of_simple = torch.autograd.grad(losses.l_simple(output[:, :2], eps).sum(), output)[0]
    assert torch.equal(of_hybrid[:, :2], of_simple[:, :2])
    assert (of_hybrid[:, 2:] != 0).all()
    assert of_hybrid.isfinite().all()
