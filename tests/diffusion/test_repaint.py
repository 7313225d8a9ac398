"""RePaint: the published walk, the law of what is known, and a Gaussian of which the answer is known."""

from itertools import pairwise

import pytest
import torch

from controlkit.diffusion.forward import Path, q_jump
from controlkit.diffusion.repaint import make_repaint
from controlkit.diffusion.repaint_walk import REPAINT_SAMPLERS, network_calls, walk
from controlkit.diffusion.samplers import ETA_SAMPLERS, SAMPLERS, make_sampler
from controlkit.diffusion.schedules import from_scheduler_config

LINEAR = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02,
          "clip_sample": False}  # fmt: skip
SD = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
      "clip_sample": False, "set_alpha_to_one": True}  # fmt: skip


# The walk


@pytest.mark.parametrize(
    ("steps", "jump", "samples", "calls", "forward_steps"),
    [
        (250, 10, 10, 2410, 2160), (250, 10, 5, 1210, 960), (50, 10, 10, 410, 360), (50, 10, 5, 210, 160),
        (30, 5, 3, 80, 50), (25, 5, 3, 65, 40), (20, 5, 2, 35, 15), (50, 10, 3, 130, 80), (20, 5, 5, 80, 60),
    ],
)  # fmt: skip
def test_the_published_counts(steps, jump, samples, calls, forward_steps):
    levels = walk(steps, jump=jump, samples=samples)
    assert network_calls(levels) == calls
    assert sum(after - before for before, after in pairwise(levels) if after > before) == forward_steps


@pytest.mark.parametrize(("steps", "jump", "samples"), [(20, 5, 3), (7, 7, 4), (9, 2, 2), (1, 1, 5), (12, 1, 3)])
def test_the_walk_goes_down_by_one_and_up_by_the_jump(steps, jump, samples):
    levels = walk(steps, jump=jump, samples=samples)
    assert levels[0] == steps
    assert levels[-1] == 0
    assert all(0 <= level <= steps for level in levels)
    assert {after - before for before, after in pairwise(levels)} <= {-1, jump}
    ups = [before for before, after in pairwise(levels) if after > before]
    assert {level: ups.count(level) for level in ups} == (
        {point + 1: samples - 1 for point in range(0, steps - jump, jump)} if samples > 1 else {}
    )


def test_one_sample_is_a_plain_walk():
    assert walk(20, jump=5, samples=1) == list(range(20, -1, -1))


def test_jumps_start_within_the_window_alone():
    ups = {before for before, after in pairwise(walk(50, jump=5, samples=2, window=(0.2, 0.6))) if after > before}
    assert ups == {level for level in range(1, 50, 5) if 10 <= level <= 30}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"jump": 21}, "jump length 21: a walk of 20 steps expects 1 to 20"),
        ({"jump": 0}, "expects 1 to 20"),
        ({"samples": 0}, "jump samples 0: expected at least 1"),
        ({"window": (0.8, 0.2)}, "jump window 0.8 to 0.2"),
        ({"window": (-0.1, 0.2)}, "expected two shares"),
    ],
)
def test_a_walk_that_cannot_be_is_one_line(settings, words):
    with pytest.raises(ValueError, match=words):
        walk(20, **{"jump": 5, **settings})


# The scheduler


def repaint(name, known, hole, config=SD, steps=10, **settings):
    scheduler = make_repaint(make_sampler(name, config), known, hole, **settings)
    scheduler.set_timesteps(steps)
    return scheduler


def run(scheduler, latents, model, seed=0, **options):
    """As pipelines do it."""
    generator = torch.Generator().manual_seed(seed)
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(latents, timestep)
        output = model(given, timestep)
        latents = scheduler.step(output, timestep, latents, generator=generator, return_dict=False, **options)[0]
    return latents


