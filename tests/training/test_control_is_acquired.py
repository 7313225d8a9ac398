"""The config that serves unasked: control sets in, is announced when it does, and never where there is none."""

import json
import random
import shutil

import pytest

from controlkit.cli.main import main
from controlkit.cli.train import FIRST_CONFIG
from controlkit.data.folder import read_rows, write_rows
from tests.training.test_train import metrics

pytestmark = pytest.mark.slow

# Of the config's own steps those in which control has set in; its cosine is cut short alike.
SHORT = ["steps=300", "samples.every=300", "samples.count=4", "checkpoint_every=300"]
SCENES = 1500


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "rooms"
    assert (
        main(["toybox", "make", str(folder), "--world", "rooms", "--count", str(SCENES), "--workers", "2", "-q"]) == 0
    )
    return folder


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unseen") / "rooms"
    make = ["toybox", "make", str(folder), "--world", "rooms", "--count", "32", "--seed", "7", "-q"]
    assert main(make) == 0
    return folder


def trained(scenes, run, *settings):
    """The lines of a run of the first config."""
    assert (
        main(["train", "--config", FIRST_CONFIG, f"data.path={scenes}", f"output={run}", *SHORT, *settings, "-q"]) == 0
    )
    return [json.loads(line) for line in metrics(run).splitlines()]


def scores(run, data, out):
    ask = ["evaluate", "--controlnet", str(run / "controlnet"), "--data", str(data), "--num", "32", "--steps", "10"]
    assert main([*ask, "--out", str(out), "-q"]) == 0
    return json.loads((out / "scores.json").read_text())["canny_f1_1px"]


@pytest.mark.parametrize("seed", range(5))
def test_the_event_is_right(scenes, unseen, tmp_path, seed):
    """Said before the end, and pictures of scenes that no training saw follow their maps clearly better than those that
    the same prompts give without."""
    lines = trained(scenes, tmp_path / "run", f"seed={seed}")
    assert [line["event"] for line in lines if "event" in line] == ["control acquired"]
    followed = scores(tmp_path / "run", unseen, tmp_path / "report")
    assert followed["control"]["low"] > followed["no_control"]["high"] + 0.1


def test_maps_of_other_pictures_are_never_announced_but_diagnosed(scenes, unseen, tmp_path):
    """The same training on the same maps, each under another picture."""
    shuffled = tmp_path / "shuffled"
    shutil.copytree(scenes, shuffled)
    rows = read_rows(shuffled)
    maps = [row["canny_file_name"] for row in rows]
    random.Random(0).shuffle(maps)
    write_rows(shuffled, [{**row, "canny_file_name": name} for row, name in zip(rows, maps, strict=True)])
    lines = trained(shuffled, tmp_path / "run")
    (event,) = [line for line in lines if "event" in line]
    assert event["event"] == "control not acquired"
    assert "their pictures" in " ".join(event["diagnosis"])
    followed = scores(tmp_path / "run", unseen, tmp_path / "report")
    assert followed["control"]["low"] < followed["no_control"]["high"] + 0.1
