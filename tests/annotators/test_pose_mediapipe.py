"""MediaPipe's landmarkers, which are not installed for the tests: a module of the documented shape stands in."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from annotators import ANNOTATORS, MissingWeights
from annotators.keypoints import face_of_68
from annotators.pose_coco import body_of_coco
from annotators.pose_mediapipe import _IBUG, body_of_landmarks, face_of_landmarks, persons_of

# The face oval of MediaPipe's mesh, from the forehead down the left side of the face and up the right.
OVAL = [
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
]  # fmt: skip

BODY = [
    "nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye", "right_eye_outer",
    "left_ear", "right_ear", "mouth_left", "mouth_right", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_pinky", "right_pinky", "left_index", "right_index",
    "left_thumb", "right_thumb", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    "left_heel", "right_heel", "left_foot_index", "right_foot_index",
]  # fmt: skip


def landmark(x, y, visibility=None):
    return SimpleNamespace(x=float(x), y=float(y), z=0.0, visibility=visibility, presence=visibility)


def random_landmarks(seed, count, visibility=None):
    return [landmark(x, y, visibility) for x, y in np.random.default_rng(seed).uniform(0.1, 0.9, (count, 2))]


def write_tasks(folder):
    for name in ("pose_landmarker_full.task", "hand_landmarker.task", "face_landmarker.task"):
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_tasks(tmp_path)


def stand_in():
    """A module that answers whatever its `seen` holds, and keeps what it was made and asked with."""
    fake = SimpleNamespace(
        made={},
        asked=[],
        seen={
            "PoseLandmarker": SimpleNamespace(pose_landmarks=[]),
            "HandLandmarker": SimpleNamespace(hand_landmarks=[], handedness=[]),
            "FaceLandmarker": SimpleNamespace(face_landmarks=[]),
        },
        ImageFormat=SimpleNamespace(SRGB="srgb"),
        Image=lambda image_format, data: (image_format, data),
        __spec__=SimpleNamespace(),
    )

    def task(name):
        def create_from_options(options):
            fake.made[name] = options

            def detect(picture):
                fake.asked.append(picture)
                return fake.seen[name]

            return SimpleNamespace(detect=detect)

        return SimpleNamespace(create_from_options=create_from_options)

    names = ("PoseLandmarker", "HandLandmarker", "FaceLandmarker")
    vision = {name: task(name) for name in names} | {f"{name}Options": lambda **given: given for name in names}
    running = SimpleNamespace(IMAGE="image")
    fake.tasks = SimpleNamespace(
        BaseOptions=lambda model_asset_path: model_asset_path, vision=SimpleNamespace(RunningMode=running, **vision)
    )
    return fake


@pytest.fixture
def mediapipe(monkeypatch):
    fake = stand_in()
    monkeypatch.setitem(sys.modules, "mediapipe", fake)
    return fake


def test_the_tasks_are_made_from_their_files_and_asked_in_rgb(mediapipe, folder, photo):
    annotator = ANNOTATORS.create("pose", "mediapipe", weights=str(folder), people=3)
    assert not annotator(photo).any()
    assert {name: options["base_options"] for name, options in mediapipe.made.items()} == {
        "PoseLandmarker": str(folder / "pose_landmarker_full.task"),
        "HandLandmarker": str(folder / "hand_landmarker.task"),
        "FaceLandmarker": str(folder / "face_landmarker.task"),
    }
    assert all(options["running_mode"] == "image" for options in mediapipe.made.values())
    assert mediapipe.made["PoseLandmarker"]["num_poses"] == 3
    assert mediapipe.made["HandLandmarker"]["num_hands"] == 6
    assert mediapipe.made["FaceLandmarker"]["num_faces"] == 3
    assert len(mediapipe.asked) == 3
    for image_format, data in mediapipe.asked:
        assert image_format == "srgb"
        assert np.array_equal(data, photo)


def test_only_what_is_asked_for_is_made(mediapipe, folder, photo):
    ANNOTATORS.create("pose", "mediapipe", weights=str(folder), hands=False, face=False)(photo)
    assert list(mediapipe.made) == ["PoseLandmarker"]


def test_shares_become_pixels_and_visibility_confidence(mediapipe, folder):
    body = [landmark(0.25, 0.5, 0.9) for _ in BODY]
    body[BODY.index("left_knee")] = landmark(0.75, 0.5, 0.8)
    body[BODY.index("right_knee")] = landmark(0.75, 0.5, 0.4)
    mediapipe.seen["PoseLandmarker"].pose_landmarks = [body]
    people = ANNOTATORS.create("pose", "mediapipe", weights=str(folder)).keypoints(np.zeros((100, 200, 3), np.uint8))
    (person,) = people.persons
    assert person.body[0].tolist() == [49.5, 49.5, 0.9]
    assert person.body[12].tolist() == [149.5, 49.5, 0.8]
    assert not person.body[9].any()  # surer than min_confidence it is not
    assert person.parts().keys() == {"body", "left_hand", "right_hand", "face"}
    assert not person.face.any()


def test_a_body_keeps_right_and_left():
    """By names: each of COCO's joints is the landmark of that name."""
    pairs = ["eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle"]
    coco = ["nose", *(f"{side}_{joint}" for joint in pairs for side in ("left", "right"))]
    landmarks = random_landmarks(0, 33, 0.7)
    by_name = dict(zip(BODY, landmarks, strict=True))
    points = np.array([(by_name[name].x, by_name[name].y, 0.7) for name in coco])
    assert np.array_equal(body_of_landmarks(landmarks), body_of_coco(points))


