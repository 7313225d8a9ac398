"""The drawn worlds: the same bytes everywhere, and pictures that agree with what is known of them."""

import json

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image

from controlkit.cli.main import main
from controlkit.toybox.scene import COLOURS
from controlkit.toybox.worlds import WORLDS, find_world


def make(out, *arguments, code=0):
    assert main(["toybox", "make", str(out), "--world", "circles", "--count", "70", *arguments, "--quiet"]) == code


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("world", list(WORLDS))
def test_a_scene_is_a_function_of_seed_and_index(world):
    draw = find_world(world)
    scenes = [draw(*key, 32) for key in [(0, 5), (0, 5), (0, 6), (1, 5)]]
    assert np.array_equal(scenes[0].image, scenes[1].image)
    assert scenes[0].facts == scenes[1].facts
    assert all(not np.array_equal(scenes[0].image, other.image) for other in scenes[2:])


@pytest.mark.parametrize("world", list(WORLDS))
def test_a_scene_is_the_same_at_every_size(world):
    large, small = (find_world(world)(3, 4, size).image for size in (256, 64))
    reduced = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - small).max() <= 24  # along the edge; elsewhere equal
    assert (np.abs(reduced.astype(int) - small).max(axis=2) <= 1).mean() > 0.9


def test_circles_agree_with_their_captions():
    for index in range(30):
        scene = find_world("circles")(0, index, 64)
        facts = scene.facts
        assert scene.caption == f"a {facts['disc']} circle on a {facts['ground']} ground"
        x, y = int(facts["x"] * 64), int(facts["y"] * 64)
        assert tuple(scene.image[y, x]) == COLOURS[facts["disc"]]
        assert tuple(scene.image[0, 0]) == COLOURS[facts["ground"]]


def test_the_area_of_a_disc_is_that_of_its_radius():
    """Coverage is exact to about a hundredth of the area."""
    for index in range(10):
        scene = find_world("circles")(2, index, 128)
        disc, ground = (np.array(COLOURS[scene.facts[name]], float) for name in ("disc", "ground"))
        share = ((scene.image - ground) @ (disc - ground) / ((disc - ground) @ (disc - ground))).mean()
        assert share == pytest.approx(np.pi * scene.facts["radius"] ** 2, rel=0.01)


def test_colours_can_be_told_apart():
    values = np.array(list(COLOURS.values()), float)
    distances = np.linalg.norm(values[:, None] - values[None], axis=2) + np.eye(len(values)) * 1e9
    assert distances.min() > 60


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "two", "--workers", "2")
    make(tmp_path / "other", "--seed", "1")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert tree(tmp_path / "one") != tree(tmp_path / "other")


def test_it_is_a_dataset_ready_for_training(tmp_path):
    make(tmp_path)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path), cache_dir=str(tmp_path / ".hf"))["train"]
    assert set(loaded.column_names) == {"image", "text", "canny", "scene"}
    row = loaded[3]
    assert np.array_equal(np.asarray(row["canny"]), cv2.Canny(np.asarray(row["image"]), 100, 200))
    assert json.loads(row["scene"])["disc"] in row["text"]


def test_more_scenes_are_added_and_what_is_there_is_kept(tmp_path):
    make(tmp_path / "grown", "--count", "3")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown").glob("*.png")}
    make(tmp_path / "grown")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    make(tmp_path / "whole")
    assert tree(tmp_path / "grown") == tree(tmp_path / "whole")


def test_another_folder_is_not_written_into(tmp_path, capsys):
    make(tmp_path / "d")
    make(tmp_path / "d", "--seed", "1", code=2)
    assert "choose another folder" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    before = tree(tmp_path)
    make(tmp_path, code=2)
    assert "is not empty and holds no drawn world" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_an_unknown_world_is_answered_with_the_nearest(tmp_path, capsys):
    make(tmp_path / "d", "--world", "circels", code=2)
    assert "unknown world 'circels': did you mean 'circles'?" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
