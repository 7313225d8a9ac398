"""Pose maps against what can be said of them without drawing."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from annotators.keypoints import People, Person
from annotators.pose_drawing import HAND_HUES, HAND_STICKS, HUES, STICKS, draw
from tests.annotators.test_keypoints import some_points, somebody


def body(**points):
    """A body of which only these points are seen: number -> (x, y) in pixels."""
    made = np.zeros((18, 3))
    for name, place in points.items():
        made[int(name[1:])] = (*place, 1)
    return made


def one(body, width, height=None, **parts):
    return People(width, height or width, (Person(body, **parts),))


def centroid(drawn):
    """The middle of what was drawn, in pixels: x, y."""
    bright = drawn.max(axis=2).astype(float)
    rows, columns = np.indices(bright.shape)
    return (bright * columns).sum() / bright.sum(), (bright * rows).sum() / bright.sum()


def dim(hue):
    return tuple(round(0.6 * channel) for channel in hue)


@pytest.mark.parametrize("number", range(18))
@pytest.mark.parametrize("size", [(64, 64), (200, 120)])
def test_a_point_is_drawn_in_its_colour_where_it_is(size, number):
    drawn = draw(one(body(**{f"p{number}": (0.25 * size[0], 0.75 * size[1])}), *size), *size)
    assert centroid(drawn) == pytest.approx((0.25 * size[0], 0.75 * size[1]), abs=0.15)
    assert tuple(drawn[int(0.75 * size[1]), int(0.25 * size[0])]) == HUES[number]


@pytest.mark.parametrize("stick", range(17))
@pytest.mark.parametrize("ends", [((40, 50), (160, 150)), ((150, 30), (150, 170)), ((180, 100), (20, 60))])
def test_the_middle_of_every_stick_has_60_percent_of_its_colour(stick, ends):
    start, end = STICKS[stick]
    drawn = draw(one(body(**{f"p{start}": ends[0], f"p{end}": ends[1]}), 200), 200, 200)
    x, y = np.mean(ends, axis=0).astype(int)
    assert tuple(drawn[y, x]) == dim(HUES[stick])


def test_a_stick_has_the_width_asked_for():
    for stick_width in (2.0, 6.0):
        drawn = draw(one(body(p2=(40, 100), p3=(160, 100)), 200), 200, 200, stick_width)
        column = drawn[:, 100].max(axis=1).sum() / (0.6 * 255)
        assert 2 * stick_width <= column <= 2 * stick_width + 1.5


@pytest.mark.parametrize("size", [128, 512, 1024])
def test_a_stick_is_a_share_of_the_map_whatever_size_the_picture_had(size):
    """Drawn at the size asked for, not drawn and enlarged."""
    people = one(body(p2=(20, 50), p3=(80, 50)), 100)
    drawn = draw(people, size, size)
    column = drawn[:, size // 2].max(axis=1).sum() / (0.6 * 255)
    assert column == pytest.approx(2 * 4 * size / 512 + 0.75, abs=0.75)


def test_scaling_by_two_doubles_places():
    people = one(body(p4=(20.5, 40.5)), 100)
    for scale in (1, 2, 5):
        x, y = centroid(draw(people, 100 * scale, 100 * scale))
        assert (x + 0.5, y + 0.5) == pytest.approx((21 * scale, 41 * scale), abs=0.05 * scale)


def test_a_mirrored_body_gives_the_mirrored_map():
    person = Person(some_points(3, 18, 200, 200), some_points(4, 21, 200, 200), None, some_points(5, 70, 200, 200))
    mirrored = person.map(lambda points: np.column_stack([199 - points[:, 0], points[:, 1:]]))
    drawn, other = (draw(People(200, 200, (each,)), 200, 200).astype(int) for each in (person, mirrored))
    difference = np.abs(drawn - other[:, ::-1])
    assert difference.mean() < 1  # OpenCV rounds the rims of its polygons to one side
    assert (difference > 64).mean() < 0.005


def test_a_stick_needs_both_of_its_points():
    drawn = draw(one(body(p2=(40, 100)), 200), 200, 200)
    assert not drawn[:, 60:].any()


def test_points_lie_on_the_sticks_of_their_person_and_people_over_those_before():
    lying, standing = body(p2=(40, 100), p3=(160, 100)), body(p5=(100, 40), p6=(100, 160))
    drawn = draw(People(200, 200, (Person(lying), Person(standing))), 200, 200)
    assert tuple(drawn[100, 100]) == dim(HUES[STICKS.index((5, 6))])
    assert tuple(drawn[100, 40]) == HUES[2]
    assert tuple(drawn[160, 100]) == HUES[6]


def test_several_people_are_as_each_of_them_where_they_do_not_meet():
    left, right = body(p1=(20, 30), p2=(40, 60)), body(p1=(140, 30), p2=(170, 60))
    both = draw(People(200, 100, (Person(left), Person(right))), 200, 100)
    apart = [draw(People(200, 100, (Person(each),)), 200, 100) for each in (left, right)]
    assert np.array_equal(both, np.maximum(*apart))


def test_the_lines_of_a_hand_go_round_the_colours():
    """Twenty hues at equal steps, by OpenCV's conversion."""
    hsv = np.array([[[360 * number / 20, 1, 1] for number in range(20)]], np.float32)
    expected = 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    np.testing.assert_allclose(HAND_HUES, expected, atol=0.51)