def test_the_jaw_goes_along_the_oval_of_the_mesh_from_ear_to_ear():
    places = [OVAL.index(number) for number in _IBUG[:17]]
    assert places == sorted(places, reverse=True)
    assert _IBUG[8] == OVAL[18]  # the chin
    mirrored = [OVAL[-OVAL.index(number) % len(OVAL)] for number in _IBUG[:17]]
    assert mirrored == list(_IBUG[16::-1])
    assert len(set(_IBUG)) == 68


def test_a_face_has_the_irises_of_the_mesh_as_pupils_or_the_middles_of_its_eyes():
    landmarks = random_landmarks(1, 478)
    face = face_of_landmarks(landmarks)
    assert face.shape == (70, 3)
    assert (face[:, 2] == 1).all()
    assert face[68, 0] == landmarks[468].x
    assert face[69, 0] == landmarks[473].x
    assert face[30, 0] == landmarks[4].x
    without = face_of_landmarks(landmarks[:468])
    assert np.array_equal(without, face_of_68(face[:68]))
    assert np.array_equal(without[:68], face[:68])


def body_at(x):
    """A body of which the nose and the wrists are seen."""
    body = np.zeros((18, 3))
    body[0], body[4], body[7] = (x, 10, 1), (x - 20, 60, 1), (x + 20, 60, 1)
    return body


def part_at(x, y, count, size):
    points = np.column_stack([x + np.linspace(0, size, count), np.full(count, y), np.ones(count)])
    return points


def test_hands_and_faces_go_to_those_whose_wrist_and_nose_they_are_at():
    bodies = [body_at(50), body_at(150)]
    right_of_first, left_of_second = part_at(31, 60, 21, 15), part_at(169, 61, 21, 15)
    face = part_at(0, 10, 70, 30)
    face[:, 0] += 150 - face[30, 0]  # the tip of its nose on the second's nose
    first, second = persons_of(bodies, [left_of_second, right_of_first], [face])
    assert np.array_equal(first.right_hand, right_of_first)
    assert np.array_equal(second.left_hand, left_of_second)
    assert not first.left_hand.any()
    assert not second.right_hand.any()
    assert not first.face.any()
    assert np.array_equal(second.face, face)


def test_a_hand_far_from_every_wrist_is_nobodys():
    (person,) = persons_of([body_at(50)], [part_at(150, 60, 21, 15)], None)
    assert not person.left_hand.any()
    assert not person.right_hand.any()
    assert person.face is None


def test_a_wrist_has_one_hand_the_nearest():
    near, farther = part_at(70, 61, 21, 15), part_at(70, 68, 21, 15)
    (person,) = persons_of([body_at(50)], [farther, near], None)
    assert np.array_equal(person.left_hand, near)
    assert not person.right_hand.any()


def test_the_score_of_a_hand_is_that_of_its_points(mediapipe, folder):
    body = [landmark(0.5, 0.5, 0.9) for _ in BODY]
    mediapipe.seen["PoseLandmarker"].pose_landmarks = [body]
    mediapipe.seen["HandLandmarker"].hand_landmarks = [[landmark(0.5 + step / 100, 0.5) for step in range(21)]]
    mediapipe.seen["HandLandmarker"].handedness = [[SimpleNamespace(category_name="Left", score=0.75)]]
    people = ANNOTATORS.create("pose", "mediapipe", weights=str(folder)).keypoints(np.zeros((64, 64, 3), np.uint8))
    hands = [hand for hand in (people.persons[0].left_hand, people.persons[0].right_hand) if hand.any()]
    assert len(hands) == 1
    assert (hands[0][:, 2] == 0.75).all()


def test_without_mediapipe_it_says_so_in_one_line(folder, photo, monkeypatch):
    monkeypatch.setattr("annotators.pose_mediapipe.find_spec", lambda name: None)
    annotator = ANNOTATORS.create("pose", "mediapipe", weights=str(folder))
    with pytest.raises(ImportError, match=r"^mediapipe is not installed: pip install mediapipe$"):
        annotator(photo)


def test_missing_files_are_named_with_their_page(folder):
    with pytest.raises(
        MissingWeights, match=r"pose_landmarker_full.task.*Apache-2.0.*https://ai.google.dev.*as weights$"
    ):
        ANNOTATORS.create("pose", "mediapipe").weight_files()
    (folder / "hand_landmarker.task").unlink()
    with pytest.raises(MissingWeights, match=r"has no hand_landmarker.task"):
        ANNOTATORS.create("pose", "mediapipe", weights=str(folder)).weight_files()


def test_nobody_at_all_cannot_be_looked_for():
    with pytest.raises(ValueError, match="pose: people=0: expected at least 1"):
        ANNOTATORS.create("pose", "mediapipe", people=0)
