"""DWPose: each step against a closed form or another implementation, and whole, through small ONNX files."""

import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import nms

from annotators import ANNOTATORS, MissingWeights
from annotators.pose_coco import body_of_coco, person_of_whole_body
from annotators.pose_dwpose import Crop, detector_input, persons_in, points_of_simcc
from annotators.pose_onnx import OnnxNetwork
from tests.annotators.pose_onnx_files import network, node
from tests.annotators.test_keypoints import some_points
from tests.conftest import draw_photo

CELLS = [(stride, 640 // stride) for stride in (8, 16, 32)]
BOX = 96  # pixels, of the persons that the small detector finds


def small_detector(path, wanted):
    """The detector's inputs and outputs; a person stands wherever a cell of 8 pixels is `wanted` of the channels."""
    nodes, constants = [], {"all": np.array([1, 85, -1])}
    for stride, _ in CELLS:
        score = np.zeros((81, 3, 1, 1))
        likely = np.full(81, -20.0)
        likely[1] = 20  # of the classes, a person
        if stride == 8:
            score[0, :, 0, 0] = np.where(np.arange(3) == wanted, 0.2, -0.2)
            likely[0] = -40
        box = [0.5, 0.5, np.log(BOX / stride), np.log(BOX / stride)]
        constants |= {
            f"box{stride}": np.zeros((4, 3, 1, 1)),
            f"at{stride}": np.array(box),
            f"score{stride}": score,
            f"likely{stride}": likely,
        }
        nodes += [
            node("AveragePool", ["images"], f"mean{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2),
            node("Conv", [f"mean{stride}", f"box{stride}", f"at{stride}"], f"boxes{stride}", kernel_shape=[1, 1]),
            node(
                "Conv", [f"mean{stride}", f"score{stride}", f"likely{stride}"], f"logits{stride}", kernel_shape=[1, 1]
            ),
            node("Sigmoid", [f"logits{stride}"], f"scores{stride}"),
            node("Concat", [f"boxes{stride}", f"scores{stride}"], f"grid{stride}", axis=1),
            node("Reshape", [f"grid{stride}", "all"], f"rows{stride}"),
        ]
    nodes.append(node("Concat", [f"rows{stride}" for stride, _ in CELLS], "rows", axis=2))
    nodes.append(node("Transpose", ["rows"], "output", perm=[0, 2, 1]))
    path.write_bytes(network(nodes, constants, {"images": (1, 3, 640, 640)}, {"output": (1, 8400, 85)}))


def small_pose(path):
    """The pose network's inputs and outputs; point i stands where the crop has most of the channel i % 3 alone."""
    colours = np.array([np.where(np.arange(3) == point % 3, 1.0, -1.0) for point in range(133)]) / 40
    constants = {
        "columns": np.repeat(colours[:, :, None, None], 384, axis=2),
        "rows": np.repeat(colours[:, :, None, None], 288, axis=3),
        "x": np.array([1, 133, 576]),
        "y": np.array([1, 133, 768]),
        "tall x": np.array([1, 133, 288, 1]),
        "tall y": np.array([1, 133, 384, 1]),
    }
    nodes = []
    for name, kernel, side in (("x", "columns", [384, 1]), ("y", "rows", [1, 288])):
        nodes += [
            node("Conv", ["input", kernel], f"sum {name}", kernel_shape=side),
            node("Reshape", [f"sum {name}", f"tall {name}"], f"each {name}"),
            node("Concat", [f"each {name}", f"each {name}"], f"twice {name}", axis=3),
            node("Reshape", [f"twice {name}", name], f"simcc_{name}"),
        ]
    outputs = {"simcc_x": (1, 133, 576), "simcc_y": (1, 133, 768)}
    path.write_bytes(network(nodes, constants, {"input": (1, 3, 384, 288)}, outputs))


BLUE, RED = 0, 2  # channels of BGR


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dwpose")
    small_detector(folder / "yolox_l.onnx", BLUE)
    small_pose(folder / "dw-ll_ucoco_384.onnx")
    return folder


def dwpose(weights, **options):
    return ANNOTATORS.create("pose", "dwpose", weights=str(weights), device="cpu", **options)


DOTS = {0: (-22, -25), 1: (20, 22)}  # red and green, from the middle of a person


def scene(width, height, *middles):
    """People on grey: a blue square, which the small detector sees, and around it a red and a green disc."""
    image = np.full((height, width, 3), 100, np.uint8)
    for x, y in middles:
        image[y - 8 : y + 8, x - 8 : x + 8] = (0, 0, 255)
        for channel, (across, down) in DOTS.items():
            cv2.circle(image, (x + across, y + down), 8, np.eye(3)[channel] * 255, -1)
    return image


def from_the_left(people):
    return sorted(people.persons, key=lambda person: person.body[0, 0])


def test_an_onnx_file_is_run_as_by_torch(tmp_path):
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(5, 3, 3, 3)).astype(np.float32), random.normal(size=5).astype(np.float32)
    convolved = node("Conv", ["x", "k", "b"], "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    outputs = {"y": (1, 5, 8, 9), "z": (1, 5, 8, 9)}
    path = tmp_path / "a.onnx"
    constants = {"k": kernel, "b": bias}
    path.write_bytes(network([convolved, node("Sigmoid", ["y"], "z")], constants, {"x": (1, 3, 16, 18)}, outputs))
    tensor = random.normal(size=(1, 3, 16, 18)).astype(np.float32)
    expected = torch.nn.functional.conv2d(*map(torch.from_numpy, (tensor, kernel, bias)), stride=2, padding=1)
    y, z = OnnxNetwork(path, "cpu")(tensor)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(z, expected.sigmoid(), atol=1e-5)


def test_each_network_is_fed_its_own_channel_order(weights, tmp_path):
    """People are found by blue in the detector's channel 0, red points in the pose network's channel 0."""
    middles = [(203, 150), (430, 301)]
    people = dwpose(weights).keypoints(scene(640, 480, *middles))
    assert len(people.persons) == 2
    for person, middle in zip(from_the_left(people), middles, strict=True):
        for points, first in ((person.face, 23), (person.left_hand, 91), (person.right_hand, 112)):
            for channel, dot in DOTS.items():
                seen = points[(channel - first) % 3 : 68 : 3]
                np.testing.assert_allclose(seen[:, :2], np.tile(np.add(middle, dot), (len(seen), 1)), atol=1)
    small_detector(tmp_path / "yolox_l.onnx", RED)
    (tmp_path / "dw-ll_ucoco_384.onnx").symlink_to(weights / "dw-ll_ucoco_384.onnx")
    blue = np.full((480, 640, 3), 100, np.uint8)
    blue[100:120, 200:220] = (0, 0, 255)
    assert len(dwpose(weights).keypoints(blue).persons) == 1
    assert len(dwpose(tmp_path).keypoints(blue[:, :, ::-1]).persons) == 1
    assert not dwpose(tmp_path).keypoints(blue).persons
    assert not dwpose(weights).keypoints(blue[:, :, ::-1]).persons


@pytest.mark.parametrize(("width", "height"), [(1280, 960), (320, 240), (640, 200), (800, 1000)])
def test_places_come_back_in_pixels_of_the_picture(weights, width, height):
    """The same people in the picture at another size, the frame about them kept."""
    scale = 640 / max(width, height)
    base = scene(round(width * scale), round(height * scale), (140, 90), (350, 100))
    image = cv2.resize(base, (width, height), interpolation=cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR)
    found, expected = dwpose(weights).keypoints(image), dwpose(weights).keypoints(base)
    assert (found.width, found.height) == (width, height)
    assert len(found.persons) == len(expected.persons) == 2
    for one, other in zip(from_the_left(found), from_the_left(expected), strict=True):
        for seen, there in ((one.left_hand, other.left_hand), (one.right_hand, other.right_hand)):
            by_dots = [number for number in range(21) if (seen[number, 2] > 0) and (there[number, 2] > 0)]
            assert len(by_dots) >= 14
            np.testing.assert_allclose((seen[by_dots, :2] + 0.5) * scale, there[by_dots, :2] + 0.5, atol=4)


def test_nobody_is_nobody(weights):
    image = np.full((64, 96, 3), 90, np.uint8)
    assert dwpose(weights).keypoints(image).persons == ()
    assert not dwpose(weights)(image).any()


def test_hands_and_face_can_be_left_out(weights):
    image = scene(320, 240, (150, 120))
    parts = [
        set(dwpose(weights, hands=hands, face=face).keypoints(image).persons[0].parts())
        for hands in (True, False)
        for face in (True, False)
    ]
    assert parts == [
        {"body", "left_hand", "right_hand", "face"},
        {"body", "left_hand", "right_hand"},
        {"body", "face"},
        {"body"},
    ]


def test_the_detector_sees_the_whole_picture_in_bgr():
    image = draw_photo(0, 320, 160)
    pixels, scale = detector_input(image)
    assert pixels.shape == (1, 3, 640, 640)
    assert (pixels.dtype, scale) == (np.float32, 2.0)
    assert (pixels[0, :, 320:] == 114).all()
    seen = pixels[0, ::-1, :320].transpose(1, 2, 0)  # RGB
    expected = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.interpolate(expected, (320, 640), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(seen, expected.permute(1, 2, 0), atol=1)


def answer_of(boxes, scores, stride=8):
    """What YOLOX answers for these boxes (left, top, right, bottom)."""
    rows = np.zeros((1, 8400, 85), np.float32)
    first = sum(side * side for each, side in CELLS if each < stride)
    side = 640 // stride
    for (left, top, right, bottom), score in zip(boxes, scores, strict=True):
        x, y = (left + right) / 2 / stride, (top + bottom) / 2 / stride
        cell = first + int(y) * side + int(x)
        size = np.log([(right - left) / stride, (bottom - top) / stride])
        rows[0, cell, :6] = (x - int(x), y - int(y), *size, np.sqrt(score), np.sqrt(score))
    return rows


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_boxes_of_every_stride_come_back_the_surest_first(stride):
    boxes = np.array([(40, 50, 140, 350), (300, 100, 410, 460), (500, 20, 600, 120)], float)
    found = persons_in(answer_of(boxes, [0.5, 0.9, 0.7], stride), 0.3)
    np.testing.assert_allclose(found, boxes[[1, 2, 0]], atol=1e-3)
    assert len(persons_in(answer_of(boxes, [0.5, 0.9, 0.7], stride), 0.6)) == 2
    assert persons_in(answer_of(boxes, [0.1, 0.1, 0.1], stride), 0.3).shape == (0, 4)


def test_one_person_is_found_once():
    """As torchvision suppresses them, at the same overlap."""
    random = np.random.default_rng(3)
    corners = random.uniform(50, 300, (60, 2))
    boxes = np.concatenate([corners, corners + random.uniform(60, 250, (60, 2))], axis=1)
    scores = random.uniform(0.3, 1, 60)
    rows = answer_of(boxes, scores)
    taken = rows[0, :, 4] > 0  # of boxes in one cell the last stands
    placed = np.array([np.isclose(rows[0, taken, 4] ** 2, score).any() for score in scores])
    boxes, scores = boxes[placed], scores[placed]
    expected = boxes[nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.45).numpy()]
    found = persons_in(rows, 0.3)
    assert 3 < len(expected) < len(boxes)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_other_classes_are_no_people():
    rows = answer_of([(40, 50, 140, 350)], [0.9])
    rows[0, :, [5, 6]] = rows[0, :, [6, 5]]
    assert not len(persons_in(rows, 0.3))


def test_simcc_gives_the_place_of_each_highest_bin():
    """Two bins a pixel; as certain as the less certain of the two."""
    simcc_x, simcc_y = np.zeros((1, 133, 576), np.float32), np.zeros((1, 133, 768), np.float32)
    expected = []
    for point in range(133):
        x, y = (17 * point) % 576, (29 * point) % 768
        simcc_x[0, point, x], simcc_y[0, point, y] = 0.2 + point / 200, 0.9 - point / 300
        expected.append((x / 2, y / 2, min(0.2 + point / 200, 0.9 - point / 300)))
    np.testing.assert_allclose(points_of_simcc(simcc_x, simcc_y), expected, rtol=1e-6)


@pytest.mark.parametrize("box", [(50, 60, 150, 360), (10, 20, 300, 90), (-30, -40, 60, 120), (7.5, 3.25, 19.5, 70.0)])
def test_a_crop_holds_its_box_with_room_and_leads_back(box):
    crop = Crop.around(box)
    left, top, right, bottom = box
    width, height = 288 / crop.scale, 384 / crop.scale
    assert width >= 1.25 * (right - left) - 1e-9
    assert height >= 1.25 * (bottom - top) - 1e-9
    assert min(width - 1.25 * (right - left), height - 1.25 * (bottom - top)) == pytest.approx(0, abs=1e-9)
    corners = crop.placed(np.array([(0, 0, 1), (288, 384, 1), (144, 192, 0.5)], float))
    middle = np.array([(left + right) / 2, (top + bottom) / 2])
    np.testing.assert_allclose(corners[:2, :2].mean(axis=0), middle)
    np.testing.assert_allclose(corners[1, :2] - corners[0, :2], (width, height))
    np.testing.assert_allclose(corners[2], (*middle, 0.5))


@pytest.mark.parametrize("box", [(30, 20, 70, 60), (-10, -10, 40, 50)])
def test_a_crop_shows_the_picture_as_torch_would_sample_it(box):
    """RGB, normalised by ImageNet; black beyond the picture."""
    image = draw_photo(2, 96, 64)
    crop = Crop.around(box)
    rows, columns, _ = np.indices((384, 288, 1))
    grid = np.stack([columns.ravel(), rows.ravel(), np.ones(rows.size)], axis=1).astype(float)
    places = torch.from_numpy(crop.placed(grid)[:, :2].reshape(1, 384, 288, 2)).float()
    places = 2 * places / torch.tensor([95.0, 63.0]) - 1
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    seen = torch.nn.functional.grid_sample(pixels, places, align_corners=True)[0]
    mean, spread = torch.tensor([0.485, 0.456, 0.406]) * 255, torch.tensor([0.229, 0.224, 0.225]) * 255
    expected = (seen - mean[:, None, None]) / spread[:, None, None]
    ours = crop.cut_from(image)
    assert ours.shape == (1, 3, 384, 288)
    assert np.abs(ours[0] - expected.numpy()).mean() < 0.02  # OpenCV rounds places to 1/32 pixel, and colours


def test_the_neck_is_the_middle_of_the_shoulders_as_sure_as_the_less_sure():
    points = some_points(1, 17)
    points[5], points[6] = (10, 20, 0.9), (30, 40, 0.4)
    assert body_of_coco(points)[1].tolist() == [20, 30, 0.4]
    points[5] = 0
    assert not body_of_coco(points)[1].any()


def test_bodies_of_coco_keep_right_and_left():
    """Each of COCO's joints at its own place, found again under OpenPose's number."""
    coco = (
        "nose leye reye lear rear lshoulder rshoulder lelbow relbow lwrist rwrist lhip rhip lknee rknee lankle rankle"
    )
    right, left = ("rshoulder relbow rwrist", "rhip rknee rankle"), ("lshoulder lelbow lwrist", "lhip lknee lankle")
    ours = " ".join(["nose neck", right[0], left[0], right[1], left[1], "reye leye rear lear"])
    places = {name: (number + 1, 2 * number + 5, 1) for number, name in enumerate(coco.split())}
    body = body_of_coco(np.array(list(places.values()), float))
    for name, point in zip(ours.split(), body, strict=True):
        if name != "neck":
            assert tuple(point) == places[name]


def test_a_whole_body_has_its_parts_in_their_order():
    points = np.column_stack([np.arange(133.0), np.zeros(133), np.ones(133)])
    person = person_of_whole_body(points)
    assert person.face[:68, 0].tolist() == list(range(23, 91))
    assert person.face[68:, 0].tolist() == [23 + 38.5, 23 + 44.5]
    assert person.left_hand[:, 0].tolist() == list(range(91, 112))
    assert person.right_hand[:, 0].tolist() == list(range(112, 133))


def test_a_gpu_that_opencv_cannot_use_is_refused(weights, photo):
    with pytest.raises(ValueError, match="device='cuda': OpenCV runs networks on the CPU; for a GPU, pip install"):
        ANNOTATORS.create("pose", "dwpose", weights=str(weights), device="cuda")(photo)


def test_what_is_no_network_is_refused_in_one_line(weights, tmp_path, photo):
    (tmp_path / "dw-ll_ucoco_384.onnx").symlink_to(weights / "dw-ll_ucoco_384.onnx")
    (tmp_path / "yolox_l.onnx").write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"^[^\n]*yolox_l.onnx: expected an ONNX network[^\n]*fetch it again$"):
        dwpose(tmp_path)(photo)


def test_networks_of_other_shapes_are_refused(weights, tmp_path):
    one_box = np.zeros((1, 100, 85), np.float32)
    with pytest.raises(ValueError, match=r"the detector answered \(1, 100, 85\), expected \(1, 8400, 85\)"):
        persons_in(one_box, 0.3)
    with pytest.raises(ValueError, match=r"expected \(1, 133, 576\) and \(1, 133, 768\)"):
        points_of_simcc(np.zeros((1, 17, 384)), np.zeros((1, 17, 512)))


def test_one_file_is_no_folder_of_two(weights):
    with pytest.raises(
        MissingWeights, match=r"is one file; name the folder that holds yolox_l.onnx, dw-ll_ucoco_384.onnx"
    ):
        ANNOTATORS.create("pose", "dwpose", weights=str(weights / "yolox_l.onnx")).weight_files()


def test_onnxruntime_runs_the_networks_where_it_is_installed(weights, monkeypatch, photo):
    """With its documented calls, which here lead to OpenCV."""
    asked = []

    class Session:
        def __init__(self, path, providers):
            asked.append(providers)
            self.network = cv2.dnn.readNetFromONNX(path)

        def get_inputs(self):
            return [SimpleNamespace(name="images")]

        def run(self, names, feeds):
            self.network.setInput(feeds["images"])
            return self.network.forward(self.network.getUnconnectedOutLayersNames())

    there = ["CPUExecutionProvider"]
    fake = SimpleNamespace(
        InferenceSession=Session, get_available_providers=lambda: there, __version__="9", __spec__=SimpleNamespace()
    )
    expected = dwpose(weights)(photo)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    assert np.array_equal(dwpose(weights)(photo), expected)
    assert asked == [["CPUExecutionProvider"]] * 2
    assert dwpose(weights).libraries()["onnxruntime"] == "9"
    with pytest.raises(ValueError, match="device='cuda:1': onnxruntime has CPUExecutionProvider here"):
        ANNOTATORS.create("pose", "dwpose", weights=str(weights), device="cuda:1")(photo)
    there.append("CUDAExecutionProvider")
    ANNOTATORS.create("pose", "dwpose", weights=str(weights), device="cuda:1")(photo)
    assert asked[-1][0] == ("CUDAExecutionProvider", {"device_id": 1})
