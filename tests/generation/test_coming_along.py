"""Where neither ControlNet nor guidance is named: those that come along with the base."""

import json

import numpy as np
import pytest
from PIL import Image

from controlkit.cli.main import main
from controlkit.data.ledger import Entry, encode_map
from controlkit.generation.many import models_of
from controlkit.generation.options import request_of
from controlkit.generation.settings import read_settings
from controlkit.models import locate
from controlkit.models.bases import usual_cfg
from controlkit.models.locate import EMBEDDED_WEIGHTS, NOTES
from tests.conftest import draw_photo
from tests.painting import edges_of, pixels, strong_net

SMALL = ["--steps", "2", "--seed", "1", "--prompt", "x"]


@pytest.fixture
def along(tmp_path, monkeypatch):
    """A package that carries ControlNets for canny and depth, trained on `toybox`."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "toybox").symlink_to(EMBEDDED_WEIGHTS / "toybox")
    for number, type in enumerate(("canny", "depth")):
        strong_net("toybox", weights / f"toybox-{type}", seed=number, condition=type)
        (weights / f"toybox-{type}" / NOTES).write_text(json.dumps({"condition": type, "base": "toybox"}))
    monkeypatch.setattr(locate, "EMBEDDED_WEIGHTS", weights)
    return weights


@pytest.fixture
def maps(tmp_path):
    """By type, as `annotate` writes them."""
    found = {}
    for type in ("canny", "depth", "pose"):
        image = edges_of(draw_photo(0, 64, 64)) if type == "canny" else draw_photo(1, 64, 64)
        found[type] = tmp_path / f"{type}.png"
        found[type].write_bytes(encode_map(image, Entry(type, "0" * 64, parameters={}, versions={}), None))
    return found


def generate(*arguments, code=0):
    assert main(["generate", *map(str, arguments)]) == code


def test_the_type_of_a_map_chooses_the_controlnet(along, maps, tmp_path, capsys):
    for type in ("canny", "depth"):
        generate("--control", maps[type], *SMALL, "--out", tmp_path / f"{type}-made.png")
        assert f"controlnet: toybox-{type}, which comes along; yours: --controlnet" in capsys.readouterr().err
        generate("--control", maps[type], "--controlnet", along / f"toybox-{type}", *SMALL, "--out", tmp_path / "n.png")
        assert (pixels(tmp_path / f"{type}-made.png") == pixels(tmp_path / "n.png")).all()
    generate("--replay", tmp_path / "depth-made.png", "--out", tmp_path / "again.png")
    assert (pixels(tmp_path / "depth-made.png") == pixels(tmp_path / "again.png")).all()


def test_requests_that_differ_in_the_type_of_their_map_do_not_share_networks(along, maps, tmp_path):
    asked = [request_of({"control": [str(maps[type])]}) for type in ("canny", "depth", "canny")]
    keys = [models_of(request) for request in asked]
    assert keys[0] == keys[2] != keys[1]


def test_what_does_not_come_along_is_asked_for(along, maps, tmp_path, capsys):
    unknown = tmp_path / "unknown.png"
    Image.fromarray(draw_photo(2, 64, 64)).save(unknown)
    for path, base, words in [
        (maps["pose"], "toybox", "no ControlNet for pose maps comes along with base 'toybox'; name one: --controlnet"),
        (maps["canny"], "random-sd15", "no ControlNet for canny maps comes along with base 'random-sd15'; name one"),
        (unknown, "toybox", f"the file does not say its type; say it: --control canny={unknown}"),
    ]:
        generate("--control", path, "--base", base, *SMALL, "--out", tmp_path / "o.png", code=2)
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not (tmp_path / "o.png").exists()


def test_a_base_says_its_usual_guidance(tmp_path):
    (tmp_path / NOTES).write_text('{"cfg": 2.5}')
    assert usual_cfg(str(tmp_path)) == 2.5
    assert usual_cfg("random-sd15") == usual_cfg("somebody/something") == 7.5
    assert request_of({"prompt": "x", "base": str(tmp_path)}).cfg == 2.5
    assert request_of({"prompt": "x", "base": str(tmp_path), "cfg": 4}).cfg == 4


def test_the_base_that_comes_along_is_painted_with_its_own(tmp_path):
    generate(*SMALL, "--out", tmp_path / "o.png")
    assert read_settings(tmp_path / "o.png")["cfg"] == usual_cfg("toybox") != 7.5


@pytest.mark.parametrize(("way", "painter"), [("model", "base"), ("controlnet", "inpaint_controlnet")])
def test_what_paints_holes_comes_along(tmp_path, way, painter):
    picture, mask = draw_photo(3, 64, 64), np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    for name, pixels_of in (("picture", picture), ("mask", mask)):
        Image.fromarray(pixels_of).save(tmp_path / f"{name}.png")
    holes = ["--image", tmp_path / "picture.png", "--mask", tmp_path / "mask.png", "--feather", 0]
    generate(*holes, "--inpaint", way, *SMALL, "--out", tmp_path / "o.png")
    assert read_settings(tmp_path / "o.png")[painter]["name"] == {"model": "toybox-9ch"}.get(way, "toybox-inpaint")
    changed = (pixels(tmp_path / "o.png") != picture).any(axis=2)
    assert changed[mask > 0].mean() > 0.9
    assert not changed[mask == 0].any()
