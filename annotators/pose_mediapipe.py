"""MediaPipe's landmarkers through its Tasks API, each from a .task file on this machine.

Bodies have 33 landmarks, hands 21, faces 478 (468 without the irises); all come as shares of the picture. Hands and
faces are found apart from the bodies, and are given to the person whose wrist or nose is where theirs is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from annotators.keypoints import FACE, HAND, People, Person, face_of_68
from annotators.pose import PoseAnnotator
from annotators.pose_coco import body_of_coco
from annotators.registry import ANNOTATORS
from annotators.weights import MissingWeights, Weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annotators.contract import Image
    from annotators.keypoints import Points

_STORE = "storage.googleapis.com/mediapipe-models"
_BODY = Weights(_STORE, "pose_landmarker_full.task", 9.4, "Apache-2.0")
_HAND = Weights(_STORE, "hand_landmarker.task", 7.8, "Apache-2.0")
_FACE = Weights(_STORE, "face_landmarker.task", 3.8, "Apache-2.0")
_PAGE = "https://ai.google.dev/edge/mediapipe/solutions/vision"

_LEFT_WRIST, _RIGHT_WRIST, _NOSE = 7, 4, 0  # of OpenPose's body
_TIP_OF_NOSE = 30  # of iBUG's face

# COCO's 17 among MediaPipe's 33, and iBUG's 68 among its 468: jaw, brows, nose, eyes, lips outside and inside.
_COCO = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
_IBUG = (
    127, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300,
    168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,
    78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
_PUPILS = (468, 473)

_ONE_AT_A_TIME = threading.Lock()  # its tasks do not say that threads may share them


class _Tasks(NamedTuple):
    body: Any
    hand: Any
    face: Any


@ANNOTATORS.register("pose", backend="mediapipe")
@dataclass(frozen=True)
class MediaPipe(PoseAnnotator):
    """Body, hands and face by MediaPipe; quick on a CPU.

    people  at most so many are looked for
    hands, face  look for those too; a face has no confidences of its own and counts as sure
    """

    min_confidence: float = 0.5
    people: int = 8
    hands: bool = True
    face: bool = True

    licence: ClassVar[str] = "Apache-2.0 (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("mediapipe", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (_BODY, _HAND, _FACE)

    def __post_init__(self) -> None:
        if self.people < 1:
            raise ValueError(f"pose: people={self.people}: expected at least 1")

    def wanted(self) -> tuple[Weights, ...]:
        return (_BODY, *([_HAND] if self.hands else []), *([_FACE] if self.face else []))

    def weight_files(self) -> tuple[Path, ...]:
        """Their publisher keeps them on no hub, so they are where `weights` says or nowhere."""
        if self.weights is None:
            files = ", ".join(str(each) for each in self.wanted())
            raise MissingWeights(f"pose=mediapipe: get {files} from {_PAGE}, and name their folder as weights")
        return super().weight_files()

    def load(self) -> _Tasks:
        if find_spec("mediapipe") is None:
            raise ImportError("mediapipe is not installed: pip install mediapipe")
        mediapipe: Any = import_module("mediapipe")
        if self.device not in (None, "cpu"):
            raise ValueError(f"device={self.device!r}: MediaPipe runs on the CPU here; use device=cpu")
        tasks, paths = mediapipe.tasks, dict(zip(self.wanted(), self.weight_files(), strict=True))

        def made(weights: Weights, name: str, **options: Any) -> Any:
            if weights not in paths:
                return None
            base = tasks.BaseOptions(model_asset_path=str(paths[weights]))
            options |= {"base_options": base, "running_mode": tasks.vision.RunningMode.IMAGE}
            all_options = getattr(tasks.vision, f"{name}Options")(**options)
            return getattr(tasks.vision, name).create_from_options(all_options)

        return _Tasks(
            made(_BODY, "PoseLandmarker", num_poses=self.people),
            made(_HAND, "HandLandmarker", num_hands=2 * self.people),
            made(_FACE, "FaceLandmarker", num_faces=self.people),
        )

    def find(self, images: Sequence[Image]) -> list[People]:
        return [self._people(image) for image in images]

    def _people(self, image: Image) -> People:
        import numpy as np

        network = self.network
        mediapipe: Any = import_module("mediapipe")
        picture = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))
        with _ONE_AT_A_TIME:
            bodies = network.body.detect(picture)
            hands = network.hand.detect(picture) if network.hand else None
            faces = network.face.detect(picture) if network.face else None
        height, width = image.shape[:2]
        scale = np.array([width, height, 1.0])
        found = [body_of_landmarks(landmarks) for landmarks in bodies.pose_landmarks]
        persons = persons_of(
            [body * scale for body in found],
            None if hands is None else [points * scale for points in hands_of(hands)],
            None if faces is None else [face_of_landmarks(each) * scale for each in faces.face_landmarks],
        )
        half = np.array([0.5, 0.5, 0.0])
        return People(width, height, tuple(person.map(lambda points: points - half) for person in persons))


def body_of_landmarks(landmarks: Sequence[Any]) -> Points:
    """OpenPose's 18 from MediaPipe's 33; a landmark's visibility is its confidence."""
    import numpy as np

    points = [(landmarks[number].x, landmarks[number].y, landmarks[number].visibility) for number in _COCO]
    return body_of_coco(np.array(points, float))


