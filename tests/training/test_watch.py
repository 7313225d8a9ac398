"""Is it working: the looks of a run, the event, the diagnosis, and the facts of maps that it rests on."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from controlkit.cli.main import main
from controlkit.config import build
from controlkit.data.rows import read_dataset
from controlkit.errors import RequestError
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows
from controlkit.training.card import model_card
from controlkit.training.config import TrainConfig
from controlkit.training.diagnosis import diagnose
from controlkit.training.dropout import ControlDropout
from controlkit.training.launch import make_accelerator
from controlkit.training.map_facts import MapFacts, belonging, map_problems
from controlkit.training.objective import Models
from controlkit.training.objective_config import ObjectiveConfig
from controlkit.training.run import Run
from controlkit.training.telemetry import Telemetry
from controlkit.training.watch import ACQUIRED_LOOKS, ACQUIRED_SHARE, Watch, acquired_at
from controlkit.training.watch_config import BINS, WatchConfig
from tests.conftest import draw_photo
from tests.training.test_train import SETTINGS, metrics, train

HELD_OUT = ["data.held_out=0.4", "watch.rows=3"]
LOOKING = ["watch.every=2", *HELD_OUT, "samples.every=4", "samples.steps=2", "samples.count=2"]


def rows_of(run):
    return [json.loads(line) for line in metrics(run).splitlines()]


def looks_of(run):
    return [row for row in rows_of(run) if "map_gain_share" in row]


def gain(mean, sure=0.01):
    return {"mean": mean, "low": mean - sure, "high": mean + sure, "n": 8}


def look(step, control=0.0, read=0.0, influence=0.3, zeros=0.01):
    return {"step": step, "control_gain_share": gain(control), "map_gain_share": gain(read), "influence": influence,
            "zero_convolutions": {"mid_block": zeros}}  # fmt: skip


# The event


def test_control_is_acquired_where_both_gains_stay_clear():
    looks = [look(50), look(100, 0.2, 0.0), look(150, 0.2, 0.1), look(200, 0.2, 0.15)]
    assert acquired_at(looks) == 150
    assert acquired_at(looks[:3]) is None  # one look may be chance
    assert acquired_at([*looks[:3], look(200, 0.2, 0.0), look(250, 0.2, 0.1)]) is None
    assert ACQUIRED_LOOKS == 2


def test_a_gain_without_reading_the_map_is_no_control():
    """A net that learned how the pictures look, as one does whose maps were shuffled."""
    assert acquired_at([look(step, control=0.5, read=0.0) for step in range(10)]) is None


def test_an_answer_to_the_map_that_makes_things_worse_is_no_control():
    assert acquired_at([look(step, control=-0.1, read=0.3) for step in range(10)]) is None


def test_a_gain_that_is_not_sure_is_no_control():
    unsure = [{**look(step), "control_gain_share": gain(0.3), "map_gain_share": gain(0.3, sure=0.3)} for step in (1, 2)]
    assert acquired_at(unsure) is None


# What a run writes


@pytest.fixture(scope="module")
def watched(dataset, tmp_path_factory):
    """A run that looks at every second step."""
    run = tmp_path_factory.mktemp("watched") / "run"
    train(dataset, run, *LOOKING)
    return run


def test_a_look_holds_what_was_promised(watched):
    looks = looks_of(watched)
    assert [row["step"] for row in looks] == [2, 4]
    for row in looks:
        assert row["control_gain"] == pytest.approx(row["held_out_loss_silent"] - row["held_out_loss"], abs=1e-5)
        assert len(row["by_timestep"]) == BINS
        for part in ("loss", "silent"):
            name = {"loss": "held_out_loss", "silent": "held_out_loss_silent"}[part]
            mean = np.mean([each[part] for each in row["by_timestep"].values()])
            assert mean == pytest.approx(row[name], rel=1e-4)
        assert all(value > 0 for value in row["zero_convolutions"].values())
        assert row["influence"] > 0
        assert row["control_gain_share"]["n"] == 3
    assert looks[0]["held_out_loss_silent"] == looks[1]["held_out_loss_silent"]  # the same noise at the same timesteps
    assert looks[0]["held_out_loss"] != looks[1]["held_out_loss"]
    assert any("look_seconds" in row for row in map(json.loads, (watched / "timing.jsonl").read_text().splitlines()))


def test_samples_are_scored_against_their_maps(watched):
    (row,) = [row["fidelity"] for row in rows_of(watched) if "fidelity" in row]
    assert row["metric"] == "canny_f1_1px"
    assert row["n"] == 2
    assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
    assert row["real"] == 1
    assert "The samples of step 4, annotated again: canny_f1_1px" in (watched / "README.md").read_text()


def test_a_run_without_control_says_so(watched):
    """Four steps teach a random base nothing; the last line is the event, and the card has it."""
    last = rows_of(watched)[-2]
    assert last["event"] == "control not acquired"
    assert last["diagnosis"]
    card = (watched / "README.md").read_text()
    assert "control was not acquired by step 4" in card
    assert last["diagnosis"][0] in card
    assert (watched / "curves.png").stat().st_size > 5000


def test_looks_change_nothing_of_the_training(dataset, watched, tmp_path):
    train(dataset, tmp_path / "run", "watch.every=0", *HELD_OUT, "samples.every=0")
    ours, theirs = ([row for row in rows_of(run) if "loss" in row] for run in (watched, tmp_path / "run"))
    assert ours == theirs
    assert looks_of(tmp_path / "run") == []


def test_looks_are_the_same_whatever_the_batch(dataset, watched, tmp_path):
    """Rows, noise and timesteps of a look are its own: only rounding hangs on how many are computed together."""
    train(dataset, tmp_path / "run", "watch.every=1", *HELD_OUT, "batch_size=5", "steps=1")
    silent = looks_of(tmp_path / "run")[0]["held_out_loss_silent"]
    assert silent == pytest.approx(looks_of(watched)[0]["held_out_loss_silent"], rel=1e-5)


def test_a_resumed_run_writes_the_same_lines(dataset, watched, tmp_path):
    train(dataset, tmp_path / "run", *LOOKING, "max_minutes=0")  # stops behind its first step
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1]
    train(dataset, tmp_path / "run", *LOOKING, "--resume")
    assert metrics(tmp_path / "run") == metrics(watched)


def test_looks_are_at_what_is_handed_over(dataset, watched, tmp_path):
    """The average, where one is kept: as close to the beginning as it is, the control moves less."""
    train(dataset, tmp_path / "run", "watch.every=2", *HELD_OUT, "ema=0.9999")
    ours, theirs = looks_of(tmp_path / "run"), looks_of(watched)
    assert ours[0]["held_out_loss_silent"] == theirs[0]["held_out_loss_silent"]
    assert 0 < ours[1]["influence"] < theirs[1]["influence"]


def test_where_the_decoder_learns_the_base_alone_changes_too(dataset, watched, tmp_path):
    train(dataset, tmp_path / "run", "watch.every=2", *HELD_OUT, "decoder=true")
    silent = [each["held_out_loss_silent"] for each in looks_of(tmp_path / "run")]
    assert silent[0] != silent[1]
    assert silent[0] != looks_of(watched)[0]["held_out_loss_silent"]


def test_looks_are_at_the_timesteps_that_are_learned(dataset, tmp_path):
    """Where these are fewer than there are ranges, each is one."""
    train(dataset, tmp_path / "run", "watch.every=1", *HELD_OUT, "steps=1",
          "objective.first_timestep=600", "objective.last_timestep=601")  # fmt: skip
    (seen,) = looks_of(tmp_path / "run")
    assert list(seen["by_timestep"]) == ["600-600", "601-601"]
    assert seen["control_gain_share"]["n"] == 3


@pytest.mark.parametrize("cache", ["disk", "off"])
def test_looks_in_buckets(dataset, tmp_path, cache):
    """Rows of several shapes, each under the map of one of another shape; samples are scored too."""
    for number in range(12):
        Image.fromarray(draw_photo(number, *((96, 48), (48, 96), (64, 64))[number % 3])).save(
            tmp_path / f"{number}.png"
        )
        (tmp_path / f"{number}.txt").write_text("a picture")
    assert main(["annotate", "--type", "canny", str(tmp_path), "--quiet"]) == 0
    train(tmp_path, tmp_path / "run", "data.buckets=16", f"cache={cache}", "steps=1", "watch.every=1", "watch.rows=6",
          "samples.every=1", "samples.steps=1")  # fmt: skip
    (seen,) = looks_of(tmp_path / "run")
    assert seen["map_gain_share"]["n"] == 6
    assert 0 < seen["held_out_loss"] < 100
    (score,) = [row["fidelity"] for row in rows_of(tmp_path / "run") if "fidelity" in row]
    assert score["n"] == 4
    assert score["chance"] < score["real"]


def test_a_net_that_hardly_moved_is_told_so(dataset, tmp_path, capsys):
    looking = ["watch.every=1", "watch.rows=2"]
    arguments = [f"data.path={dataset}", f"output={tmp_path / 'run'}", *SETTINGS, *looking, "steps=2", "lr=1e-9"]
    assert main(["train", *arguments]) == 0
    said = capsys.readouterr().err
    assert "control not acquired by step 2" in said
    assert "hardly anything was learned" in said
    assert "rows are held out: some that are looked at are trained on too" in said


def test_maps_of_your_own_are_painted_too(dataset, tmp_path):
    Image.fromarray(draw_photo(1, 80, 64)).save(tmp_path / "map.png")
    own = [f"samples.maps={tmp_path / 'map.png'}", "samples.prompts=[a, house]", "samples.every=1", "samples.count=1"]
    train(dataset, tmp_path / "bad", *own, "steps=1", "samples.steps=1", code=2)
    own[1] = 'samples.prompts=["a, house"]'
    train(dataset, tmp_path / "run", *own, "steps=1", "samples.steps=1")
    with Image.open(tmp_path / "run/samples/step-000001.png") as grid:
        assert grid.size == (3 * 64 + 2 * 2, 2 * 64 + 2)


def test_looking_costs_a_hundredth_of_the_steps():
    """Counted in forward passes: two of each row in each range, against two and a half for each row of a step."""
    for rows_a_step in (1, 4, 32, 256):
        every = WatchConfig().interval(rows_a_step)
        assert 2 * 8 * BINS <= 0.01 * 2.5 * rows_a_step * every < 2 * 8 * BINS + 0.03 * rows_a_step
    assert WatchConfig(every=7).interval(32) == 7


class Seen:
    """Looks that are known before."""

    def __init__(self, *looks):
        self.looks = {each["step"]: each for each in looks}

    def look(self, step, nets):
        return self.looks[step]


def test_the_event_is_written_once_said_and_put_into_the_card(tmp_path):
    gained = [look(step, control=0.3, read=0.2) for step in (4, 6, 8)]
    losses = {"held_out_loss": 0.2, "held_out_loss_silent": 0.3}
    watch = Seen(*({**each, **losses} for each in (look(2), *gained)))
    settings = config(output=tmp_path / "run", steps=8)
    run, said = Run(settings, (), resume=False), []
    run.append("metrics.jsonl", steps())
    for first, last in ((1, 4), (5, 8)):  # stopped in between, and gone on with
        telemetry = Telemetry(run, settings, watch, [], said.append, first=True)
        for step in range(first, last + 1):
            if step % 2 == 0:
                telemetry.look(step, {})
    events = [row for row in run.metrics() if "event" in row]
    assert events == [{"step": 6, "event": "control acquired", "since": 4}]
    assert said == ["control acquired at step 4: a row's own map beats another's by 20.0% of the held-out loss"]
    card = model_card(settings, find_base("random-sd15"), 24, run.metrics(), [])
    assert "**Yes: control was acquired at step 4.**" in card


def test_missing_control_is_diagnosed_at_the_step_that_was_set(tmp_path):
    settings = config(output=tmp_path / "run", steps=8, **{"watch.expect_by": 3})
    run, said = Run(settings, (), resume=False), []
    run.append("metrics.jsonl", steps())
    telemetry = Telemetry(run, settings, Seen(*map(look, (2, 4, 6, 8))), [], said.append, first=True)
    for step in (2, 4, 6, 8):
        telemetry.look(step, {})
    assert [row["step"] for row in run.metrics() if "event" in row] == [4, 8]
    assert said[0].startswith("control not acquired by step 4\n    no clear gain yet behind step 4")


# The measure


def test_the_map_gain_is_exactly_what_the_map_brings(dataset):
    """Nothing for a net whose hint encoder ends in zeros, whatever else it does; for one that reads the map it changes
    its sign when two rows change their maps."""
    base, device = find_base("random-sd21"), torch.device("cpu")
    parts = load_parts(base, dtype=torch.float32, device=device, locked=True)
    net = make_controlnet(parts["unet"], vae_factor=8, latent_channels=4, seed=0)
    torch.manual_seed(0)
    for block in [*net.controlnet_down_blocks, net.controlnet_mid_block]:
        torch.nn.init.normal_(block.weight, std=0.3)
    pipeline = control_pipeline(base, parts, [net], DDIMScheduler.from_config(base.scheduler))
    alone = make_accelerator("no")
    one, other = read_dataset(dataset, "canny")[:2]

    def seen(rows, **objective):
        models = Models.of(base, pipeline, net, device, ObjectiveConfig(**objective))
        data = ControlRows(rows, condition="canny", resolution=64, latent_shape=(4, 8, 8), timesteps=1000,
                           prompt_dropout=0.5, control_dropout=ControlDropout(1.0), seed=0)  # fmt: skip
        nets = {"controlnet": net}
        watch = Watch(models, nets, data, rows, batch_size=3, processes=Processes(), accelerator=alone)
        return watch.look(1, nets)

    unread = seen([one, other])
    assert unread["influence"] > 0.01
    assert unread["map_gain_share"]["mean"] == 0
    assert unread["control_gain"] != 0
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=10.0)
    read = seen([one, other])
    swapped = seen([replace(one, controls=other.controls), replace(other, controls=one.controls)])
    gained, lost = read["map_gain_share"], swapped["map_gain_share"]
    assert gained["high"] - gained["low"] > 1e-4
    assert [lost["low"], lost["high"]] == pytest.approx([-gained["high"], -gained["low"]], rel=1e-3)
    assert swapped["held_out_loss"] == pytest.approx(read["held_out_loss_other_map"], rel=1e-5)
    assert swapped["held_out_loss_silent"] == read["held_out_loss_silent"]
    absolute = seen([one, other], loss="l1")  # as the run measures; Jensen's inequality
    assert 0 < absolute["held_out_loss_silent"] ** 2 < read["held_out_loss_silent"]


# Facts of maps


def facts(maps, condition="canny"):
    return [MapFacts.of(condition, draw_photo(number, 64, 64), each) for number, each in enumerate(maps)]


def canny_maps(count=16):
    from annotators import ANNOTATORS

    return [ANNOTATORS.create("canny")(draw_photo(number, 64, 64)) for number in range(count)]


def test_good_maps_have_no_problem():
    assert map_problems(facts(canny_maps())) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda each: each * 0, "16 of 16 canny maps are all black"),
        (lambda each: each // 255, "out of range: their brightest pixel is 1 of 255"),
        (lambda each: each * 0 + 255, "are of one colour"),
        (lambda each: 255 - each, "are inverted, dark on white"),
        (lambda each: np.minimum(each, 200), r"hold other values than \[0, 255\]"),
    ],
)
def test_spoiled_maps_are_named(spoil, words):
    problems = map_problems(facts([spoil(each) for each in canny_maps()]))
    assert re.search(words, problems[0])


def test_one_map_for_all_is_named():
    assert "all 16 canny maps are the same" in map_problems(facts(canny_maps()[:1] * 16))[0]


def test_shuffled_maps_are_told_from_their_own():
    maps = canny_maps(16)
    assert belonging(facts(maps)).low > 0.1
    (problem,) = map_problems(facts(maps[1:] + maps[:1]))
    assert "do not belong to their pictures" in problem
    assert belonging(facts(maps[:4])) is None  # too few to tell


def test_pictures_that_are_all_alike_cannot_tell():
    photo = draw_photo(0, 64, 64)
    assert belonging([MapFacts.of("canny", photo, each) for each in canny_maps()]) is None


def test_spoiled_maps_are_said_before_the_first_step(dataset, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(dataset, folder)
    for path in (folder / "conditions/canny").iterdir():
        Image.new("RGB", (64, 64)).save(path)
    looking = ["watch.every=1", "watch.rows=2"]
    arguments = [f"data.path={folder}", f"output={tmp_path / 'run'}", *SETTINGS, "steps=1", *looking]
    assert main(["train", *arguments]) == 0
    said = capsys.readouterr().err
    black = re.search(r"look at the maps before you go on: (\d+) of \1 canny maps are all black", said)
    assert black.start() < said.index("train: 1/1")
    assert re.search(r"control not acquired by step 1\n    (\d+) of \1 canny maps are all black", said)


# The diagnosis


def config(**settings):
    return build(TrainConfig, None, [f"{key}={value}" for key, value in settings.items()])


def steps(norm=0.5):
    return [{"step": step, "loss": 0.3, "grad_norm": norm, "lr": 1e-5} for step in range(10)]


@pytest.mark.parametrize(
    ("last", "norm", "words"),
    [
        (look(500, zeros=0.0, influence=0.0), 0.0, "the zero convolutions are dead"),
        (look(500, control=-0.4), 0.5, "lr is too high: with the control the held-out loss is 40.0% worse"),
        (look(500, control=-0.01), 0.5, "no clear gain yet behind step 500: -1.0% of the loss"),
        (look(500, influence=0.001), 0.5, "hardly anything was learned: the control moves the prediction by 0.10%"),
        (look(500, influence=0.3), 50.0, "most of each step is clipped"),
        (look(500, control=0.3, read=0.0), 0.5, "either the maps do not belong to their pictures, or"),
        (
            look(500, control=0.3, read=0.2),
            0.5,
            "control has only just appeared: behind step 500 a row's own map beats another's by 20.0%",
        ),
        (look(500, control=0.0, read=0.0), 0.5, "no clear gain yet behind step 500"),
    ],
)
def test_what_the_figures_mean(last, norm, words):
    (reason,) = diagnose(config(), facts(canny_maps()), [last], steps(norm))
    assert words in reason


def test_bad_maps_come_first():
    maps = canny_maps()
    reasons = diagnose(config(), facts(maps[1:] + maps[:1]), [look(500, control=0.3)], steps())
    assert "do not belong" in reasons[0]
    assert "the maps are not read" in reasons[1]
    assert len(reasons) == 2


def test_wrong_settings_are_refused():
    with pytest.raises(RequestError) as reason:
        build(TrainConfig, None, ["watch.every=-1", "watch.rows=1", "watch.expect_by=0", "max_minutes=-1"])
    assert len(str(reason.value).splitlines()) == 4
    with pytest.raises(RequestError, match="report_to=wandbb: expected auto or none or tensorboard or wandb or all"):
        build(TrainConfig, None, ["report_to=wandbb"])
    assert ACQUIRED_SHARE > 0
