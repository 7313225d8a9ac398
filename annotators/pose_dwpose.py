"""DWPose: YOLOX finds the people, RTMPose the 133 points of each, both as ONNX files.

Each is fed what it was trained on: YOLOX plain BGR from 0 to 255, RTMPose RGB normalised by ImageNet. A port that
hands one array to both feeds one of them wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from annotators.keypoints import People
from annotators.pose import PoseAnnotator
from annotators.pose_coco import WHOLE_BODY, person_of_whole_body
from annotators.pose_onnx import OnnxNetwork, onnxruntime_version
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image
    from annotators.keypoints import Points

    Boxes = NDArray[np.float64]
    Tensor = NDArray[np.float32]

_REPO = "yzd-v/DWPose"
_DETECTOR = Weights(_REPO, "yolox_l.onnx", 216.7, "Apache-2.0")
_POSE = Weights(_REPO, "dw-ll_ucoco_384.onnx", 134.4, "Apache-2.0")

# YOLOX
_SIDE = 640
_PADDING = 114
_STRIDES = (8, 16, 32)
_PERSON = 0  # of COCO's 80 classes
_SAME = 0.45  # overlap from which two boxes are one person

# RTMPose
_CROP = (288, 384)  # width, height
_ROOM = 1.25  # of the crop, around the box
_BINS = 2  # of SimCC, for a pixel of the crop
_MEAN, _SPREAD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class _Networks(NamedTuple):
    detector: OnnxNetwork
    pose: OnnxNetwork


@ANNOTATORS.register("pose", backend="dwpose", default=True)
@dataclass(frozen=True)
class DwPose(PoseAnnotator):
    """Body, hands and face of everybody by DWPose; runs without torch.

    hands, face  keep those too
    person_score  the least of a person that is looked at
    """

    hands: bool = True
    face: bool = True
    person_score: float = 0.3

    licence: ClassVar[str] = "Apache-2.0 (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("opencv-python",)
    needs: ClassVar[tuple[Weights, ...]] = (_DETECTOR, _POSE)

    def load(self) -> _Networks:
        return _Networks(*(OnnxNetwork(path, self.device) for path in self.weight_files()))

    def libraries(self) -> dict[str, str]:
        version = onnxruntime_version()
        return super().libraries() | ({} if version is None else {"onnxruntime": version})

    def find(self, images: Sequence[Image]) -> list[People]:
        """One picture and one person at a time: the files promise no other batch than one."""
        return [self._people(image) for image in images]

    def _people(self, image: Image) -> People:
        pixels, scale = detector_input(image)
        boxes = persons_in(self.network.detector(pixels)[0], self.person_score) / scale
        persons = []
        for box in boxes:
            crop = Crop.around(box)
            answers = self.network.pose(crop.cut_from(image))
            simcc_x, simcc_y = sorted(answers, key=lambda answer: answer.shape[-1])  # whatever their order in the file
            points = crop.placed(points_of_simcc(simcc_x, simcc_y))
            persons.append(person_of_whole_body(points, hands=self.hands, face=self.face))
        return People(image.shape[1], image.shape[0], tuple(persons))


def detector_input(image: Image) -> tuple[Tensor, float]:
    """The picture in the upper left of 640 x 640, BGR (1, 3, 640, 640), and its scale there."""
    import cv2
    import numpy as np

    height, width = image.shape[:2]
    scale = min(_SIDE / height, _SIDE / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    padded = np.full((_SIDE, _SIDE, 3), _PADDING, np.uint8)
    padded[: size[1], : size[0]] = cv2.resize(image[:, :, ::-1], size, interpolation=cv2.INTER_LINEAR)
    return padded.transpose(2, 0, 1)[None].astype(np.float32), scale


def persons_in(answer: Tensor, least: float) -> Boxes:
    """Boxes (n, 4) of left, top, right, bottom in the detector's pixels, the surest person first.

    A row of the answer (1, 8400, 85) is of one cell: where its box's centre lies from the cell's corner, and the
    logarithms of the box's width and height, all in cells; whether there is anything; and the scores of the classes.
    """
    import cv2
    import numpy as np

    rows = answer.reshape(-1, answer.shape[-1]).astype(np.float64)
    corners, strides = _cells()
    if len(rows) != len(corners) or rows.shape[1] <= 5 + _PERSON:
        raise ValueError(
            f"the detector answered {answer.shape}, expected (1, {len(corners)}, 85): not a YOLOX of 640 pixels"
        )
    scores = rows[:, 4] * rows[:, 5 + _PERSON]
    likely = scores >= least
    rows, scores = rows[likely], scores[likely]
    centres = (rows[:, :2] + corners[likely]) * strides[likely]
    sizes = np.exp(rows[:, 2:4]) * strides[likely]
    boxes = np.concatenate([centres - sizes / 2, sizes], axis=1)
    kept = cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, _SAME) if len(boxes) else []
    chosen = boxes[np.asarray(kept, int).reshape(-1)]
    return np.concatenate([chosen[:, :2], chosen[:, :2] + chosen[:, 2:]], axis=1)


def points_of_simcc(simcc_x: Tensor, simcc_y: Tensor) -> Points:
    """Points (133, 3) in pixels of the crop: the likeliest column and row; as certain as the less certain of them."""
    import numpy as np

    columns, rows = simcc_x.reshape(-1, simcc_x.shape[-1]), simcc_y.reshape(-1, simcc_y.shape[-1])
    if columns.shape != (WHOLE_BODY, _BINS * _CROP[0]) or rows.shape != (WHOLE_BODY, _BINS * _CROP[1]):
        shapes = " and ".join(f"(1, {WHOLE_BODY}, {_BINS * side})" for side in _CROP)
        raise ValueError(f"the pose network answered {simcc_x.shape} and {simcc_y.shape}, expected {shapes}")
    confidence = np.minimum(columns.max(axis=1), rows.max(axis=1))
    return np.stack([columns.argmax(axis=1) / _BINS, rows.argmax(axis=1) / _BINS, confidence], axis=1).astype(float)


class Crop(NamedTuple):
    """What RTMPose sees of a person: 288 x 384 crop pixels around `x`, `y`, `scale` of them to a pixel."""

    x: float
    y: float
    scale: float

    @staticmethod
    def around(box: Sequence[float] | Boxes) -> Crop:
        """The smallest that holds the box (left, top, right, bottom) and the room around it."""
        left, top, right, bottom = (float(side) for side in box)
        scale = min(_CROP[0] / max(right - left, 1e-6), _CROP[1] / max(bottom - top, 1e-6)) / _ROOM
        return Crop((left + right) / 2, (top + bottom) / 2, scale)

    def cut_from(self, image: Image) -> Tensor:
        """RGB (1, 3, 384, 288), normalised; black beyond the picture."""
        import cv2
        import numpy as np

        across, down = _CROP[0] / 2 - self.scale * self.x, _CROP[1] / 2 - self.scale * self.y
        matrix = np.array([[self.scale, 0, across], [0, self.scale, down]])
        crop = cv2.warpAffine(np.ascontiguousarray(image), matrix, _CROP, flags=cv2.INTER_LINEAR)
        normal = (crop - np.array(_MEAN)) / np.array(_SPREAD)
        return np.ascontiguousarray(normal.transpose(2, 0, 1)[None], dtype=np.float32)

    def placed(self, points: Points) -> Points:
        """Points (n, 3) of the crop, in pixels of the picture."""
        import numpy as np

        middle = np.array([_CROP[0] / 2, _CROP[1] / 2])
        return np.column_stack([(points[:, :2] - middle) / self.scale + [self.x, self.y], points[:, 2]])


def _cells() -> tuple[Boxes, Boxes]:
    """The corners (8400, 2) of the detector's cells, in cells, and their sides (8400, 1) in pixels."""
    import numpy as np

    corners, strides = [], []
    for stride in _STRIDES:
        rows, columns = np.divmod(np.arange((_SIDE // stride) ** 2), _SIDE // stride)
        corners.append(np.stack([columns, rows], axis=1))
        strides.append(np.full((len(rows), 1), stride))
    return np.concatenate(corners).astype(float), np.concatenate(strides).astype(float)
