"""The one type of keypoints: places, scales, OpenPose's JSON."""

import json

import numpy as np
import pytest

from annotators.keypoints import People, Person, face_of_68


def some_points(seed, count, width=640, height=480):
    """Points all over a picture, a few of them not seen."""
    random = np.random.default_rng(seed)
    points = np.column_stack([random.uniform(0, width, count), random.uniform(0, height, count), random.random(count)])
    points[random.integers(count, size=2)] = 0
    return points


def somebody(seed=0):
    hands = [some_points(seed + 1, 21), some_points(seed + 2, 21)]
    return Person(some_points(seed, 18), *hands, some_points(seed + 3, 70))


def parts_equal(one, other, tolerance=0.0):
    assert one.parts().keys() == other.parts().keys()
    for part, points in one.parts().items():
        np.testing.assert_allclose(points, other.parts()[part], atol=tolerance, rtol=0)


def body_json(points, **canvas):
    return {**canvas, "people": [{"pose_keypoints_2d": np.asarray(points, float).reshape(-1).tolist()}]}


def test_json_keeps_everybody_with_true_confidences():
    people = People(640, 480, (somebody(0), Person(some_points(9, 18)), somebody(20)))
    back = People.from_json(json.loads(json.dumps(people.to_json())))
    assert (back.width, back.height, len(back.persons)) == (640, 480, 3)
    for before, after in zip(people.persons, back.persons, strict=True):
        for part, points in before.parts().items():
            np.testing.assert_allclose(after.parts()[part][:, :2], points[:, :2], atol=0.00051)
            np.testing.assert_allclose(after.parts()[part][:, 2], points[:, 2], rtol=5e-6)
    assert back.persons[1].parts().keys() == {"body"}
    assert back.to_json() == people.to_json()


def test_json_has_openposes_names():
    written = People(64, 32, (somebody(),)).to_json()
    assert (written["canvas_width"], written["canvas_height"]) == (64, 32)
    lengths = {name: len(value) for name, value in written["people"][0].items()}
    assert lengths == {
        "person_id": 1,
        "pose_keypoints_2d": 54,
        "hand_left_keypoints_2d": 63,
        "hand_right_keypoints_2d": 63,
        "face_keypoints_2d": 210,
    }


@pytest.mark.parametrize("confidence", [1e-9, 0.3, 1.25])
def test_what_is_seen_stays_seen_however_faintly(confidence):
    body = np.zeros((18, 3))
    body[4] = (3, 4, confidence)
    written = People(9, 9, (Person(body),)).to_json()
    assert People.from_json(written).persons[0].body[4, 2] == pytest.approx(confidence, rel=1e-5)


def test_what_is_not_seen_has_no_place():
    body = np.full((18, 3), 7.0)
    body[3, 2] = 0
    body[5, 2] = -1
    person = Person(body)
    assert not person.body[[3, 5]].any()
    assert person.body[[0, 4]].all()


def test_the_first_points_of_a_person_are_copied():
    body = np.ones((18, 3))
    person = Person(body)
    body[:] = 5
    assert (person.body == 1).all()


def test_scaling_by_two_doubles_places_from_the_edge_of_the_picture():
    """Whole numbers are the centres of pixels: the edge lies at -0.5."""
    people = People(640, 480, (somebody(),))
    doubled = people.scaled(1280, 960)
    for before, after in zip(people.persons[0].parts().values(), doubled.persons[0].parts().values(), strict=True):
        seen = before[:, 2] > 0
        np.testing.assert_allclose(after[seen, :2] + 0.5, 2 * (before[seen, :2] + 0.5), rtol=1e-12)
        assert np.array_equal(after[:, 2], before[:, 2])
        assert not after[~seen].any()
    parts_equal(doubled.scaled(640, 480).persons[0], people.persons[0], 1e-9)


def test_shares_of_the_picture_are_places_from_its_edges():
    body = np.zeros((18, 3))
    body[0], body[1] = (0, 0, 1), (1, 1, 1)
    placed = People.from_shares(40, 30, [Person(body)]).persons[0].body
    assert placed[0].tolist() == [-0.5, -0.5, 1]
    assert placed[1].tolist() == [39.5, 29.5, 1]


def test_shares_in_a_file_are_recognised():
    people = People(640, 480, (somebody(),))
    shares = [
        {key: [number / (640, 480, 1)[index % 3] for index, number in enumerate(values)] for key, values in raw.items()}
        for raw in [{"pose_keypoints_2d": people.persons[0].body.reshape(-1).tolist()}]
    ]
    read = People.from_json({"canvas_width": 640, "canvas_height": 480, "people": shares}).persons[0].body
    seen = people.persons[0].body[:, 2] > 0
    np.testing.assert_allclose(read[seen, :2], people.persons[0].body[seen, :2] - 0.5, atol=1e-9)


