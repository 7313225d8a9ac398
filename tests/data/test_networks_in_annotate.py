"""`controlkit annotate` with a depth network of the true architecture, small and random, beside canny."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from annotators import ANNOTATORS
from controlkit.cli.main import main
from controlkit.data.ledger import read_entry
from tests.annotators.random_weights import WRITERS
from tests.conftest import draw_photo
from tests.forked import run_two


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("depth")
    WRITERS["depth", "depth-anything"](folder)
    return folder


def arguments(folder, weights, *more):
    chosen = ["--weights", f"depth={weights}", "--set", "depth.resolution=28", "--device", "cpu", "--offline"]
    return ["annotate", "--type", "canny,depth", str(folder), "--batch-size", "4", *chosen, "--quiet", *more]


def depth(weights):
    return ANNOTATORS.create("depth", weights=str(weights), device="cpu", resolution=28)


def draw(folder, count):
    folder.mkdir()
    for number in range(count):
        Image.fromarray(draw_photo(number, 48 + 8 * (number % 3 == 0), 40)).save(folder / f"{number:03d}.png")
    return folder


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """Ten pictures of two sizes, annotated in one go. Shared: read it, do not write into it."""
    folder = draw(tmp_path_factory.mktemp("whole") / "d", 10)
    assert main(arguments(folder, weights)) == 0
    return folder


def test_the_maps_are_those_of_the_annotators(whole, weights):
    names = [f"{number:03d}.png" for number in range(10)]
    for start in (0, 4, 8):
        together = names[start : start + 4]
        images = [np.asarray(Image.open(whole / name)) for name in together]
        for name, image, expected in zip(together, images, depth(weights).batch(images), strict=True):
            assert np.array_equal(np.asarray(Image.open(whole / f"conditions/depth/{name}.png")), expected)
            assert np.array_equal(
                np.asarray(Image.open(whole / f"conditions/canny/{name}.png")), cv2.Canny(image, 100, 200)
            )
            assert expected.std() > 10


def test_the_ledger_says_what_decides_the_map_and_not_where_it_was_made(whole, weights):
    entry = read_entry(whole / "conditions/depth/000.png.png")
    assert entry.backend == "depth-anything"
    assert entry.parameters["resolution"] == 28
    assert not {"device", "weights", "offline"} & entry.parameters.keys()
    assert entry.versions["weights"] == depth(weights).libraries()["weights"]


def test_other_weights_make_the_maps_anew(whole, weights, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "d")
    shutil.copytree(weights, tmp_path / "copied")
    assert main(arguments(tmp_path / "d", tmp_path / "copied", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 0  # the same weights elsewhere
    torch.manual_seed(1)
    WRITERS["depth", "depth-anything"](tmp_path / "other")
    assert main(arguments(tmp_path / "d", tmp_path / "other", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 10
    assert tree(tmp_path / "d").keys() == tree(whole).keys()


@pytest.mark.parametrize("workers", ["1", "4"])
def test_workers_change_nothing(whole, weights, tmp_path, workers):
    assert main(arguments(draw(tmp_path / "d", 10), weights, "--workers", workers)) == 0
    assert tree(tmp_path / "d") == tree(whole)


def test_two_processes_share_whole_slices_and_end_with_the_same_bytes(whole, weights, tmp_path):
    folder = draw(tmp_path / "d", 10)
    command = [each for each in arguments(folder, weights, "--json") if each != "--quiet"]
    done = run_two(*command)
    assert done.returncode == 0, done.stderr
    assert "annotate: 4/4 pictures" in done.stderr  # the first of two has one of three slices
    assert json.loads(done.stdout.splitlines()[-1])["made"] == 20
    assert tree(folder) == tree(whole)


@pytest.mark.parametrize("missing", ["folder", "hub"])
def test_missing_weights_are_refused_before_the_first_picture(tmp_path, capsys, missing):
    folder = draw(tmp_path / "d", 3)
    before = tree(folder)
    named = ["--weights", f"depth={tmp_path}"] if missing == "folder" else []
    assert main(["annotate", "--type", "canny,depth", str(folder), "--offline", *named]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "model.safetensors" in said
    assert "Apache-2.0" in said
    assert tree(folder) == before


def test_weights_that_cannot_be_loaded_stop_the_run(weights, tmp_path, capsys):
    """Once, and not as an error of each picture."""
    folder = draw(tmp_path / "d", 3)
    shutil.copytree(weights, tmp_path / "w")
    (tmp_path / "w" / "model.safetensors").write_bytes(b"nothing")
    assert main(arguments(folder, tmp_path / "w")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (folder / "errors.jsonl").exists()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (["--type", "canny", "--backend", "depth=midas"], "'depth' is not among the types to be made: canny"),
        (["--type", "depth", "--backend", "depth=mida"], "has no backend 'mida': did you mean 'midas'?"),
        (["--type", "depth", "--backend", "midas"], "--backend 'midas': expected TYPE=BACKEND"),
        (["--type", "depth", "--backend", "depth=midas", "--backend", "depth=zoe"], "depth=midas was said already"),
        (["--type", "canny", "--weights", "canny=x"], "canny has no weights"),
        (["--type", "canny", "--weights", "x"], "expected TYPE=PATH_OR_ID"),
        (["--type", "canny", "--device", "cuda"], "--device cuda: none of canny runs a network"),
        (["--type", "canny", "--batch-size", "4"], "none of canny computes pictures together"),
        (["--type", "canny", "--from-json", "x"], "'pose' is not among the types to be made"),
        (["--type", "pose", "--from-json", "/no/such/folder"], "/no/such/folder"),
        (["--type", "pose", "--from-json", ".", "--backend", "pose=dwpose"], "'pose' is not among the types"),
        (["--type", "depth", "--depth16", "--set", "depth.resolution=x"], "depth.resolution='x': expected int"),
    ],
)
def test_wrong_choices_are_refused_in_one_line(pictures, capsys, chosen, words):
    before = tree(pictures)
    assert main(["annotate", str(pictures), *chosen]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert tree(pictures) == before


def test_depth_with_16_bits_by_a_true_network(weights, tmp_path):
    folder = draw(tmp_path / "d", 4)
    assert main(arguments(folder, weights, "--depth16")) == 0
    depths = depth(weights).depths([np.asarray(Image.open(folder / f"{number:03d}.png")) for number in range(4)])
    for number, expected in enumerate(depths):
        made = np.asarray(Image.open(folder / f"conditions/depth16/{number:03d}.png.png"))
        share = (expected - expected.min()) / np.ptp(expected)
        assert np.abs(made - share * 65535).max() <= 2  # rounding of float32
