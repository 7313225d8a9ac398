"""Scores of obedience: closed forms, and judges that are honest about what they can read."""

import cv2
import numpy as np

from annotators import ANNOTATORS
from annotators.keypoints import People, Person
from controlkit.evaluation.obedience import Judge, find_judge
from tests.conftest import draw_photo


def test_a_judge_reads_as_the_map_was_made(dataset, tmp_path):
    from controlkit.cli.main import main

    (tmp_path / "d").mkdir()
    for number in range(2):
        cv2.imwrite(str(tmp_path / "d" / f"{number}.png"), draw_photo(number)[:, :, ::-1])
    assert main(["annotate", "--type", "canny", str(tmp_path / "d"), "--set", "canny.low=30", "--quiet"]) == 0
    judge = find_judge("canny", tmp_path / "d/conditions/canny/0.png.png")
    assert judge.annotator == ANNOTATORS.create("canny", low=30)
    assert judge.metric == "canny_f1_1px"
    usual = find_judge("canny", dataset / "conditions/canny/000.png.png")
    assert usual.annotator == ANNOTATORS.create("canny")


def test_a_real_picture_follows_its_map_and_not_anothers():
    judge = find_judge("canny")
    pairs = [(photo, judge.annotator(photo)) for photo in map(draw_photo, range(4))]
    own, chance = judge.on_real_pictures(pairs)
    assert own == 1
    assert chance < 0.7
    assert judge.score(pairs[0][0], pairs[0][1], None) == 1


def test_what_has_no_score_says_so():
    assert "there is no score for shuffle" in find_judge("shuffle")


def test_what_cannot_work_here_says_why(monkeypatch, tmp_path):
    """Without weights and without a hub."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    found = find_judge("mlsd")
    assert isinstance(found, str)
    assert "no annotator of mlsd works here" in found


class Points:
    """An annotator that knows where everybody is: tells how points are scored, apart from any network."""

    type, backend = "pose", "known"

    def __init__(self, people):
        self.people = people

    def keypoints(self, image):
        return self.people[int(image[0, 0, 0])]


def test_poses_are_scored_as_points():
    body = np.zeros((18, 3))
    body[[1, 8, 10, 13]] = [[10, 10, 1], [10, 20, 1], [14, 30, 1], [6, 30, 1]]
    other = body.copy()
    other[10, :2] += 5  # one joint of four, farther off than a tenth of the doll's 20 pixels
    judge = Judge(Points([People(64, 64, (Person(each),)) for each in (body, other)] + [People(64, 64, ())]))
    right, wrong, empty = (np.full((64, 64, 3), number, np.uint8) for number in range(3))
    assert judge.metric == "pose_pck_0.1"
    assert judge.score(right, right, right) == 1
    assert judge.score(wrong, right, right) == 0.75
    assert judge.score(empty, right, right) == 0
    assert judge.score(right, right, None) is None
    assert judge.score(right, right, empty) is None
    assert judge.compare(judge.look([right]), right, judge.look([right]))["pose_oks_ap"][0] == 1