def hands_of(result: Any) -> list[Points]:
    """The hands (21, 3), which have OpenPose's order; all points as sure as it is which hand they are of."""
    import numpy as np

    return [
        np.array([(landmark.x, landmark.y, kinds[0].score) for landmark in landmarks], float)
        for landmarks, kinds in zip(result.hand_landmarks, result.handedness, strict=True)
    ]


def face_of_landmarks(landmarks: Sequence[Any]) -> Points:
    """OpenPose's 70 from MediaPipe's 478; from 468, which have no irises, the pupils are the middles of the eyes."""
    import numpy as np

    points = np.array([(landmark.x, landmark.y, 1.0) for landmark in landmarks], float)
    face = points[list(_IBUG)]
    return np.concatenate([face, points[list(_PUPILS)]]) if len(points) > max(_PUPILS) else face_of_68(face)


def persons_of(bodies: list[Points], hands: list[Points] | None, faces: list[Points] | None) -> list[Person]:
    """The people, each with the hands at its wrists and the face at its nose; None: not looked for.

    A hand goes to the nearest wrist that has none yet, if that is not farther than the hand is long, whatever side
    MediaPipe says it is of: it takes pictures for mirrored ones. A face goes likewise to a nose. The others belong to
    nobody who was found.
    """
    import numpy as np

    wrists = [(person, side) for person in range(len(bodies)) for side in (_LEFT_WRIST, _RIGHT_WRIST)]
    hand_at = _nearest([bodies[person][side] for person, side in wrists], hands or [], 0)
    face_at = _nearest([body[_NOSE] for body in bodies], faces or [], _TIP_OF_NOSE)
    at_wrist = {wrists[place]: points for place, points in hand_at.items()}
    no_hand, no_face = np.zeros((HAND, 3)), np.zeros((FACE, 3))
    return [
        Person(
            body,
            None if hands is None else at_wrist.get((number, _LEFT_WRIST), no_hand),
            None if hands is None else at_wrist.get((number, _RIGHT_WRIST), no_hand),
            None if faces is None else face_at.get(number, no_face),
        )
        for number, body in enumerate(bodies)
    ]


def _nearest(anchors: list[Points], parts: list[Points], joint: int) -> dict[int, Points]:
    """Which part is at which anchor (3,), by the part's point `joint`: the nearest pairs first."""
    import numpy as np

    pairs = sorted(
        (float(np.linalg.norm(anchor[:2] - part[joint, :2])), place, number)
        for place, anchor in enumerate(anchors)
        for number, part in enumerate(parts)
        if anchor[2] > 0
    )
    found: dict[int, Points] = {}
    taken: set[int] = set()
    for distance, place, number in pairs:
        size = float(np.ptp(parts[number][:, :2], axis=0).max())
        if place not in found and number not in taken and distance <= size:
            found[place] = parts[number]
            taken.add(number)
    return found
