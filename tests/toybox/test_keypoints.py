"""OpenPose's JSON and drawing."""

import numpy as np
import pytest

from controlkit.toybox.openpose import HUES, STICKS, draw_pose, to_json


def person(**points):
    """A person of whom only these points are seen: number -> (x, y) in shares of the picture."""
    made = np.zeros((18, 3))
    for name, place in points.items():
        made[int(name[1:])] = (*place, 1)
    return made


def test_whole_numbers_are_the_centres_of_pixels():
    flat = to_json([person(p3=(0.5, 0.25))], 64)["people"][0]["pose_keypoints_2d"]
    assert len(flat) == 54
    assert flat[9:12] == [31.5, 15.5, 1]
    assert sum(abs(number) for number in flat) == 31.5 + 15.5 + 1


@pytest.mark.parametrize("size", [64, 200])
def test_points_are_drawn_in_their_colour_where_they_are(size):
    drawn = draw_pose(to_json([person(p4=(0.25, 0.75))], size), size, size)
    rows, columns = np.nonzero(drawn.any(axis=2))
    assert (rows.mean() + 0.5) / size == pytest.approx(0.75, abs=0.01)
    assert (columns.mean() + 0.5) / size == pytest.approx(0.25, abs=0.01)
    assert tuple(drawn[int(0.75 * size), int(0.25 * size)]) == HUES[4]


def test_a_stick_has_60_percent_of_its_colour_and_the_width_asked_for():
    stick = STICKS.index((2, 3))
    for stick_width in (2.0, 6.0):
        keypoints = to_json([person(p2=(0.2, 0.5), p3=(0.8, 0.5))], 200)
        drawn = draw_pose(keypoints, 200, 200, stick_width)
        middle = drawn[:, 100]
        assert tuple(middle[100]) == tuple(round(0.6 * channel) for channel in HUES[stick])
        assert 2 * stick_width <= middle.max(axis=1).sum() / (0.6 * 255) <= 2 * stick_width + 1.5


def test_a_stick_needs_both_of_its_points():
    drawn = draw_pose(to_json([person(p2=(0.2, 0.5))], 200), 200, 200)
    assert not drawn[:, 60:].any()


def test_nobody_is_black():
    assert not draw_pose(to_json([], 64), 64, 64).any()


def test_every_point_but_the_last_stick_is_in_a_stick():
    assert {point for stick in STICKS for point in stick} == set(range(18))
