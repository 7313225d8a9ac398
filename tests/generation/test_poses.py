"""Poses in generation: drawn from their keypoints at the size that networks see."""

import json

import numpy as np
import pytest
from PIL import Image

from annotators.contract import resize_map
from annotators.keypoints import People
from annotators.pose_drawing import draw, usual_stick_width
from controlkit.cli.main import main
from controlkit.generation.options import request_of
from controlkit.generation.plan import make_plan
from controlkit.generation.settings import read_settings
from tests.annotators.test_keypoints import somebody
from tests.conftest import draw_photo

CANVAS = 320, 240


@pytest.fixture
def people():
    """As their file has them."""
    return People.from_json(People(*CANVAS, (somebody(3),)).to_json()).scaled(*CANVAS)


@pytest.fixture
def pose(people, tmp_path):
    path = tmp_path / "pose.json"
    path.write_text(json.dumps(people.to_json()), encoding="utf-8")
    return path


@pytest.fixture
def drawn(people, tmp_path):
    """A map beside its keypoints, as `annotate` leaves them."""
    (tmp_path / "drawn").mkdir()
    path = tmp_path / "drawn" / "a.jpg.png"
    Image.fromarray(draw(people, *CANVAS)).save(path)
    path.with_name("a.jpg.json").write_text(json.dumps(people.to_json()), encoding="utf-8")
    return path


@pytest.fixture
def planned(nets):
    """The plan of these options under a ControlNet for poses, and what was said."""

    def plan(control, **options):
        said = []
        asked = {"base": "random-sd15", "controlnet": f"pose={nets['untyped']}", "control": f"pose={control}"}
        return make_plan(request_of({**asked, "prompt": "x", **options}), said.append), said

    return plan


def test_keypoints_are_drawn_at_the_size_of_the_picture(pose, drawn, people, planned):
    """Given themselves, and beside the map that they drew; pixels brought to that size are another map."""
    expected = draw(people, 96, 72)
    for file in (pose, drawn):
        assert np.array_equal(planned(file, size="96x72")[0].fitted[0], expected)
    assert not np.array_equal(resize_map(draw(people, *CANVAS), 96, 72, None), expected)
    plan, _ = planned(pose, size="64x64")  # cut at the sides, its sticks those of the picture that is left
    assert np.array_equal(plan.fitted[0], draw(people, 85, 64, usual_stick_width(64, 64))[:, 10:74])
    padded = planned(pose, size="64x64", resize="pad")[0].fitted[0]
    assert np.array_equal(padded[8:56], draw(people, 64, 48, usual_stick_width(64, 64)))
    assert not padded[:8].any()


def test_a_second_pass_and_tiles_have_sticks_of_their_own(pose, people, planned, tmp_path):
    plan, _ = planned(pose, size="64x48", hires="2.5")
    assert np.array_equal(plan.second.fitted[0], draw(people, 160, 120))
    Image.fromarray(draw_photo(3, 320, 240)).save(tmp_path / "photo.png")
    plan, _ = planned(pose, image=str(tmp_path / "photo.png"), upscale="2")
    assert np.array_equal(plan.fitted[0], draw(people, 640, 480, usual_stick_width(64, 64)))


def test_what_is_painted_larger_of_a_masked_picture_has_its_poses_drawn_there(pose, people, planned, tmp_path):
    """A hole of 32 pixels and 0 around it, painted at 64: the part of a map drawn at twice the size."""
    Image.fromarray(draw_photo(3, *CANVAS)).save(tmp_path / "photo.png")
    hole = np.zeros((240, 320), np.uint8)
    hole[80:112, 96:128] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    options = {"image": str(tmp_path / "photo.png"), "mask": str(tmp_path / "mask.png"), "only-masked": 0, "feather": 0}
    (fitted,) = planned(pose, **options)[0].fitted
    expected = draw(people, 640, 480, usual_stick_width(64, 64))[160:224, 192:256]
    assert fitted.mean() > 1
    assert np.abs(fitted.astype(int) - expected).mean() < 0.05  # places are rounded to 1/64 of a pixel


def test_a_map_that_was_changed_since_counts_as_it_is(drawn, planned):
    changed = np.asarray(Image.open(drawn)).copy()
    changed[:20, :20] = 255
    Image.fromarray(changed).save(drawn)
    plan, said = planned(drawn, size="96x72")
    assert np.array_equal(plan.fitted[0], resize_map(changed, 96, 72, None))
    assert "a.jpg.png is not what a.jpg.json draws, and is used as it is; for those keypoints give that file" in said
    drawn.with_name("a.jpg.json").write_text('{"caption": "somebody"}', encoding="utf-8")  # of another tool
    assert planned(drawn, size="96x72")[1] == []


def test_it_is_painted_and_replayed_and_its_keypoints_are_checked(drawn, nets, tmp_path, capsys):
    out, beside = tmp_path / "o.png", drawn.with_name("a.jpg.json")
    asked = ["--base", "random-sd15", "--control", f"pose={drawn}", "--controlnet", f"pose={nets['untyped']}"]
    how = ["--size", "48x32", "--steps", 2, "--seed", 1, "--quiet", "--out", out]
    assert main(["generate", *map(str, [*asked, *how])]) == 0
    assert read_settings(out)["controls"][0]["keypoints"]["file"] == str(beside)
    assert main(["generate", "--quiet", "--replay", str(out), "--out", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
    beside.write_text(beside.read_text(encoding="utf-8") + " ", encoding="utf-8")
    capsys.readouterr()
    assert main(["generate", "--quiet", "--replay", str(out), "--out", str(tmp_path / "never.png")]) == 2
    assert f"--control {beside}: has changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ("{", [], "pose.json: is not JSON"),
        ("[]", [], 'pose.json: no keypoints: expected a JSON object with "people"'),
        ('{"people": []}', [], 'pose.json: no "canvas_width" and "canvas_height"'),
        ('{"people": [], "canvas_width": 99999, "canvas_height": 99999}', [], "a canvas of 99999x99999 is more than"),
        (None, ["--annotate"], "holds the keypoints already; leave out --annotate"),
        (None, ["canny"], "keypoints are poses; asked for as canny"),
    ],
)
def test_wrong_keypoints_are_one_line(text, arguments, words, pose, nets, tmp_path, capsys):
    if text:
        pose.write_text(text, encoding="utf-8")
    kind = "canny" if arguments == ["canny"] else "pose"
    asked = ["--control", f"{kind}={pose}", "--controlnet", f"{kind}={nets['untyped']}", "--base", "random-sd15"]
    rest = [*(arguments if kind == "pose" else []), "--seed", 1, "--quiet", "--out", tmp_path / "o.png"]
    assert main(["generate", *map(str, [*asked, *rest])]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_keypoints_beside_a_map_that_are_of_no_use_are_refused(drawn, planned):
    beside = drawn.with_name("a.jpg.json")
    beside.write_text('{"people": [{"pose_keypoints_2d": [1, 2]}]}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"its keypoints are of no use .*: person 1: .*; mend or move them"):
        planned(drawn)
