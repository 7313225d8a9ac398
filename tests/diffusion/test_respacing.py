import diffusers
import pytest
import torch
from torch.testing import assert_close

from controlkit.diffusion import schedules
from controlkit.diffusion.respacing import SPACINGS, respace, timestep_grid


def test_the_three_grids_of_twenty_steps():
    assert timestep_grid(1000, 20, "leading", offset=1).tolist() == list(range(951, 0, -50))
    assert timestep_grid(1000, 20, "trailing").tolist() == list(range(999, 0, -50))
    linspace = timestep_grid(1000, 20, "linspace").tolist()
    assert linspace[:4] == [999, 946, 894, 841]
    assert linspace[-2:] == [53, 0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 50, 333, 1000])
def test_grid_is_that_of_diffusers(spacing, steps):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert torch.equal(timestep_grid(1000, steps, spacing), scheduler.timesteps)


def test_respaced_schedule_keeps_alpha_bar_where_it_is_visited():
    schedule, tau = schedules.cosine(), timestep_grid(1000, 30, "linspace")
    assert_close(respace(schedule, tau).alpha_bar, schedule.alpha_bar[tau.flip(0)])


def test_visiting_every_step_changes_nothing():
    schedule = schedules.linear()
    assert_close(respace(schedule, torch.arange(1000)).betas, schedule.betas)


def test_more_steps_than_the_schedule_has_are_refused():
    with pytest.raises(ValueError, match="1001 steps on a schedule of 1000: expected 1 to 1000"):
        timestep_grid(1000, 1001)
    with pytest.raises(ValueError, match="0 steps on a schedule of 1000"):
        timestep_grid(1000, 0)


def test_grid_that_leaves_the_schedule_is_refused():
    with pytest.raises(ValueError, match="reach from t = 1 to 1000, outside 0 … 999; take fewer steps"):
        timestep_grid(1000, 1000, "leading", offset=1)
    with pytest.raises(ValueError, match="offset 1 with 'trailing' spacing: only 'leading' has an offset"):
        timestep_grid(1000, 10, "trailing", offset=1)
    for tau in ([3, 3], [5, 1000], [-1, 5], []):
        with pytest.raises(ValueError, match="expected each once, within 0 … 999"):
            respace(schedules.linear(), torch.tensor(tau, dtype=torch.int64))


def test_unknown_spacing_gets_the_nearest_name():
    with pytest.raises(ValueError, match="unknown spacing 'linspaced': did you mean 'linspace'"):
        timestep_grid(1000, 10, "linspaced")
