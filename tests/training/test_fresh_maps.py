"""Maps made while training: drawn anew for each row and epoch, and the same each time they are asked for."""

import shutil

import numpy as np
import pytest
import torch

from annotators import ANNOTATORS
from controlkit.cli.main import main
from controlkit.data.fresh_maps import FreshMaps
from controlkit.data.pictures import read_picture
from controlkit.data.rows import read_dataset
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, make_batches
from tests.training.test_train import steps_of


def rows_of(dataset, *settings, fresh=True, **options):
    rows = read_dataset(dataset) if fresh else read_dataset(dataset, "canny")
    return ControlRows(
        rows, condition="canny", resolution=64, latent_shape=(4, 8, 8), timesteps=1000, prompt_dropout=0.5, seed=0,
        fresh={"canny": FreshMaps.of("canny", settings)} if fresh else None, **options,
    )  # fmt: skip


@pytest.fixture
def bare(dataset, tmp_path):
    """The pictures and captions alone."""
    for path in dataset.iterdir():
        if path.suffix in (".png", ".txt"):
            (tmp_path / "bare").mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / "bare" / path.name)
    return tmp_path / "bare"


@pytest.mark.parametrize("resolution", [64, 40])
def test_with_fixed_parameters_they_are_the_maps_that_annotate_makes(dataset, resolution):
    settings = {"resolution": resolution, "latent_shape": (4, resolution // 8, resolution // 8)}
    fresh, made = rows_of(dataset), rows_of(dataset, fresh=False)
    for data in (fresh, made):
        for name, value in settings.items():
            setattr(data, name, value)
    for number in range(6):
        one, other = fresh[2, number], made[2, number]
        assert all(torch.equal(one[name], other[name]) for name in ("pixels", "control", "noise", "sizes"))
        assert one["texts"] == other["texts"]


def test_a_range_is_drawn_for_each_row_and_epoch(dataset):
    data = rows_of(dataset, "low=20..60", "high=60..400")
    edges = {(epoch, row): data[epoch, row]["control"].mean().item() for epoch in range(6) for row in range(4)}
    for row in range(4):
        assert len({edges[epoch, row] for epoch in range(6)}) > 3
    again = rows_of(dataset, "low=20..60", "high=60..400")
    assert {key: again[key]["control"].mean().item() for key in list(edges)[::-1]} == edges
    other = ControlRows(
        data.rows, condition="canny", resolution=64, latent_shape=(4, 8, 8), timesteps=1000, prompt_dropout=0.5,
        seed=1, fresh=data.fresh,
    )  # fmt: skip
    assert {key: other[key]["control"].mean().item() for key in edges} != edges


def test_the_draws_fill_their_range():
    maps = FreshMaps.of("canny", ["low=20..60", "high=60..400", "mode=fixed"])
    random = np.random.default_rng(0)
    drawn = [maps.options(lambda name: random.uniform()) for _ in range(300)]
    lows = [options["low"] for options in drawn]
    assert min(lows) >= 20
    assert max(lows) <= 60
    assert set(range(25, 56)) <= set(lows)
    assert {type(options["high"]) for options in drawn} == {int}
    assert {options["mode"] for options in drawn} == {"fixed"}


def test_an_annotator_that_draws_by_itself_draws_anew_each_epoch(dataset):
    """canny's own random thresholds follow from the picture and `seed`, which is drawn."""
    data = rows_of(dataset, "mode=random")
    assert len({data[epoch, 3]["control"].sum().item() for epoch in range(8)}) > 3
    fixed = rows_of(dataset, "mode=random", "seed=5")
    assert len({fixed[epoch, 3]["control"].sum().item() for epoch in range(8)}) == 1
    expected = ANNOTATORS.create("canny", mode="random", seed=5)(read_picture(fixed.rows[3].picture))
    assert torch.equal(fixed[0, 3]["control"], torch.from_numpy(expected).permute(2, 0, 1) / 255)


def test_a_mirrored_picture_gets_the_map_of_what_is_seen(dataset):
    data = rows_of(dataset)
    row = data.rows[0]
    picture, maps, _ = data.picture_and_maps(row, mirrored=True)
    assert np.array_equal(maps["canny"], ANNOTATORS.create("canny")(picture))


def test_workers_and_processes_make_the_same_maps(dataset):
    data = rows_of(dataset, "low=20..60", "high=60..400")

    def batches(batch_size=4, workers=0, processes=None):
        return list(
            make_batches(
                data, start=5, count=2, batch_size=batch_size, workers=workers, processes=processes or Processes(),
                pin=False,
            )
        )  # fmt: skip

    alone, helped = batches(), batches(workers=1)
    shares = [batches(batch_size=2, processes=Processes(rank, 2)) for rank in range(2)]
    for step, whole in enumerate(alone):
        assert torch.equal(whole.control, helped[step].control)
        assert torch.equal(whole.control, torch.cat([share[step].control for share in shares]))


def test_a_run_without_maps_resumes_exactly_and_caches_the_rest(bare, tmp_path):
    settings = [f"data.path={bare}", "data.annotate=low=20..60,high=60..400", "batch_size=2", "checkpoint_every=3"]
    settings += ["watch.every=0"]

    def losses(name, *more, samples=0):
        arguments = [*settings, "lr=1e-3", f"samples.every={samples}", "samples.steps=1", f"output={tmp_path / name}"]
        assert main(["train", *arguments, "-q", *more]) == 0
        return [row["loss"] for row in steps_of(tmp_path / name)]

    whole = losses("whole", "steps=6", samples=6)
    losses("broken", "steps=3")
    assert losses("broken", "steps=6", "--resume") == whole
    assert losses("off", "steps=6", "cache=off") == pytest.approx(whole, rel=1e-5)
    assert losses("other", "steps=6", "data.annotate=low=20..60") != whole


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.annotate=low"], "data.annotate=low: expected name=value or name=low..high"),
        (["data.annotate=low=a..b"], "data.annotate=low=a..b: expected two numbers, e.g. low=50..150"),
        (["data.annotate=lo=5"], "annotator 'canny' has no parameter 'lo': did you mean 'low'?"),
        (["data.annotate=low=50..150,high=100..200"], "canny: low=150 and high=100: expected 0 <= low <= high"),
        (["data.annotate=low=5", "data.condition=cany"], "no annotator makes 'cany': did you mean 'canny'?"),
        (["data.annotate=min_confidence=0.5", "data.condition=pose"], "pose needs a network; make its maps once"),
        (["data.annotate=low=5", "data.maps=maps"], "data.annotate makes the maps, and data.maps=maps holds some"),
    ],
)
def test_what_no_annotator_could_make_is_one_line(bare, settings, words, capsys):
    assert main(["train", f"data.path={bare}", *settings, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
