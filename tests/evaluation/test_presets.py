"""Published protocols: all that a preset fixes is what happens, and is stated; what contradicts it is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UniPCMultistepScheduler

from annotators import ANNOTATORS
from controlkit.cli.main import main
from controlkit.data.pictures import read_picture
from controlkit.data.rows import read_dataset
from controlkit.errors import RequestError
from controlkit.evaluation.easel import _digest
from controlkit.evaluation.presets import PRESETS, find_preset
from controlkit.generation.settings import read_settings
from controlkit.models.bases import find_base
from tests.painting import strong_net

NAME = "controlnet-plus-plus"
SMALL = {"size": 64, "steps": 1, "per_row": 2}


@pytest.fixture
def small(monkeypatch):
    """The protocol, but for what makes it long."""
    preset = find_preset(NAME)
    monkeypatch.setitem(PRESETS, NAME, replace(preset, settings=preset.settings | SMALL))


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return strong_net("random-sd15", tmp_path_factory.mktemp("judged") / "net")


def evaluate(net, dataset, out, *more, code=0):
    given = ["--base", "random-sd15", "--controlnet", net, "--data", dataset, "--out", out, "--preset", NAME, *more]
    assert main(["evaluate", *map(str, given), "--num", "2", "-q"]) == code


def test_what_is_fixed_is_what_happens(small, net, dataset, tmp_path):
    evaluate(net, dataset, tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    scores = json.loads((tmp_path / "scores.json").read_text())
    stated = scores.pop("stated")["preset"]
    assert scores == report["scores"]
    assert stated.items() >= (find_preset(NAME).settings | SMALL).items()
    page = (tmp_path / "index.html").read_text()
    assert all(word in page for word in ("worst quality, low quality", "arXiv:2404.07987", "2 pictures a row"))

    canny = ANNOTATORS.create("canny", "kornia", low=0.1, high=0.2)
    row, case = read_dataset(dataset, "canny")[1], report["cases"][1]
    assert report["metric"] == "canny_f1_exact"
    assert report["judge"]["backend"] == "kornia"
    made = [tmp_path / case["files"][name] for name in ("control", "control 2")]
    wanted = canny(read_picture(row.picture))  # 64 pixels a side already
    for path, seed in zip(made, (2, 3), strict=True):
        settings = read_settings(path)
        assert settings["map"] == _digest(wanted)
        assert settings["seed"] == seed
        assert {settings[name] for name in ("sampler", "negative")} == {"unipc", "worst quality, low quality"}
        assert (settings["cfg"], settings["size"], settings["weight"]) == (7.5, 64, 1.0)
    # As the paper's script sets the pipeline up; the last picture without control.
    base = find_base("random-sd15")
    pipeline = StableDiffusionPipeline.from_pretrained(base.folder, safety_checker=None)
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        row.caption, negative_prompt="worst quality, low quality", num_inference_steps=1, guidance_scale=7.5,
        generator=torch.Generator().manual_seed(3), width=64, height=64, output_type="np",
    ).images[0]  # fmt: skip
    without = read_picture(tmp_path / case["files"]["no_control 2"])
    assert (without == (expected * 255).round().astype(np.uint8)).all()
    # BinaryF1 over the flattened maps of a prompt, as if they were one.
    found = np.concatenate([canny(read_picture(path))[:, :, 0].ravel() > 0 for path in made])
    true = np.concatenate([wanted[:, :, 0].ravel() > 0] * 2)
    f1 = 2 * (found & true).sum() / (found.sum() + true.sum())
    assert 0 < f1 < 1
    assert case["scores"]["canny_f1_exact"]["control"] == pytest.approx(f1, abs=1e-6)
    assert scores["canny_f1_exact"]["control"]["n"] == 2


def test_what_contradicts_it_is_one_line(net, dataset, tmp_path, capsys):
    for more, words in [
        (["--steps", "3"], f"--preset {NAME} fixes how the pictures are painted; leave out --steps"),
        (["--sweep", "cfg=1,2"], "leave out --sweep"),
        (["--preset", "controlnet-plus"], f"did you mean '{NAME}'?"),
    ]:
        evaluate(net, dataset, tmp_path / "out", *more, code=2)
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    evaluate(f"mlsd={net}", dataset, tmp_path / "out", code=2)
    assert "no figure of mlsd can be given: known: canny, depth, lineart, softedge" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_depth_is_read_by_the_network_of_the_protocol(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(RequestError, match=rf"--preset {NAME}: .*Intel/dpt-large"):
        find_preset(NAME).judge("depth", [])


def test_a_size_that_cannot_be_painted_is_one_line(net, dataset, tmp_path, capsys):
    given = ["--base", "random-sd15", "--controlnet", net, "--data", dataset, "--out", tmp_path / "out"]
    for more, words in [(["--size", "60"], "expected a multiple of 8"), (["--per-row", "0"], "at least 1 picture")]:
        assert main(["evaluate", *map(str, [*given, *more])]) == 2
        assert words in capsys.readouterr().err