def left_known(width=64, rows=256):
    known = torch.randn(1, 4, rows, width, generator=torch.Generator().manual_seed(5))
    hole = torch.zeros(1, 1, rows, width)
    hole[..., width // 2 :] = 1
    return known, hole


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_a", "euler_karras", "lcm", "tcd"])
def test_the_known_part_keeps_to_the_forward_process_at_each_level(name):
    """Mean and variance of what stands there, over its cells; at the end it is the picture itself."""
    known, hole = left_known()
    scheduler = repaint(name, known, hole, steps=8, jump=3, samples=2)
    generator = torch.Generator().manual_seed(1)
    latents = scheduler.begin(torch.randn(known.shape, generator=generator))
    wanted = known[..., :32]
    for place, timestep in enumerate(scheduler.timesteps):
        level = scheduler.levels[scheduler._at]
        inner = scheduler.inner
        if name.startswith("euler"):
            a, b = 1.0, inner.sigmas[len(inner.timesteps) - level].item()
        else:
            a = inner.alphas_cumprod[timestep].sqrt().item()
            b = (1 - a**2) ** 0.5
        assert timestep == inner.timesteps[len(inner.timesteps) - level]
        part = latents[..., :32]
        slope = ((part * wanted).mean() / (wanted * wanted).mean()).item()
        rest = part - a * wanted
        assert slope == pytest.approx(a, abs=4 * b / wanted.numel() ** 0.5), place
        assert rest.var().item() == pytest.approx(b**2, rel=0.03), place
        output = torch.zeros_like(scheduler.scale_model_input(latents, timestep))
        latents = scheduler.step(output, timestep, latents, generator=generator, return_dict=False)[0]
    assert torch.equal(latents[..., :32], wanted)
    assert not torch.equal(latents[..., 32:], known[..., 32:])


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler_a"])
def test_one_sample_equals_plain_replacement(name):
    """Written out: a step of the sampler, then the known part at the level that it reached."""
    known, hole = left_known(width=16, rows=16)
    model = lambda x, t: 0.3 * x  # noqa: E731
    scheduler = repaint(name, known, hole, steps=10, jump=10, samples=1)
    begun = scheduler.begin(torch.randn(known.shape, generator=torch.Generator().manual_seed(2)))
    ours = run(scheduler, begun, model)

    plain, generator, x = make_sampler(name, SD), torch.Generator().manual_seed(0), begun
    plain.set_timesteps(10)
    for place, timestep in enumerate(plain.timesteps):
        x = plain.step(model(plain.scale_model_input(x, timestep), timestep), timestep, x, generator=generator)[0]
        noise = torch.randn(x.shape, generator=generator)
        part = plain.add_noise(known, noise, plain.timesteps[place + 1 : place + 2]) if place < 9 else known
        x = torch.where(hole > 0, x, part)
    assert torch.allclose(ours, x, atol=1e-5)


def test_a_hole_everywhere_is_plain_sampling():
    known = torch.randn(1, 4, 8, 8)
    scheduler = repaint("ddim", known, torch.ones(1, 1, 8, 8), jump=10, samples=1)
    noise = torch.randn(1, 4, 8, 8)
    model = lambda x, t: 0.2 * x  # noqa: E731
    ours = run(scheduler, scheduler.begin(noise), model, eta=0.0)
    plain = make_sampler("ddim", SD)
    plain.set_timesteps(10)
    x = noise
    for timestep in plain.timesteps:
        x = plain.step(model(x, timestep), timestep, x)[0]
    assert torch.equal(ours, x)


def test_strength_begins_lower_and_from_what_was_there():
    known = torch.full((1, 4, 32, 32), 2.0)
    scheduler = repaint("ddim", known, torch.ones(1, 1, 32, 32), steps=20, jump=2, samples=2, strength=0.5)
    assert scheduler.levels[0] == 10
    begun = scheduler.begin(torch.randn(known.shape, generator=torch.Generator().manual_seed(0)))
    a = scheduler.inner.alphas_cumprod[scheduler.timesteps[0]].sqrt()
    assert begun.mean().item() == pytest.approx(2 * a.item(), abs=0.05)
    assert len(scheduler.timesteps) == network_calls(walk(10, jump=2, samples=2))


def test_a_grey_hole_is_free_from_its_share_of_the_noise_on():
    known, generator = torch.zeros(1, 1, 1, 4), torch.Generator().manual_seed(0)
    hole = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 1, 4)
    scheduler = repaint("ddim", known, hole, steps=8, jump=8, samples=1)
    latents = scheduler.begin(torch.zeros_like(known))
    free = []
    for timestep in scheduler.timesteps:
        output = torch.full_like(latents, 1e4)  # carries whatever is free far away
        latents = scheduler.step(output, timestep, latents, generator=generator, return_dict=False)[0]
        free.append((latents.abs() > 50).flatten().tolist())
        latents = torch.zeros_like(latents)
    assert [each[3] for each in free] == [True] * 8
    assert [each[0] for each in free] == [False] * 8
    assert [each[1] for each in free] == [level <= 2 for level in range(7, -1, -1)]
    assert [each[2] for each in free] == [level <= 4 for level in range(7, -1, -1)]


def test_samplers_that_remember_are_refused():
    known, hole = torch.zeros(1, 4, 8, 8), torch.ones(1, 1, 8, 8)
    for name in SAMPLERS:
        if name in REPAINT_SAMPLERS:
            assert hasattr(repaint(name, known, hole, jump=2), "timesteps")
        else:
            with pytest.raises(ValueError, match="it remembers the steps before; use one of ddim, ddpm, euler"):
                repaint(name, known, hole)