def test_a_file_without_a_canvas_belongs_to_the_picture_it_is_read_for():
    points = some_points(0, 18)
    read = People.from_json(body_json(points), (640, 480))
    assert (read.width, read.height) == (640, 480)
    assert np.array_equal(read.persons[0].body, points)
    with pytest.raises(ValueError, match="give the size of the picture"):
        People.from_json(body_json(points))
    with_canvas = People.from_json(body_json(points, canvas_width=1280, canvas_height=960), (640, 480))
    assert (with_canvas.width, with_canvas.height) == (1280, 960)


def test_body_25_loses_its_hip_centre_and_its_feet():
    """Named by their places: point n of BODY_25 lies at (n + 2, 0)."""
    points = [(number + 2, 0, 1) for number in range(25)]
    body = People.from_json(body_json(points), (64, 64)).persons[0].body
    nose_neck_and_arms, right_leg, left_leg = [0, 1, 2, 3, 4, 5, 6, 7], [9, 10, 11], [12, 13, 14]
    eyes_and_ears = [15, 16, 17, 18]  # right eye, left eye, right ear, left ear in both
    assert (body[:, 0] - 2).tolist() == [*nose_neck_and_arms, *right_leg, *left_leg, *eyes_and_ears]


def test_pupils_are_the_middles_of_the_eyes():
    points = some_points(5, 68)
    points[:, 2] = np.linspace(0.2, 1, 68)
    face = face_of_68(points)
    assert face.shape == (70, 3)
    assert np.array_equal(face[:68], points)
    for pupil, first in ((68, 36), (69, 42)):  # the person's right eye comes first
        np.testing.assert_allclose(face[pupil, :2], points[first : first + 6, :2].mean(axis=0))
        assert face[pupil, 2] == points[first : first + 6, 2].min()
    points[40, 2] = 0
    assert face_of_68(points)[68, 2] == 0
    assert face_of_68(points)[69, 2] > 0


def test_a_face_of_68_points_in_a_file_gets_its_pupils():
    points = some_points(5, 68)
    data = {"people": [{"face_keypoints_2d": points.reshape(-1).tolist()}]}
    read = People.from_json(data, (640, 480)).persons[0]
    np.testing.assert_allclose(read.face, Person(np.zeros((18, 3)), face=face_of_68(points)).face)
    assert not read.body.any()


def test_parts_that_are_missing_or_empty_were_not_looked_for():
    data = {
        "people": [{"pose_keypoints_2d": [], "hand_left_keypoints_2d": None, "hand_right_keypoints_2d": [0.0] * 63}]
    }
    person = People.from_json(data, (8, 8)).persons[0]
    assert person.parts().keys() == {"body", "right_hand"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], 'expected a JSON object with "people"'),
        ({}, 'expected a JSON object with "people"'),
        ({"people": {}}, 'expected a JSON object with "people"'),
        ({"people": [[]]}, "person 1: expected a JSON object, got list"),
        ({"people": [{"pose_keypoints_2d": [1, 2]}]}, "person 1: pose_keypoints_2d: expected a list of numbers"),
        ({"people": [{"pose_keypoints_2d": ["1", 2, 3]}]}, "expected a list of numbers"),
        ({"people": [{"pose_keypoints_2d": "1 2 3"}]}, "expected a list of numbers"),
        ({"people": [{"pose_keypoints_2d": [True, 2, 3]}]}, "expected a list of numbers"),
        ({"people": [{}, {"pose_keypoints_2d": [0] * 51}]}, "person 2: pose_keypoints_2d: has 17 points, expected 18"),
        ({"people": [{"hand_left_keypoints_2d": [0] * 60}]}, "hand_left_keypoints_2d: has 20 points, expected 21"),
        ({"people": [{"pose_keypoints_2d": [float("nan")] * 54}]}, "body: holds a number that is not finite"),
        ({"people": [{"pose_keypoints_2d": [10**400] * 54}]}, "pose_keypoints_2d: holds a whole number of more than"),
        ({"people": [], "canvas_width": 8}, "a canvas of 8 x None"),
        ({"people": [], "canvas_width": 0, "canvas_height": 8}, "a canvas of 0 x 8"),
        ({"people": [], "canvas_width": "8", "canvas_height": 8}, "two whole numbers of pixels"),
    ],
)
def test_what_is_no_keypoints_is_refused_in_one_line(data, words):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as reason:
        People.from_json(data, (8, 8))
    assert words in str(reason.value)


def test_a_network_that_gives_no_numbers_is_refused():
    with pytest.raises(ValueError, match="face: holds a number that is not finite"):
        Person(np.zeros((18, 3)), face=np.full((70, 3), np.inf))
    with pytest.raises(ValueError, match=r"body: expected 18 points of x, y, confidence, got an array \(17, 3\)"):
        Person(np.zeros((17, 3)))
