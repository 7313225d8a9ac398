"""Pose maps from keypoint files."""

import json
import subprocess
import sys

import numpy as np
import pytest

from annotators.contract import parameters_of
from annotators.keypoints import People
from annotators.pose_drawing import draw
from annotators.pose_json import PoseFiles
from controlkit.toybox.make import make
from controlkit.toybox.worlds import draw as draw_scene
from tests.annotators.test_keypoints import somebody

BLANK = np.zeros((480, 640, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    return tmp_path


def write(path, people):
    path.write_text(json.dumps(people.to_json()), encoding="utf-8")


def test_a_file_of_keypoints_becomes_the_map_of_its_picture(folder):
    people = People(640, 480, (somebody(0), somebody(9)))
    write(folder / "sub" / "a b.jpg.json", people)
    annotator = PoseFiles(folder).annotator("sub/a b.jpg")
    assert np.array_equal(annotator(BLANK), draw(people, 640, 480))
    assert annotator.keypoints(BLANK).to_json() == people.to_json()


@pytest.mark.parametrize("size", [(320, 240), (1280, 960), (333, 250)])
def test_the_map_has_the_size_of_the_picture_and_is_drawn_at_it(folder, size):
    people = People(640, 480, (somebody(),))
    write(folder / "a.json", people)
    made = PoseFiles(folder).annotator("a.png")(np.zeros((size[1], size[0], 3), np.uint8))
    read = People.from_json(people.to_json())
    assert np.array_equal(made, draw(read, *size))


def test_keypoints_of_another_aspect_are_not_stretched(folder):
    write(folder / "a.json", People(640, 480, (somebody(),)))
    with pytest.raises(ValueError, match="is for a picture of 640 x 480, this one has 480 x 480"):
        PoseFiles(folder).annotator("a.png")(np.zeros((480, 480, 3), np.uint8))


def test_the_file_named_for_the_whole_name_comes_first(folder):
    names = ["a.jpg.json", "a_keypoints.json", "a.json"]
    for number, name in enumerate(names):
        write(folder / name, People(8, 8, (somebody(),) * (number + 1)))
    for number, name in enumerate(names):
        assert len(PoseFiles(folder).annotator("a.jpg").people(8, 8).persons) == number + 1
        (folder / name).unlink()


def test_what_openpose_writes_has_no_canvas_and_is_in_pixels_of_the_picture(folder):
    data = People(640, 480, (somebody(),)).to_json()
    people = {key: value for key, value in data.items() if not key.startswith("canvas")}
    (folder / "a_keypoints.json").write_text(json.dumps(people), encoding="utf-8")
    assert PoseFiles(folder).annotator("a.png").keypoints(BLANK).to_json() == data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no keypoints for it: "),
        (b"", "a.json: is not JSON"),
        (b"\xff\xfe\x00", "a.json: is not JSON"),
        (b"[" * 100_000, "a.json: is not JSON"),
        (b"[]", 'a.json: no keypoints: expected a JSON object with "people"'),
        (b'{"people": [{"pose_keypoints_2d": [1, 2]}]}', "a.json: person 1: pose_keypoints_2d: expected a list"),
    ],
)
def test_a_missing_or_broken_file_is_refused_in_one_line(folder, content, words):
    if content is not None:
        (folder / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]+$") as reason:
        PoseFiles(folder).annotator("a.png")
    assert words in str(reason.value)
    assert str(folder) in str(reason.value)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        PoseFiles(tmp_path / "nowhere")


def test_the_ledger_names_the_file_by_its_content(folder):
    write(folder / "a.json", People(8, 8, (somebody(),)))
    write(folder / "b.json", People(8, 8, (somebody(),)))
    write(folder / "c.json", People(8, 8, (somebody(1),)))
    a, b, c = (parameters_of(PoseFiles(folder).annotator(f"{name}.png")) for name in "abc")
    assert a == b != c
    assert list(a) == ["keypoints_sha256"]


def test_what_the_toybox_draws_is_drawn_again_from_its_files(tmp_path):
    make(tmp_path, "rooms", count=8, types=("pose",))
    files = PoseFiles(tmp_path / "conditions" / "pose")
    scenes = [draw_scene("rooms", 0, index, 64) for index in range(8)]
    assert any(scene.keypoints["people"] for scene in scenes)
    for index, scene in enumerate(scenes):
        assert np.array_equal(files.annotator(f"{index:06d}.png")(scene.image), scene.maps["pose"])


def test_it_needs_no_torch(folder):
    write(folder / "a.json", People(8, 8, (somebody(),)))
    code = (
        "import sys, numpy; from annotators.pose_json import PoseFiles; "
        f"PoseFiles({str(folder)!r}).annotator('a.png')(numpy.zeros((8, 8, 3), 'uint8')); "
        "print({'torch', 'controlkit', 'controlnet_aux'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
