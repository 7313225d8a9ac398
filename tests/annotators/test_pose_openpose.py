"""OpenPose: the decoding against planted people and against the library, the networks in their published files."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

import annotators.pose_openpose
from annotators import ANNOTATORS, MissingWeights, auxiliary
from annotators.openpose_body import CHANNELS, LIMBS, peaks_of, people_of
from annotators.openpose_parts import Square, face_points, face_square, hand_points, hand_squares
from tests.annotators.test_keypoints import somebody
from tests.conftest import draw_photo

FIGURE = np.array(
    [(50, 20), (50, 40), (35, 40), (28, 60), (22, 80), (65, 40), (72, 60), (78, 80), (42, 85), (41, 110), (40, 135),
     (58, 85), (59, 110), (60, 135), (46, 16), (54, 16), (41, 19), (59, 19)], float
)  # fmt: skip
SIZE = (184, 288)  # height, width: nothing is resized at 184 pixels, nothing is padded


def bell(rows, columns, x, y, spread):
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * spread**2))


def plant(people, height, width, step=1):
    """What a perfect network says of these people: heat (H, W, 19) and fields (H, W, 38), at every `step` pixels."""
    rows, columns = np.indices((height // step, width // step)) * step + (step - 1) / 2
    heat = np.zeros((*rows.shape, 19), np.float32)
    fields = np.zeros((*rows.shape, 38), np.float32)
    for points in people:
        for kind in range(18):
            if points[kind, 2] > 0:
                heat[:, :, kind] = np.maximum(
                    heat[:, :, kind], points[kind, 2] * bell(rows, columns, *points[kind, :2], 7)
                )
        for (start, end), channel in zip(LIMBS, CHANNELS, strict=True):
            a, b = points[start], points[end]
            if min(a[2], b[2]) > 0:
                along = (b[:2] - a[:2]) / np.linalg.norm(b[:2] - a[:2])
                x, y = columns - a[0], rows - a[1]
                far = x * along[0] + y * along[1]
                beside = np.abs(x * along[1] - y * along[0])
                near = (far > -8) & (far < np.linalg.norm(b[:2] - a[:2]) + 8) & (beside < 8)
                fields[near, channel : channel + 2] = along
    heat[:, :, 18] = 1 - heat[:, :, :18].max(axis=2)
    return heat, fields


def figure(x=0.0, y=0.0, confidence=0.9, missing=()):
    points = np.column_stack([FIGURE + np.array([x, y]), np.full(18, confidence)])
    points[list(missing)] = 0
    return points


def by_place(people):
    return sorted(people, key=lambda points: points[points[:, 2] > 0, 0].mean())


def assert_same_people(found, expected, places, confidences):
    assert len(found) == len(expected)
    for one, other in zip(by_place(found), by_place(expected), strict=True):
        assert np.array_equal(one[:, 2] > 0, other[:, 2] > 0)
        np.testing.assert_allclose(one[:, :2], other[:, :2], atol=places)
        np.testing.assert_allclose(one[:, 2], other[:, 2], atol=confidences)


PLANTED = {
    "one": [figure(20, 10)],
    "three": [figure(0, 20, 0.9), figure(90, 25, 0.7), figure(180, 15, 0.8)],
    "without arms": [figure(100, 20, 0.9, missing=(3, 4, 6, 7))],
    "without a nose, joined by ear and shoulder": [figure(100, 20, 0.9, missing=(0,))],
    "nobody": [],
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_planted_people_are_found(planted):
    assert_same_people(people_of(*plant(planted, *SIZE)), planted, 0.05, 0.01)


@pytest.mark.parametrize("planted", [PLANTED["one"], PLANTED["three"], PLANTED["without arms"]])
def test_planted_people_are_found_as_by_the_library(planted):
    """The same network answers, decoded by controlnet_aux at its one scale, which changes nothing at this size."""
    heat, fields = (torch.from_numpy(each.transpose(2, 0, 1)[None]) for each in plant(planted, *SIZE, step=8))
    library = object.__new__(auxiliary.module("open_pose.body").Body)
    library.model = torch.nn.Linear(1, 1)
    library.model.forward = lambda pixels: (fields, heat)
    candidates, subset = library(np.zeros((*SIZE, 3), np.uint8))
    theirs = []
    for person in library.format_body_result(candidates, subset):
        points = np.zeros((18, 3))
        for kind, point in enumerate(person.keypoints):
            if point is not None:
                points[kind] = point[:3]
        theirs.append(points)

    whole = [
        interpolate(each, SIZE, mode="bicubic", align_corners=False)[0].permute(1, 2, 0) for each in (heat, fields)
    ]
    ours = people_of(*(each.numpy() for each in whole))
    assert_same_people(ours, theirs, 1.5, 0.05)
    assert_same_people(ours, planted, 0.5, 0.1)


def test_a_person_of_three_joints_is_none():
    seen = figure(20, 10, missing=[kind for kind in range(18) if kind not in (1, 2, 5)])
    assert people_of(*plant([seen], *SIZE)) == []


def test_peaks_lie_between_pixels_and_in_the_order_of_their_heat():
    rows, columns = np.indices((60, 80))
    heat = 0.5 * bell(rows, columns, 20.3, 30.6, 5) + 0.9 * bell(rows, columns, 60.75, 10.2, 5)
    peaks = peaks_of(heat.astype(np.float32))
    np.testing.assert_allclose(peaks[:, :2], [(60.75, 10.2), (20.3, 30.6)], atol=0.03)
    np.testing.assert_allclose(peaks[:, 2], [0.9, 0.5], atol=0.01)


def test_a_level_raster_has_one_peak_at_most_and_noise_has_a_bounded_number():
    assert len(peaks_of(np.full((40, 40), 0.5, np.float32))) <= 1
    assert len(peaks_of(np.random.default_rng(0).random((400, 400)).astype(np.float32))) == 127


def test_a_square_and_back():
    """What lies at a place of the square is what lies at that place of the picture."""
    image = np.zeros((90, 120, 3), np.uint8)  # filled with the grey that lies beyond it
    for square in (Square(20, 30, 40), Square(-15, 60, 50), Square(100, -10, 33)):
        x, y = min(square.x + 25, 110), max(square.y + 20, 15)
        image[:] = 128
        cv2.circle(image, (x, y), 5, (255, 255, 255), -1)
        for size in (40, 96, 20):
            seen = square.cut_from(image, size)
            assert seen.shape == (size, size, 3)
            bright = seen[:, :, 0] - 128.0
            rows, columns = np.indices(bright.shape)
            middle = np.array([[(bright * columns).sum(), (bright * rows).sum(), bright.sum()]]) / bright.sum()
            np.testing.assert_allclose(square.placed(middle, size)[0, :2], (x, y), atol=0.3)


def test_hands_and_faces_are_looked_for_where_the_library_does():
    util = auxiliary.module("open_pose.util")
    for seed in range(40):
        body = somebody(seed).body
        joints = [SimpleNamespace(x=x, y=y) if seen > 0 else None for x, y, seen in body]
        wide = 10_000  # of a picture whose edges cut nothing
        shifted = [None if j is None else SimpleNamespace(x=j.x + wide / 2, y=j.y + wide / 2) for j in joints]
        theirs = {
            left: box for *box, left in util.handDetect(SimpleNamespace(keypoints=shifted), np.empty((wide, wide, 0)))
        }
        for ours, left in zip(hand_squares(body), (True, False), strict=True):
            assert (ours is not None) == (left in theirs)
            if ours:
                np.testing.assert_allclose(np.add(ours, (wide / 2, wide / 2, 0)), theirs[left], atol=1.5)
        face, box = face_square(body), util.faceDetect(SimpleNamespace(keypoints=shifted), np.empty((wide, wide, 0)))
        assert (face is not None) == (box is not None)
        if face:
            np.testing.assert_allclose(np.add(face, (wide / 2, wide / 2, 0)), box, atol=1.5)


def test_a_point_of_a_hand_lies_in_the_warmest_region():
    """A single hot pixel beside a broad warm place is noise."""
    rows, columns = np.indices((128, 128))
    heat = np.zeros((128, 128, 21), np.float32)
    heat[:, :, 4] = 0.6 * bell(rows, columns, 40, 90, 6)
    heat[100, 10, 4] = 0.9
    points = hand_points(heat)
    assert points[4] == pytest.approx((40, 90, 0.6), abs=0.01)
    assert not np.delete(points, 4, axis=0).any()


def test_points_of_a_face_keep_their_numbers_when_others_are_missing():
    heat = np.full((48, 48, 70), 0.01, np.float32)
    heat[20, 30, 69] = 0.8
    points = face_points(heat)
    assert points[69] == pytest.approx((30, 20, 0.8))
    assert not points[:69].any()


def random_networks():
    """The three networks with random weights of which something comes out: peaks, and limbs to the right and below."""
    torch.manual_seed(0)
    made = {
        "body_pose_model.pth": auxiliary.module("open_pose.model").bodypose_model(),
        "hand_pose_model.pth": auxiliary.module("open_pose.model").handpose_model(),
        "facenet.pth": auxiliary.module("open_pose.face").FaceNet(),
    }
    for network in made.values():
        for name, weight in network.eval().named_parameters():
            if weight.ndim == 4:
                torch.nn.init.kaiming_normal_(weight)
            else:
                torch.nn.init.constant_(weight, 0.7 if "stage6_L1" in name and "Mconv7" in name else 0.0)
    return made


def save(networks, folder):
    """Into their published files, which name the layers of body and hand without their stage."""
    for name, network in networks.items():
        drop = 0 if name == "facenet.pth" else 1
        state = {".".join(key.split(".")[drop:]): value for key, value in network.state_dict().items()}
        torch.save(state, folder / name)
    return folder


@pytest.fixture(scope="module")
def networks():
    return random_networks()


@pytest.fixture(scope="module")
def weights(networks, tmp_path_factory):
    return save(networks, tmp_path_factory.mktemp("openpose"))


def test_the_networks_are_loaded_from_their_files_and_fed_as_the_library_feeds_them(networks, weights):
    """At a size at which nothing is resized; BGR from -0.5 to 0.5."""
    image = draw_photo(1, 96, 64)
    annotator = ANNOTATORS.create("pose", "openpose", weights=str(weights), device="cpu", resolution=64)
    pixels = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 256 - 0.5
    with torch.inference_mode():
        fields, heat = networks["body_pose_model.pth"](pixels)
    whole = [
        interpolate(each, (64, 96), mode="bicubic", align_corners=False)[0].permute(1, 2, 0) for each in (heat, fields)
    ]
    expected = people_of(*(each.numpy() for each in whole))
    people = annotator.keypoints(image)
    assert len(expected) > 1
    assert (people.width, people.height) == (96, 64)
    assert_same_people([person.body for person in people.persons], expected, 0.01, 0.01)
    assert all(person.parts().keys() == {"body"} for person in people.persons)


def test_hands_and_faces_come_from_their_own_networks(networks, weights, monkeypatch):
    """Against each network called directly on what the square shows; at one size, since four take long."""
    monkeypatch.setattr(annotators.pose_openpose, "_HAND_SIZES", (184,))
    image = draw_photo(1, 192, 128)
    options = {"weights": str(weights), "device": "cpu", "resolution": 64, "min_confidence": 0}
    body_alone = ANNOTATORS.create("pose", "openpose", **options).keypoints(image)
    people = ANNOTATORS.create("pose", "openpose", hands=True, face=True, **options).keypoints(image)
    assert len(people.persons) == len(body_alone.persons) > 1

    def asked(name, square, size, grid, count):
        pixels = torch.from_numpy(square.cut_from(image[:, :, ::-1], size)).permute(2, 0, 1)[None].float() / 256 - 0.5
        with torch.inference_mode():
            heat = networks[name](pixels)
        heat = heat[-1] if isinstance(heat, list) else heat
        heat = interpolate(heat, (grid, grid), mode="bicubic", align_corners=False)[0, :count]
        return heat.permute(1, 2, 0).numpy()

    looked_at = 0
    for person, alone in zip(people.persons, body_alone.persons, strict=True):
        np.testing.assert_allclose(person.body, alone.body, atol=0.01)
        for hand, square in zip((person.left_hand, person.right_hand), hand_squares(person.body), strict=True):
            assert hand.any() <= (square is not None)
            if square:
                points = hand_points(asked("hand_pose_model.pth", square, 184, 128, 21))
                np.testing.assert_allclose(hand, square.placed(points, 128), atol=0.01)
                looked_at += hand.any()
        square = face_square(person.body)
        if square:
            points = face_points(asked("facenet.pth", square, 384, 384, 70))
            np.testing.assert_allclose(person.face, square.placed(points, 384), atol=0.01)
            looked_at += person.face.any()
    assert looked_at > 1


class Seer(torch.nn.Module):
    """Answers as a perfect body network would that sees people as small as their share of its input."""

    def __init__(self, people, width, height):
        super().__init__()
        self.people, self.size, self.seen = people, (width, height), None

    def forward(self, pixels):
        self.seen = tuple(pixels.shape)
        scale = pixels.shape[3] / self.size[0]
        small = [np.column_stack([(each[:, :2] + 0.5) * scale - 0.5, each[:, 2]]) for each in self.people]
        heat, fields = plant(small, pixels.shape[2], pixels.shape[3], step=8)
        return tuple(torch.from_numpy(each.transpose(2, 0, 1)[None]) for each in (fields, heat))


def asking(network, **options):
    annotator = ANNOTATORS.create("pose", "openpose", device="cpu", **options)
    annotator.__dict__["_network"] = annotators.pose_openpose._Networks(network, None, None)
    return annotator


def test_the_resolution_is_that_of_the_shorter_side_and_places_come_back_in_pixels_of_the_picture():
    people = [figure(20, 20), figure(280, 30)]
    for resolution in (184, 368):
        network = Seer(people, 400, 200)
        found = asking(network, resolution=resolution).keypoints(np.zeros((200, 400, 3), np.uint8))
        assert network.seen == (1, 3, resolution, 2 * resolution)
        assert_same_people([person.body for person in found.persons], people, 1.0, 0.2)


def test_doubtful_points_are_not_seen():
    people = figure(20, 20, np.where(np.arange(18) == 4, 0.4, 0.9))
    found = asking(Seer([people], 200, 200), min_confidence=0.6).keypoints(np.zeros((200, 200, 3), np.uint8))
    assert np.nonzero(found.persons[0].body[:, 2] == 0)[0].tolist() == [4]


def test_confidences_are_the_networks_own():
    people = [figure(20, 20, 0.9), figure(280, 30, 0.6)]
    found = asking(Seer(people, 400, 200), resolution=368).keypoints(np.zeros((200, 400, 3), np.uint8))
    first, second = by_place([person.body for person in found.persons])
    assert 0.8 < first[:, 2].mean() < 0.91
    assert 0.5 < second[:, 2].mean() < 0.61


@pytest.mark.parametrize(
    ("options", "missing"),
    [({}, "body_pose_model.pth"), ({"hands": True}, "hand_pose_model.pth"), ({"face": True}, "facenet.pth")],
)
def test_only_what_is_asked_for_is_wanted(weights, tmp_path, options, missing):
    wanted = {"body_pose_model.pth", missing}
    for name in wanted:
        (tmp_path / name).symlink_to(weights / name)
    annotator = ANNOTATORS.create("pose", "openpose", weights=str(tmp_path), **options)
    assert {path.name for path in annotator.weight_files()} == wanted
    (tmp_path / missing).unlink()
    with pytest.raises(MissingWeights, match=f"has no {missing}; it wants .*non-commercial"):
        annotator.weight_files()


def test_one_file_is_no_folder_of_three(weights):
    file = weights / "body_pose_model.pth"
    assert ANNOTATORS.create("pose", "openpose", weights=str(file)).weight_files() == (file,)
    with pytest.raises(
        MissingWeights, match=r"is one file; name the folder that holds body_pose_model.pth, facenet.pth"
    ):
        ANNOTATORS.create("pose", "openpose", weights=str(file), face=True).weight_files()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "other"])
def test_what_are_no_weights_is_refused_in_one_line(content, tmp_path, photo):
    path = tmp_path / "body_pose_model.pth"
    if content == "other":
        torch.save({"conv1_1.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^[^\n]*body_pose_model.pth[^\n]*$"):
        ANNOTATORS.create("pose", "openpose", weights=str(tmp_path), device="cpu")(photo)


def test_a_resolution_at_which_nothing_is_seen_is_refused():
    with pytest.raises(ValueError, match="pose: resolution=8: expected at least 32"):
        ANNOTATORS.create("pose", "openpose", resolution=8)
