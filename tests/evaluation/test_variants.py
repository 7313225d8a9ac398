"""Several questions in one report: each is answered as if it were asked alone, and nothing is painted twice."""

import json
import re

import numpy as np
import pytest

from controlkit.cli.main import main
from controlkit.data.pictures import read_picture
from controlkit.evaluation.evaluate import Answer, Question
from controlkit.evaluation.scores import Score
from controlkit.evaluation.variants import render_overview, variants_of
from controlkit.generation.settings import read_settings
from controlkit.generation.sweeps import Sweep
from tests.painting import strong_net


def evaluate(dataset, out, *more, code=0):
    common = ["--base", "random-sd15", "--data", dataset, "--num", 2, "--steps", 1, "--cfg", 1, "--sampler", "ddim"]
    assert main(["evaluate", *map(str, [*common, "--out", out, "-q", *more])]) == code


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    return [strong_net("random-sd15", folder / name, seed) for seed, name in enumerate(("one", "other"))]


def test_nets_and_values_beside_each_other(nets, dataset, tmp_path):
    """Two nets at two weights: four reports, each the scores of the question asked alone."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    given = [word for net in nets for word in ("--controlnet", net)]
    evaluate(dataset, together, *given, "--sweep", "weight=0.5,1")
    folders = sorted(path.name for path in together.iterdir() if path.is_dir() and path.name != "pictures")
    assert len(folders) == 4
    assert all((together / folder / "index.html").exists() for folder in folders)
    evaluate(dataset, alone, "--controlnet", nets[1], "--weight", "0.5")
    ours = json.loads((together / folders[2] / "scores.json").read_text())
    assert ours == json.loads((alone / "scores.json").read_text())
    pictures = [path.name for path in (together / "pictures").iterdir()]
    assert sum(".control." in name for name in pictures) == 4 * 2
    assert sum(".no_control." in name for name in pictures) == 2  # shared by all four
    scores = json.loads((together / "scores.json").read_text())["canny_f1_1px"]
    assert list(scores) == [f"{net} · weight {weight}" for net in nets for weight in ("0.5", "1")]
    assert scores[f"{nets[1]} · weight 0.5"] == ours["canny_f1_1px"]["control"]
    page = (together / "index.html").read_text()
    assert "http" not in page
    links = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert links == [f"{folder}/index.html" for folder in folders]


def test_what_standing_answers_cost(nets, dataset, tmp_path):
    """Three steps, asked in each and once: other pictures under control, the same without."""
    evaluate(dataset, tmp_path, "--controlnet", nets[0], "--steps", 3, "--sweep", "control-every=1,3")
    by_settings = {}
    for path in (tmp_path / "pictures").glob("*.control.*"):
        settings = read_settings(path)
        by_settings.setdefault(settings.get("control_every", 1), {})[settings["seed"]] = read_picture(path)
    assert by_settings.keys() == {1, 3}
    assert all(not np.array_equal(by_settings[1][seed], by_settings[3][seed]) for seed in by_settings[1])
    assert len(list((tmp_path / "pictures").glob("*.no_control.*"))) == 2


def answer(question, mean):
    score = Score(mean, mean - 0.1, mean + 0.1, 9)
    rows = {"control": score, "no_control": Score(0.1, 0.0, 0.2, 9)}
    return Answer(question, "canny_f1_1px", False, {}, {}, {"canny_f1_1px": rows}, None, [])


def test_the_curve_has_a_point_for_each_value():
    """From left to right by value, and higher where the score is."""
    sweep = Sweep.parse("cfg=1,4,8")
    variants = variants_of([Question(controlnet="net", data="d")], sweep)
    assert [variant.question.cfg for variant in variants] == [1, 4, 8]
    assert [variant.label for variant in variants] == ["cfg 1", "cfg 4", "cfg 8"]
    answered = [(each, answer(each.question, mean)) for each, mean in zip(variants, (0.2, 0.8, 0.5), strict=True)]
    page = render_overview(answered, sweep)
    line, without = re.findall(r'<polyline points="([^"]*)"', page)
    places = [tuple(map(float, place.split(","))) for place in line.split()]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    heights = [-y for _, y in places]
    assert heights[1] > heights[2] > heights[0]
    assert (heights[1] - heights[2]) / (heights[1] - heights[0]) == pytest.approx(0.5, abs=0.01)
    assert len({place.split(",")[1] for place in without.split()}) == 1
    words = render_overview([(variants[0], answer(variants[0].question, 0.5))], Sweep.parse("sampler=ddim,euler"))
    assert "<svg" not in words


def test_what_cannot_be_swept_is_one_line(nets, dataset, tmp_path, capsys):
    evaluate(dataset, tmp_path / "out", "--controlnet", nets[0], "--sweep", "seed=1:2:1", code=2)
    assert "an evaluation sweeps" in capsys.readouterr().err
    evaluate(dataset, tmp_path / "out", "--controlnet", nets[0], "--controlnet", tmp_path / "nowhere", code=2)
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out" / "pictures").exists()