def test_a_hand_is_five_chains_from_the_wrist():
    assert len(HAND_STICKS) == len(set(HAND_STICKS)) == 20
    assert sorted(end for _, end in HAND_STICKS) == list(range(1, 21))
    assert all(start in (0, end - 1) for start, end in HAND_STICKS)
    assert [end for start, end in HAND_STICKS if start == 0] == [1, 5, 9, 13, 17]


@pytest.mark.parametrize("stick", range(20))
def test_a_line_of_a_hand_has_its_colour_between_blue_points(stick):
    hand = np.zeros((21, 3))
    start, end = HAND_STICKS[stick]
    hand[start], hand[end] = (60, 100, 1), (140, 100, 1)
    for part in ("left_hand", "right_hand"):
        drawn = draw(one(np.zeros((18, 3)), 200, **{part: hand}), 200, 200, 4)
        assert tuple(drawn[100, 100]) == HAND_HUES[stick]
        assert tuple(drawn[100, 60]) == tuple(drawn[100, 140]) == (0, 0, 255)
        assert (drawn[:, 100].max(axis=1) > 127).sum() == 3  # as in the maps of the training
        assert tuple(drawn[103, 140]) == (0, 0, 255)


def test_a_face_is_white_points():
    face = np.zeros((70, 3))
    face[30] = (100, 50, 0.2)
    drawn = draw(one(np.zeros((18, 3)), 200, face=face), 200, 200, 4)
    assert tuple(drawn[50, 100]) == (255, 255, 255)
    assert (drawn[50, :, 0] > 127).sum() == 2 * 3 + 1
    assert (drawn == drawn[:, :, :1]).all()


def test_it_is_like_the_drawing_of_controlnet_aux(monkeypatch):
    """At 512 pixels. Its hands want matplotlib for one conversion of colours, which stands in for it here."""
    from controlnet_aux.open_pose import PoseResult, draw_poses
    from controlnet_aux.open_pose.body import BodyResult, Keypoint
    from skimage.color import hsv2rgb

    monkeypatch.setitem(sys.modules, "matplotlib", SimpleNamespace(colors=SimpleNamespace(hsv_to_rgb=hsv2rgb)))
    figure = np.array(
        [(256, 80), (256, 140), (200, 140), (180, 220), (170, 300), (312, 140), (340, 220), (350, 300), (225, 300),
         (220, 400), (215, 490), (287, 300), (292, 400), (297, 490), (245, 70), (267, 70), (230, 75), (282, 75)], float
    )  # fmt: skip
    angles = np.repeat(np.linspace(-2, 2, 5), 4)
    lengths = np.tile([30.0, 50.0, 70.0, 90.0], 5)
    fingers = np.column_stack([100 + lengths * np.sin(angles), 420 + lengths * np.cos(angles)])
    hand = np.vstack([[100, 420], fingers])
    face = np.random.default_rng(0).uniform(20, 490, (70, 2))
    parts = [np.column_stack([part, np.ones(len(part))]) for part in (figure, hand, face)]
    ours = draw(one(parts[0], 512, left_hand=parts[1], face=parts[2]), 512, 512).astype(int)

    theirs = [[Keypoint((x + 0.5) / 512, (y + 0.5) / 512) for x, y, _ in part] for part in parts]
    pose = PoseResult(BodyResult(theirs[0], 1, 18), theirs[1], None, theirs[2])
    theirs = draw_poses([pose], 512, 512).astype(int)
    drawn = (theirs > 0).any(axis=2)
    assert 0.02 < drawn.mean() < 0.3
    inner = cv2.erode(drawn.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert np.abs(ours - theirs)[inner].mean() < 6  # they round places to whole pixels, angles to degrees
    around = cv2.dilate(drawn.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert ours[~around].max() < 64


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 17), (640, 480)])
def test_any_size_can_be_drawn(size):
    drawn = draw(People(640, 480, (somebody(), somebody(7))), *size)
    assert drawn.shape == (size[1], size[0], 3)
    assert drawn.dtype == np.uint8
    assert drawn.any()


def test_nobody_is_black():
    assert not draw(People(64, 64), 64, 64).any()


def test_places_far_outside_harm_nothing():
    far = body(p2=(-1e12, 50), p3=(1e12, 50), p8=(1e300, 1e300))
    drawn = draw(one(far, 100), 100, 100)
    assert tuple(drawn[50, 50]) == dim(HUES[STICKS.index((2, 3))])
    assert not drawn[60:].any()


def test_a_map_and_the_one_redrawn_from_its_json_are_equal():
    people = People(640, 480, (somebody(0), somebody(40)))
    assert np.array_equal(draw(people, 640, 480), draw(People.from_json(people.to_json()), 640, 480))


def test_every_point_of_the_body_is_in_a_stick():
    assert {point for stick in STICKS for point in stick} == set(range(18))
