"""`controlkit demo`: every stage is a command, which is said, and the folder holds what they made."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from controlkit.cli.main import COMMANDS, main
from controlkit.data.pictures import read_picture
from controlkit.data.rows import held_out
from controlkit.generation.settings import read_settings
from controlkit.toybox import demo
from controlkit.toybox.make import encode_scene
from controlkit.toybox.worlds import draw
from tests.painting import strong_net

TINY = ["--quick", "--scenes", "30", "--rows", "2", "--steps", "5"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A tiny quick demonstration under a net of random weights, and what it said."""
    out = tmp_path_factory.mktemp("shown") / "demo"
    net = strong_net("toybox", tmp_path_factory.mktemp("net") / "net")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SHIPPED_NET", str(net))
        yield out, lambda *more: main(["demo", "--out", str(out), *TINY, *more])


def test_it_says_the_commands_that_it_runs(shown, capsys):
    out, run = shown
    assert run("--json") == 0
    said = capsys.readouterr()
    answer = json.loads(said.out)  # and nothing else is there
    typed = re.findall(r"^\$ (controlkit .*)$", said.err, re.M)
    assert typed == answer["commands"]
    words = [shlex.split(command)[1] for command in typed]
    assert words == ["toybox", "annotate", "generate", "generate", "generate", "evaluate"]
    assert set(words) <= set(COMMANDS)
    assert 0 <= answer["scores"]["canny_f1_1px"]["real"]["mean"] <= 1
    assert (out / "demo.png").stat().st_size > 1000


def test_the_pictures_are_what_the_commands_paint(shown):
    """Before is the base alone, after is under the map, and inpainting changes what is masked alone."""
    out, _ = shown
    before, after, inpainted = (read_settings(path) for path in demo.painted(out))
    assert (before["controls"], before["prompt"]) == ([], after["prompt"])
    assert "conditions/canny" in after["controls"][0]["file"]
    assert (inpainted["prompt"], inpainted["image"]["file"]) != (after["prompt"], after["image"])
    mask = read_picture(out / "mask.png").max(axis=2) > 0
    first, second = (read_picture(path) for path in demo.painted(out)[1:])
    changed = (first != second).any(axis=2)
    assert changed[mask].any()
    assert not changed[cv2.dilate(mask.astype(np.uint8), np.ones((17, 17))) == 0].any()  # beyond a feather of 8 pixels
    assert 0.02 < mask.mean() < 0.5


def test_the_page_stands_alone(shown):
    out, _ = shown
    page = (out / "index.html").read_text()
    found = re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)([^\"]*)", page)
    assert found == ["report/index.html"]
    assert (out / found[0]).exists()
    assert "http" not in page


def test_begun_again_it_goes_on(shown, capsys):
    out, run = shown
    drawn = sorted((out / "data").rglob("*.png")) + sorted((out / "report" / "pictures").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in drawn}
    before = read_picture(out / "demo.png")
    assert run("-q") == 0
    assert {path: path.stat().st_mtime_ns for path in drawn} == stamps
    assert (read_picture(out / "demo.png") == before).all()
    assert capsys.readouterr().err == ""


def test_a_folder_of_somebody_else_is_left_alone(shown, tmp_path, capsys):
    _, run = shown
    (tmp_path / "letter.txt").write_text("dear")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == (
        f"error: --out {tmp_path} is not empty and holds no demo; choose another folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    assert run("--rows", "3") == 2
    assert "holds another demo" in capsys.readouterr().err
    refused = {
        "--rows": ("1", "--rows 1: expected at least 2"),
        "--steps": ("4", "at least 5"),
        "--scenes": ("3", f"at least {demo.TRAINED.index + 1}"),
    }
    for option, (value, words) in refused.items():
        assert main(["demo", "--out", str(tmp_path / "new"), option, value]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_stage_that_fails_ends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SHIPPED_NET", str(tmp_path / "nowhere"))
    assert main(["demo", "--out", str(tmp_path / "demo"), *TINY]) == 2
    assert "stopped at: controlkit generate --prompt" in capsys.readouterr().err
    assert not (tmp_path / "demo" / "index.html").exists()


def test_the_example_was_not_trained_on():
    """Its content, which decides what is held out, is that of the picture's file."""
    example = demo.TRAINED
    drawn = draw(demo.WORLD, example.seed, example.index, 64)
    assert held_out(hashlib.sha256(encode_scene(drawn.image)).hexdigest(), demo.HELD_OUT)
    for each in (demo.TRAINED, demo.SHIPPED):
        assert each.other_prompt != each.prompt


@pytest.mark.slow
def test_the_whole_demonstration_ends_with_a_net_that_obeys(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--json", "-q"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["obedience"]["low"] > 0.3
    events = [json.loads(line).get("event") for line in Path(out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "control acquired" in events
    before, after, _ = (read_picture(path).astype(int) for path in demo.painted(out))
    assert np.abs(before - after).max() > 50
