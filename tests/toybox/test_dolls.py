"""Dolls: limbs keep their lengths, feet stand on the floor, and keypoints lie where the doll is seen."""

import numpy as np
import pytest

from controlkit.toybox import dolls
from controlkit.toybox.camera import project
from controlkit.toybox.dolls import GESTURES, KEYPOINTS
from controlkit.toybox.solids import Box
from controlkit.toybox.things import Thing, doll, seen_keypoints
from controlkit.toybox.worlds import WORLDS

STILL = np.zeros((2, 4, 2))
AT = {name: number for number, name in enumerate(KEYPOINTS)}


def posed(gesture, *, yaw=0.0, lean=0.0, mirrored=False, jitter=STILL, size="big"):
    return doll(size, GESTURES[gesture], yaw=yaw, lean=lean, mirrored=mirrored, jitter=jitter)


@pytest.mark.parametrize("gesture", list(GESTURES))
@pytest.mark.parametrize("yaw", [0.0, 40.0, -70.0])
def test_limbs_keep_their_lengths_and_a_foot_stands_on_the_floor(gesture, yaw):
    random = np.random.default_rng(0)
    one = posed("standing")
    other = posed(gesture, yaw=yaw, lean=4, mirrored=True, jitter=random.uniform(-9, 9, (2, 4, 2)))
    for side in ("left", "right"):
        limbs = [
            ("shoulder", "elbow"),
            ("elbow", "wrist"),
            ("hip", "knee"),
            ("knee", "ankle"),
        ]
        for start, end in limbs:
            lengths = [
                np.linalg.norm(made.keypoints[AT[f"{side} {start}"], :3] - made.keypoints[AT[f"{side} {end}"], :3])
                for made in (one, other)
            ]
            assert lengths[0] == pytest.approx(lengths[1])
    assert min(body.bounds()[0][1] for body, _ in other.bodies) == pytest.approx(0, abs=1e-9)


def test_the_order_is_openposes():
    """Nose, neck, right arm, left arm, right leg, left leg, eyes and ears, right before left."""
    assert len(KEYPOINTS) == 18
    assert KEYPOINTS[:8:3] == ("nose", "right elbow", "left elbow")
    assert KEYPOINTS[8:14:3] == ("right hip", "left hip")
    assert KEYPOINTS[14:] == ("right eye", "left eye", "right ear", "left ear")


@pytest.mark.parametrize("gesture", list(GESTURES))
def test_the_left_of_a_doll_that_faces_us_is_on_our_right(gesture):
    for yaw in (-60.0, 0.0, 60.0):
        x, y, _ = posed(gesture, yaw=yaw).keypoints[:, :3].T
        for part in ("shoulder", "hip", "eye"):
            assert x[AT[f"left {part}"]] > x[AT[f"right {part}"]]
        assert y[AT["nose"]] > y[AT["neck"]] > y[AT["left hip"]] > y[AT["left ankle"]]


def test_gestures_are_what_their_names_say():
    up = posed("with raised arms").keypoints
    assert up[AT["left wrist"], 1] > up[AT["nose"], 1] < up[AT["right wrist"], 1]
    spread = posed("with arms spread").keypoints
    assert np.ptp(spread[[AT["left wrist"], AT["right wrist"]], 0]) > 0.8
    hips = posed("with hands on hips").keypoints
    assert np.linalg.norm(hips[AT["left wrist"]] - hips[AT["left hip"]]) < 0.4
    waving, other = (posed("waving", mirrored=mirrored).keypoints for mirrored in (False, True))
    assert waving[AT["left wrist"], 1] > waving[AT["nose"], 1] > waving[AT["right wrist"], 1]
    assert other[AT["right wrist"], 1] > other[AT["nose"], 1] > other[AT["left wrist"], 1]


def test_a_head_in_profile_shows_one_ear():
    for yaw, hidden in ((70.0, "right ear"), (-70.0, "left ear")):  # it looks to our left, to our right
        made = posed("walking", yaw=yaw).moved(0, 11)
        seen = seen_keypoints(made, [made])[:, 2]
        assert (seen[AT["left ear"]], seen[AT["right ear"]]) == ((0, 1) if hidden == "left ear" else (1, 0))
    frontal = posed("standing").moved(0, 11)
    assert seen_keypoints(frontal, [frontal])[:, 2].all()


def test_a_box_before_the_legs_hides_their_points_and_no_others():
    made = posed("standing").moved(0, 12)
    box = Thing("box", "big", ((Box((0, 0.5, 10.5), (0.5, 0.5, 0.5), 0.3), dolls.PLAIN),))
    seen = seen_keypoints(made, [made, box])[:, 2]
    hidden = {KEYPOINTS[number] for number in np.nonzero(seen == 0)[0]}
    assert {f"{side} {part}" for side in ("left", "right") for part in ("knee", "ankle")} <= hidden
    assert not hidden & {"nose", "neck", "left shoulder", "right shoulder", "left elbow", "right elbow"}
    behind = box.moved(0, 3)
    assert seen_keypoints(made, [made, behind])[:, 2].all()


def test_a_point_outside_the_picture_is_not_seen():
    made = posed("with arms spread").moved(1.3, 11)
    points = seen_keypoints(made, [made])
    assert project(*made.keypoints[AT["left wrist"], :3])[0] > 1
    assert points[AT["left wrist"], 2] == 0
    assert points[AT["neck"], 2] == 1


def test_every_visible_keypoint_lies_on_its_doll():
    """Its pixel belongs to that doll, at a size at which a joint is wider than a pixel."""
    points_seen = 0
    for index in range(40):
        plan = WORLDS["rooms"].plan(5, index)
        scene = plan.draw(192)
        numbers = [number for number, thing in enumerate(plan.things) if thing.gesture]
        assert len(scene.keypoints["people"]) == len(numbers)
        for number, person in zip(numbers, scene.keypoints["people"], strict=True):
            for x, y, confidence in np.array(person["pose_keypoints_2d"]).reshape(18, 3):
                assert confidence in (0, 1)
                if confidence:
                    assert scene.owners[round(y), round(x)] == number
                    points_seen += 1
                else:
                    assert x == y == 0
    assert points_seen > 300
