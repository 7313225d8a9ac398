"""`controlkit toybox make`: the same bytes however they are drawn, ready for training, and nothing of yours touched."""

import json

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image

from annotators import ANNOTATORS
from controlkit.cli.main import main
from controlkit.data.annotate import Job, annotate
from controlkit.errors import RequestError
from controlkit.processes import Processes
from controlkit.toybox import rooms
from controlkit.toybox.make import make as make_dataset
from controlkit.toybox.worlds import draw


def make(out, *arguments, code=0):
    assert main(["toybox", "make", str(out), "--world", "circles", "--count", "40", *arguments, "--quiet"]) == code


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Twenty rooms. Shared: read it, do not write into it."""
    folder = tmp_path_factory.mktemp("rooms")
    make_dataset(folder, "rooms", count=20)
    return folder


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(drawn, tmp_path):
    make_dataset(tmp_path / "two", "rooms", count=20, workers=2)
    make_dataset(tmp_path / "other", "rooms", count=2, seed=1)
    assert tree(drawn) == tree(tmp_path / "two")
    other = tree(tmp_path / "other")
    assert all(other[name] != data for name, data in tree(drawn).items() if name in other and name.endswith(".png"))


@pytest.mark.parametrize(("world", "maps"), [("rooms", {"depth", "pose", "canny"}), ("circles", {"outline", "canny"})])
def test_it_is_a_dataset_ready_for_training(world, maps, tmp_path):
    make_dataset(tmp_path / "d", world, count=4)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "d"), cache_dir=str(tmp_path / "hf"))["train"]
    assert set(loaded.column_names) == {"image", "text", "scene"} | maps
    row, scene = loaded[3], draw(world, 0, 3, 64)
    assert np.array_equal(np.asarray(row["image"]), scene.image)
    assert np.array_equal(np.asarray(row["canny"]), cv2.Canny(scene.image, 100, 200))
    for name in maps - {"canny"}:
        assert np.array_equal(np.asarray(row[name]), scene.maps[name])
    assert row["text"] == scene.caption
    assert json.loads(row["scene"]) == scene.facts


def test_keypoints_lie_beside_the_pose_maps(drawn):
    for index in range(20):
        path = drawn / "conditions" / "pose" / f"{index:06d}.png.json"
        assert json.loads(path.read_text()) == draw("rooms", 0, index, 64).keypoints


def test_annotate_finds_its_canny_maps_made(drawn, tmp_path):
    make_dataset(tmp_path, "rooms", count=20, types=("canny",))
    before = tree(tmp_path)
    report = annotate(Job(data=tmp_path, out=tmp_path, annotators={"canny": ANNOTATORS.create("canny")}), Processes())
    assert (report.made, report.kept) == (0, 20)
    assert tree(tmp_path) == before
    canny = {name for name in before if "canny" in name}
    assert {name for name in before if name.startswith("conditions")} == canny
    assert all(before[name] == (drawn / name).read_bytes() for name in canny)


def test_a_second_run_draws_only_what_is_missing(drawn, tmp_path, monkeypatch):
    make_dataset(tmp_path, "rooms", count=20)
    sizes = []
    original = rooms.Room.draw
    monkeypatch.setattr(rooms.Room, "draw", lambda self, size: sizes.append(size) or original(self, size))
    make_dataset(tmp_path, "rooms", count=20)
    assert sizes == []
    (tmp_path / "000003.png").unlink()
    (tmp_path / "conditions" / "depth" / "000007.png.png").unlink()
    (tmp_path / "conditions" / "pose" / "000008.png.json").unlink()
    make_dataset(tmp_path, "rooms", count=20)
    assert sizes == [64, 64, 64]
    assert tree(tmp_path) == tree(drawn)


@pytest.mark.parametrize("missing", ["000001.png", "conditions/depth/000001.png.png"])
def test_what_is_there_is_not_written_again(tmp_path, missing):
    make_dataset(tmp_path, "rooms", count=2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.name.startswith("0")}
    (tmp_path / missing).unlink()
    make_dataset(tmp_path, "rooms", count=2)
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == {tmp_path / missing}


def test_more_scenes_are_added_and_what_is_there_is_kept(tmp_path):
    make(tmp_path / "grown", "--count", "3")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "grown").rglob("*.png")}
    assert len(before) == 9
    make(tmp_path / "grown")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    make(tmp_path / "whole")
    assert tree(tmp_path / "grown") == tree(tmp_path / "whole")


def test_columns_of_yours_survive(tmp_path):
    make(tmp_path, "--count", "2")
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    rows[1]["mine"] = 5
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make(tmp_path, "--count", "3")
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [row.get("mine") for row in rows] == [None, 5, None]


def test_another_folder_is_not_written_into(tmp_path, capsys):
    make(tmp_path / "d")
    make(tmp_path / "d", "--seed", "1", code=2)
    assert "choose another folder" in capsys.readouterr().err
    (tmp_path / "d" / "toybox.json").write_text("{")
    make(tmp_path / "d", code=2)
    assert "toybox.json cannot be read" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(tmp_path / "mine.png")
    before = tree(tmp_path)
    make(tmp_path, code=2)
    assert "is not empty and holds no drawn world" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_an_unknown_world_is_answered_with_the_nearest(tmp_path, capsys):
    make(tmp_path / "d", "--world", "circels", code=2)
    assert "unknown world 'circels': did you mean 'circles'?" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"types": ("dept",)}, "no maps of type 'dept': did you mean 'depth'\\? known: canny, depth, pose"),
        ({"size": 4}, "size=4.*at least 8 pixels"),
        ({"seed": -1}, "seed=-1.*not negative"),
        ({"workers": 0}, "workers=0.*at least 1 worker"),
    ],
)
def test_a_wrong_request_is_one_line(tmp_path, settings, words):
    with pytest.raises(RequestError, match=words) as refused:
        make_dataset(tmp_path / "d", "rooms", count=1, **settings)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "d").exists()
