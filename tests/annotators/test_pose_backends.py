"""Over every backend of poses: the contract of maps, and that the keypoints are what the map is drawn from."""

import json
import pickle
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import annotators.network
from annotators import ANNOTATORS, MissingWeights, annotate_many
from annotators.contract import parameters_of
from annotators.keypoints import People
from annotators.pose_drawing import draw
from tests.annotators import test_pose_dwpose, test_pose_mediapipe, test_pose_openpose, test_pose_vitpose
from tests.conftest import draw_photo

NETWORKS = [each for each in ANNOTATORS.backends("pose") if each != "toybox"]


def openpose(folder, monkeypatch):
    test_pose_openpose.save(test_pose_openpose.random_networks(), folder)
    return {"resolution": 64}


def dwpose(folder, monkeypatch):
    test_pose_dwpose.small_detector(folder / "yolox_l.onnx", test_pose_dwpose.BLUE)
    test_pose_dwpose.small_pose(folder / "dw-ll_ucoco_384.onnx")
    return {}


def vitpose(folder, monkeypatch):
    test_pose_vitpose.save_pose(folder)
    (folder / "detector").mkdir()
    return {"detector": str(test_pose_vitpose.save_detector(folder / "detector"))}


def mediapipe(folder, monkeypatch):
    """The stand-in sees a body where a picture is brightest."""
    fake = test_pose_mediapipe.stand_in()

    def seen(picture):
        grey = picture[1].mean(axis=2)
        row, column = np.unravel_index(grey.argmax(), grey.shape)
        x, y = (column + 0.5) / grey.shape[1], (row + 0.5) / grey.shape[0]
        steps = np.linspace(-0.2, 0.2, 33)
        return SimpleNamespace(
            pose_landmarks=[[test_pose_mediapipe.landmark(x + step, y + step**2, 0.8) for step in steps]]
        )

    fake.tasks.vision.PoseLandmarker = SimpleNamespace(create_from_options=lambda _: SimpleNamespace(detect=seen))
    monkeypatch.setitem(sys.modules, "mediapipe", fake)
    version = annotators.network.version
    monkeypatch.setattr(annotators.network, "version", lambda name: "9" if name == "mediapipe" else version(name))
    test_pose_mediapipe.write_tasks(folder)
    return {}


WRITERS = {"openpose": openpose, "dwpose": dwpose, "vitpose": vitpose, "mediapipe": mediapipe}


@pytest.fixture(scope="module", params=NETWORKS)
def annotator(request, tmp_path_factory):
    """Each backend with small or random weights in its published files, and a stand-in where a library is missing."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        options = WRITERS[request.param](folder, monkeypatch)
        yield ANNOTATORS.create("pose", request.param, weights=str(folder), device="cpu", **options)


def picture(width=96, height=64):
    """A photograph with blue in it, which the small detector of DWPose takes for a person."""
    image = draw_photo(5, width, height)
    cv2.rectangle(image, (width // 4, height // 4), (width // 2, height // 2), (0, 0, 255), -1)
    return image


@pytest.fixture(scope="module")
def people(annotator):
    return annotator.keypoints(picture())


def test_the_contract(annotator):
    """Same size at any size, uint8 RGB, the same map again, the picture untouched."""
    crowdless = draw_photo(5, 1, 1)  # all blue it would be a crowd of hundreds
    for image in (picture(96, 64), crowdless, picture(7, 1), picture(17, 33)):
        before = image.copy()
        made = annotator(image)
        assert made.shape == image.shape
        assert made.dtype == np.uint8
        assert np.array_equal(image, before)
    assert np.array_equal(made, annotator(image))


def test_the_map_is_drawn_from_the_keypoints_and_again_from_their_json(annotator, people):
    assert people.persons
    assert (people.width, people.height) == (96, 64)
    made = annotator(picture())
    assert made.any()
    assert np.array_equal(made, draw(people, 96, 64))
    assert np.array_equal(made, draw(People.from_json(json.loads(json.dumps(people.to_json()))), 96, 64))


def test_confidences_are_true(annotator, people):
    """Neither all 1 nor below what was asked for, where the network has a confidence for each point."""
    seen = np.concatenate(
        [points[points.any(axis=1), 2] for each in people.persons for points in each.parts().values()]
    )
    assert (seen >= annotator.min_confidence).all()
    assert annotator.backend == "mediapipe" or len(np.unique(seen)) > 1
    assert (seen != 1).any()


def test_pictures_that_share_a_batch_do_not_share_their_maps(annotator):
    images = [picture(), draw_photo(2), np.full((64, 96, 3), 90, np.uint8), picture(70, 41)]
    alone, together = [annotator(image) for image in images], annotate_many(annotator, images)
    for one, other in zip(alone, together, strict=True):
        assert (np.abs(one.astype(int) - other) > 1).mean() < 0.005
    assert not np.array_equal(alone[0], alone[2])


def test_a_view_that_is_not_contiguous_gives_the_same_map(annotator):
    image = picture()
    assert np.array_equal(annotator(image[:, ::-1]), annotator(np.ascontiguousarray(image[:, ::-1])))


def test_a_copy_in_another_process_loads_its_own_networks(annotator):
    annotator(picture())
    copy = pickle.loads(pickle.dumps(annotator))
    assert copy == annotator
    assert "_network" not in copy.__dict__


def test_the_ledger_names_what_decides_the_map_and_nothing_else(annotator):
    assert not {"device", "weights", "offline", "detector"} & set(parameters_of(annotator))
    assert "min_confidence" in parameters_of(annotator)
    libraries = annotator.libraries()
    assert all(isinstance(version, str) and version for version in libraries.values())
    assert {"weights", "opencv-python"} <= set(libraries)
    assert annotator.licence
    annotator.ready()


@pytest.mark.parametrize("backend", NETWORKS)
def test_what_is_no_picture_is_refused_before_a_network_is_loaded(backend):
    with pytest.raises(ValueError, match=r"pose: expected uint8 \(H, W, 3\) RGB, got float32"):
        ANNOTATORS.create("pose", backend)(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="pose: the picture is empty"):
        ANNOTATORS.create("pose", backend)(np.zeros((0, 8, 3), np.uint8))


@pytest.mark.parametrize("backend", NETWORKS)
def test_missing_weights_are_said_in_one_line(backend, tmp_path):
    for options in ({"offline": True}, {"weights": str(tmp_path)}):
        with pytest.raises(MissingWeights, match=r"^[^\n]+$") as reason:
            ANNOTATORS.create("pose", backend, **options).weight_files()
        first = ANNOTATORS.class_of("pose", backend).needs[0]
        assert all(word in str(reason.value) for word in (first.file, first.licence, f"{first.megabytes:g} MB"))


def test_every_network_is_tested_here():
    assert set(NETWORKS) == set(WRITERS)
