"""Scores of obedience: closed forms, and judges that are honest about what they can read."""

import cv2
import numpy as np
import pytest

from annotators import ANNOTATORS
from annotators.keypoints import People, Person
from controlkit.evaluation.obedience import Judge, depth_rmse, edge_f1, find_judge
from tests.conftest import draw_photo


def lines(*columns, size=32):
    drawn = np.zeros((size, size, 3), np.uint8)
    drawn[:, list(columns)] = 255
    return drawn


def test_edges_are_met_within_one_pixel_and_not_two():
    assert edge_f1(lines(8), lines(8)) == 1
    assert edge_f1(lines(9), lines(8)) == 1
    assert edge_f1(lines(10), lines(8)) == 0
    assert edge_f1(lines(9), lines(8), tolerance=0) == 0


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    """One of three found lines is wanted, and it is one of two wanted ones: P = 1/3, R = 1/2, F1 = 2/5."""
    assert edge_f1(lines(4, 12, 20), lines(4, 28)) == pytest.approx(2 / 5)
    assert edge_f1(lines(4, 28), lines(4, 12, 20)) == pytest.approx(2 / 5)


def test_maps_without_edges():
    assert edge_f1(lines(), lines()) == 1
    assert edge_f1(lines(), lines(3)) == 0
    assert edge_f1(lines(3), lines()) == 0


def test_depth_rmse_is_in_shares_of_the_range():
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert depth_rmse(grey, grey) == 0
    assert depth_rmse(np.full_like(grey, 255), np.zeros_like(grey)) == 1
    assert depth_rmse(grey + 51, grey) == pytest.approx(0.2)


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
