"""Every draw is a function of (seed, epoch, row, purpose)."""

from itertools import islice

import numpy as np
import pytest
import torch

from controlkit.data.rows import held_out, read_dataset
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, make_batches
from controlkit.training.draws import generator, positions, uniform


def rows_of(dataset, **options):
    settings = {"resolution": 64, "latent_shape": (4, 8, 8), "timesteps": 1000, "prompt_dropout": 0.5, "seed": 0}
    return ControlRows(read_dataset(dataset, "canny"), condition="canny", **(settings | options))


def batches(data, count, start=0, batch_size=4, workers=0, processes=None):
    processes = processes or Processes()
    made = make_batches(
        data, start=start, count=count, batch_size=batch_size, workers=workers, processes=processes, pin=False
    )
    return list(made)


def equal(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_a_key_gives_its_own_numbers_and_always_the_same():
    draws = [
        torch.rand(4, generator=generator(*key))
        for key in [(0, 1, "a"), (0, 1, "a"), (0, 1, "b"), (0, 2, "a"), (1, 1, "a")]
    ]
    assert torch.equal(draws[0], draws[1])
    assert all(not torch.equal(draws[0], other) for other in draws[2:])


def test_uniform_is_uniform():
    """Mean 1/2 and variance 1/12 within four standard errors of 4000 draws."""
    draws = np.array([uniform(0, number) for number in range(4000)])
    assert abs(draws.mean() - 1 / 2) < 4 * (1 / 12 / 4000) ** 0.5
    assert abs(draws.var() - 1 / 12) < 4 * (1 / 180 / 4000) ** 0.5


def test_an_epoch_holds_every_row_once_and_each_has_its_own_order():
    stream = list(islice(positions(0, 7, 0), 21))
    orders = [[row for epoch, row in stream if epoch == number] for number in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("start", [0, 3, 7, 20])
def test_the_stream_can_be_entered_anywhere(start):
    assert list(islice(positions(5, 7, start), 30)) == list(islice(positions(5, 7, 0), start, start + 30))


def test_about_half_of_the_prompts_are_empty_anew_each_epoch_and_reproducibly(dataset):
    data = rows_of(dataset)
    emptied = np.array([[data[epoch, number]["emptied"].item() for number in range(len(data))] for epoch in range(30)])
    again = np.array([[rows_of(dataset)[3, number]["emptied"].item() for number in range(len(data))]])
    assert abs(emptied.mean() - 0.5) < 4 * (0.25 / emptied.size) ** 0.5
    assert len({tuple(row) for row in emptied}) == 30
    assert np.array_equal(emptied[3], again[0])
    other = [rows_of(dataset, seed=1)[3, number]["emptied"].item() for number in range(len(data))]
    assert emptied[3].tolist() != other


@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0), (1.0, 1)])
def test_dropout_of_none_and_of_all(dataset, dropout, share):
    data = rows_of(dataset, prompt_dropout=dropout)
    assert {data[0, number]["texts"] == "" for number in range(len(data))} == {bool(share)}


def test_noise_and_timestep_differ_between_rows_epochs_and_purposes(dataset):
    data = rows_of(dataset)
    samples = [data[epoch, number] for epoch in range(2) for number in range(3)]
    noises = [sample[kind] for sample in samples for kind in ("noise", "vae_noise")]
    assert all(not torch.equal(a, b) for place, a in enumerate(noises) for b in noises[:place])
    assert len({sample["timesteps"].item() for sample in samples}) > 1


def test_timesteps_cover_the_schedule_evenly(dataset):
    data = rows_of(dataset, timesteps=10)
    drawn = np.array([data[epoch, number]["timesteps"].item() for epoch in range(20) for number in range(len(data))])
    counts = np.bincount(drawn, minlength=10)
    expected = len(drawn) / 10
    assert len(counts) == 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared of 9 degrees of freedom, p = 0.001


def test_batches_do_not_hang_on_the_workers(dataset):
    data = rows_of(dataset)
    alone, helped = batches(data, 3), batches(data, 3, workers=2)
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_a_run_that_goes_on_sees_what_it_would_have_seen(dataset):
    data = rows_of(dataset)
    whole = batches(data, 9)
    assert all(equal(a, b) for a, b in zip(whole[5:], batches(data, 4, start=5 * 4), strict=True))


def test_two_processes_see_together_what_one_sees(dataset):
    data = rows_of(dataset)
    together = batches(data, 3, batch_size=4)
    shares = [batches(data, 3, batch_size=2, processes=Processes(rank, 2)) for rank in range(2)]
    for step, whole in enumerate(together):
        assert torch.equal(whole.noise, torch.cat([share[step].noise for share in shares]))
        assert whole.texts == shares[0][step].texts + shares[1][step].texts


def test_a_folder_smaller_than_a_batch_is_enough(dataset):
    data = rows_of(dataset)
    data.rows = data.rows[:3]
    (batch,) = batches(data, 1, batch_size=8)
    assert batch.pixels.shape == (8, 3, 64, 64)


def test_picture_and_map_share_one_geometry(tmp_path):
    """A white square on black, off centre, in a wide picture: map and picture show it at the same place."""
    from PIL import Image

    from controlkit.cli.main import main

    image = np.zeros((100, 180, 3), np.uint8)
    image[30:70, 60:100] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    main(["annotate", "--type", "canny", str(tmp_path), "-q"])
    data = rows_of(tmp_path, resolution=50)
    pixels, maps, sizes = data.picture_and_maps(data.rows[0])
    control = maps["canny"]
    assert pixels.shape == control.shape == (50, 50, 3)
    assert set(np.unique(control)) == {0, 255}
    rows, columns = np.nonzero(control[:, :, 0])
    bright_rows, bright_columns = np.nonzero(pixels[:, :, 0] > 127)
    assert abs(rows.min() - bright_rows.min()) <= 1
    assert abs(rows.max() - bright_rows.max()) <= 1
    assert abs(columns.min() - bright_columns.min()) <= 1
    assert abs(columns.max() - bright_columns.max()) <= 1
    assert sizes == (100, 180, 0, 20, 50, 50)


def test_held_out_rows_are_chosen_by_content(dataset):
    rows = read_dataset(dataset, "canny")
    chosen = {row.content for row in rows if held_out(row.content, 0.5)}
    assert 0 < len(chosen) < len(rows)
    assert {row.content for row in reversed(rows) if held_out(row.content, 0.5)} == chosen
    assert not any(held_out(row.content, 0.0) for row in rows)
    assert chosen <= {row.content for row in rows if held_out(row.content, 0.9)}
