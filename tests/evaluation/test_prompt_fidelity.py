"""Rows that say what they hold: whether the pictures painted for them hold it, as `controlkit base eval` reads it."""

import json

import pytest

from controlkit.cli.main import main
from controlkit.data.pictures import read_picture
from controlkit.evaluation.frechet import frechet_distance
from controlkit.toybox.classifier import Contents
from controlkit.toybox.lessons import load_network
from controlkit.toybox.measure import fidelity, judge
from controlkit.toybox.worlds import find_world
from tests.painting import strong_net

COUNT = 4


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rooms = ["--world", "rooms", "--count", str(COUNT), "--type", "canny", "-q"]
    assert main(["toybox", "make", str(folder / "rooms"), *rooms]) == 0
    net = strong_net("toybox", folder / "net")
    asked = ["--controlnet", str(net), "--data", str(folder / "rooms"), "--steps", "3", "-q"]
    assert main(["evaluate", *asked, "--out", str(folder / "report")]) == 0
    return folder


def by_hand(pictures, shift=0):
    plans = [find_world("rooms").plan(0, (number + shift) % COUNT) for number in range(COUNT)]
    asked = [Contents.of(plan.facts) for plan in plans]
    seen = judge(load_network("scenes", None), pictures)
    return fidelity([plan.caption for plan in plans], asked, seen)["prompt_fidelity"].mean


def test_prompt_fidelity_is_that_of_base_eval(report):
    scores = json.loads((report / "report" / "scores.json").read_text())["prompt_fidelity"]
    cases = json.loads((report / "report" / "report.json").read_text())["cases"]
    painted = {
        row: [read_picture(report / "report" / case["files"][row]) for case in cases]
        for row in ("control", "no_control")
    }
    real = [read_picture(report / "rooms" / f"{number:06d}.png") for number in range(COUNT)]
    assert scores["real"]["mean"] == by_hand(real) > 0.5
    assert scores["control"]["mean"] == by_hand(painted["control"])
    assert scores["no_control"]["mean"] == by_hand(painted["no_control"])
    assert scores["chance"]["mean"] == by_hand(painted["control"], shift=1)


def test_the_frechet_distance_on_the_classifiers_features(report):
    """Between what was painted and the real pictures of the same rows."""
    scores = json.loads((report / "report" / "scores.json").read_text())
    cases = json.loads((report / "report" / "report.json").read_text())["cases"]
    network = load_network("scenes", None)
    real, made = (
        judge(network, [read_picture(path) for path in paths]).moments
        for paths in (
            [report / "rooms" / f"{number:06d}.png" for number in range(COUNT)],
            [report / "report" / case["files"]["control"] for case in cases],
        )
    )
    rows = scores["frechet_scenes"]
    assert set(rows) == {"control", "no_control", "vae"}
    assert rows["control"]["mean"] == pytest.approx(frechet_distance(made, real), rel=1e-3)
    assert rows["control"]["n"] == COUNT
    assert rows["vae"]["mean"] < rows["control"]["mean"]
    assert not (report / "report" / ".features").exists()
    page = (report / "report" / "index.html").read_text()
    assert f"frechet_scenes over {COUNT} pictures, fewer than 500" in page
    assert "stated" not in scores


def test_what_says_nothing_is_not_scored_for_it(report, tmp_path):
    rooms = report / "rooms"
    rows = [json.loads(line) for line in (rooms / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        del row["scene"]
    plain = tmp_path / "plain"
    plain.mkdir()
    for entry in rooms.iterdir():
        if entry.name != "metadata.jsonl":
            (plain / entry.name).symlink_to(entry)
    (plain / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["--controlnet", str(report / "net"), "--data", str(plain), "--num", "2", "--steps", "1", "-q"]
    assert main(["evaluate", *asked, "--out", str(tmp_path / "report")]) == 0
    scores = json.loads((tmp_path / "report" / "scores.json").read_text())
    assert not {"prompt_fidelity", "frechet_scenes"} & set(scores)