def test_eta_is_declared_where_it_means_something():
    import inspect

    known, hole = torch.zeros(1, 4, 8, 8), torch.ones(1, 1, 8, 8)
    for name in REPAINT_SAMPLERS:
        declared = "eta" in inspect.signature(repaint(name, known, hole, jump=2).step).parameters
        assert declared == (name in ETA_SAMPLERS)


# The Gaussian: two cells of variance 1 and correlation 0.9, the first known to be 1.5


RHO, SEEN = 0.9, 1.5
PRIOR = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=torch.float64)


def moments_of(levels, alpha_bar):
    """Mean and variance of the second cell behind the walk, exactly: each reverse step draws from the true posterior
    of the cells one level below."""
    eye, mean, variance = torch.eye(2, dtype=torch.float64), 0.0, 1.0
    for before, after in pairwise(levels):
        t, s = alpha_bar[before], alpha_bar[after]
        if after > before:
            c = (s / t).sqrt()
            mean, variance = c * mean, c**2 * variance + 1 - s / t
            continue
        joint_t, joint_s = t * PRIOR + (1 - t) * eye, s * PRIOR + (1 - s) * eye
        cross = (t / s).sqrt() * joint_s  # Cov(x_s, x_t)
        gain = cross @ joint_t.inverse()
        rest = (joint_s - gain @ cross.T)[1, 1]
        mean = gain[1, 0] * t.sqrt() * SEEN + gain[1, 1] * mean
        variance = gain[1, 0] ** 2 * (1 - t) + gain[1, 1] ** 2 * variance + rest
    return float(mean), float(variance)


def levels_of(steps):
    """alpha_bar of each level of a walk of so many steps over the linear schedule."""
    schedule = from_scheduler_config(LINEAR)
    grid = torch.arange(0, 1000, 1000 // steps)
    return torch.cat([torch.ones(1, dtype=torch.float64), schedule.alpha_bar[grid]])


@pytest.mark.parametrize(
    ("jump", "samples", "mean", "variance"),
    [
        (10, 1, 0.9331, 0.3154), (10, 2, 1.1408, 0.2470), (10, 5, 1.2755, 0.2122), (10, 10, 1.3127, 0.2028),
        (10, 50, 1.3349, 0.1988), (1, 2, 1.1426, 0.2456), (1, 10, 1.3179, 0.1994),
    ],
)  # fmt: skip
def test_resampling_reaches_the_conditional_law(jump, samples, mean, variance):
    """Of the truth, N(1.35, 0.19), plain replacement misses 31 % of the mean."""
    found = moments_of(walk(250, jump=jump, samples=samples), levels_of(250))
    assert found == (pytest.approx(mean, abs=2e-3), pytest.approx(variance, abs=2e-3))


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("ddim", {"eta": 1.0}), ("euler_a", {})])
def test_the_scheduler_reaches_it_too(name, options):
    """20,000 walks at once, against the exact moments; these samplers' own variance is a little smaller."""
    count = 20_000
    known = torch.tensor([SEEN, 0.0]).view(1, 1, 1, 2)
    hole = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    config = {**LINEAR, "timestep_spacing": "leading"}

    def model(x, timestep):
        """The exact eps of the Gaussian."""
        alpha_bar = scheduler.inner.alphas_cumprod[int(timestep)].double()
        joint = alpha_bar * PRIOR + (1 - alpha_bar) * torch.eye(2, dtype=torch.float64)
        eps = (1 - alpha_bar).sqrt() * (x.double().view(-1, 2) @ joint.inverse())
        return eps.view(x.shape).float()

    found = {}
    for samples in (1, 5):
        scheduler = repaint(name, known, hole, config, steps=50, jump=10, samples=samples)
        noise = torch.randn(count, 1, 1, 2, generator=torch.Generator().manual_seed(3))
        painted = run(scheduler, scheduler.begin(noise), model, **options)[..., 1]
        exact = moments_of(scheduler.levels, levels_of(50))
        found[samples] = painted.mean().item(), painted.var().item()
        assert found[samples][0] == pytest.approx(exact[0], abs=0.03)
        assert found[samples][1] == pytest.approx(exact[1], abs=0.07)
    assert found[5][0] > found[1][0] + 0.1


def test_a_jump_is_the_same_in_both_spaces():
    """x in sigma space is x_t / sqrt(alpha_bar)."""
    s, t = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    x, noise = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    sigma = lambda alpha_bar: ((1 - alpha_bar) / alpha_bar).sqrt()  # noqa: E731
    one = torch.ones((), dtype=torch.float64)
    in_sigmas = q_jump(x / s.sqrt(), noise, Path(one, sigma(s)), Path(one, sigma(t)))
    assert torch.allclose(in_sigmas * t.sqrt(), q_jump(x, noise, s, t))
