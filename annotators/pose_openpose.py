"""OpenPose: bodies from the bottom up, then a look at each hand and face; controlnet-aux's networks, our decoding.

The library looks at one scale of 184 pixels and drops the confidences; here the scale is a parameter and they stay.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from annotators import auxiliary
from annotators.dense import load_pickle, load_state
from annotators.geometry import scaled
from annotators.keypoints import FACE, HAND, People, Person
from annotators.openpose_body import people_of
from annotators.openpose_parts import face_points, face_square, hand_points, hand_squares
from annotators.pose import PoseAnnotator
from annotators.registry import ANNOTATORS
from annotators.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from annotators.contract import Image
    from annotators.keypoints import Points
    from annotators.openpose_parts import Square

    Raster = NDArray[np.float32]

_REPO, _LICENCE = "lllyasviel/Annotators", "CMU: non-commercial research only"
_BODY = Weights(_REPO, "body_pose_model.pth", 209.3, _LICENCE)
_HAND = Weights(_REPO, "hand_pose_model.pth", 147.3, _LICENCE)
_FACE = Weights(_REPO, "facenet.pth", 153.7, _LICENCE)

_STRIDE = 8  # of all three networks
_HAND_SIZES = (184, 368, 552, 736)  # at which a hand is looked at; the answers are averaged
_HAND_GRID = 128
_FACE_SIZE = 384
_AT_ONCE = 8  # squares that go through a network together


class _Networks(NamedTuple):
    body: Any
    hand: Any
    face: Any


class _Part(NamedTuple):
    """A square of a picture, whose it is and what it shows."""

    picture: int
    person: int
    name: str
    square: Square


@ANNOTATORS.register("pose", backend="openpose")
@dataclass(frozen=True)
class OpenPose(PoseAnnotator):
    """OpenPose of CMU, as published pose ControlNets were trained on; any number of people.

    resolution  pixels on the shorter side of what the body network sees: small people need more
    hands, face  look at those too
    """

    min_confidence: float = 0.05
    resolution: int = 368
    hands: bool = False
    face: bool = False

    licence: ClassVar[str] = "CMU's, for non-commercial research only (code and weights)"
    packages: ClassVar[tuple[str, ...]] = ("torch", "controlnet-aux", "opencv-python")
    needs: ClassVar[tuple[Weights, ...]] = (_BODY, _HAND, _FACE)

    def __post_init__(self) -> None:
        if self.resolution < 32:
            raise ValueError(f"pose: resolution={self.resolution}: expected at least 32 pixels")

    def wanted(self) -> tuple[Weights, ...]:
        return (_BODY, *([_HAND] if self.hands else []), *([_FACE] if self.face else []))

    def load(self) -> _Networks:
        model = auxiliary.module("open_pose.model")
        paths = dict(zip(self.wanted(), self.weight_files(), strict=True))

        def loaded(weights: Weights, make: Callable[[], Any]) -> Any:
            if weights not in paths:
                return None
            network, state = make(), load_pickle(paths[weights])
            if weights is not _FACE:  # the files name their layers without the stage that holds them
                short = {name: name.partition(".")[2] for name in network.state_dict()}
                state = {name: state[short[name]] for name in short if short[name] in state}
            return load_state(network, state, paths[weights]).to(self.torch_device())

        return _Networks(
            loaded(_BODY, model.bodypose_model),
            loaded(_HAND, model.handpose_model),
            loaded(_FACE, auxiliary.module("open_pose.face").FaceNet),
        )

    def find(self, images: Sequence[Image]) -> list[People]:
        pictures = [image[:, :, ::-1] for image in images]  # the networks know BGR
        bodies = self._bodies(pictures)
        parts = list(self._parts(bodies))
        points = self._hand_points(pictures, parts) | self._face_points(pictures, parts)
        return [
            People(
                image.shape[1],
                image.shape[0],
                tuple(Person(body, **self._of(picture, person, points)) for person, body in enumerate(bodies[picture])),
            )
            for picture, image in enumerate(images)
        ]

    def _bodies(self, pictures: Sequence[Image]) -> list[list[Points]]:
        """The joints of everybody in each picture, in its pixels."""
        import numpy as np

        small = [scaled(picture, self.resolution) for picture in pictures]
        together: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for number, picture in enumerate(small):
            together[picture.shape].append(number)
        found: dict[int, list[Points]] = {}
        for (height, width, _), numbers in together.items():
            answers = self._body_answers(np.stack([small[number] for number in numbers]))
            for number, heat, fields in zip(numbers, *answers, strict=True):
                scale = pictures[number].shape[1] / width, pictures[number].shape[0] / height
                found[number] = [_at_scale(body, *scale) for body in people_of(heat, fields)]
        return [found[number] for number in range(len(pictures))]

    def _body_answers(self, stack: NDArray[np.uint8]) -> tuple[Raster, Raster]:
        """heat (B, H, W, 19) and fields (B, H, W, 38) of pictures (B, H, W, 3) BGR."""
        import numpy as np

        height, width = stack.shape[1:3]
        padding = ((0, 0), (0, -height % _STRIDE), (0, -width % _STRIDE), (0, 0))
        pixels = self._pixels(np.pad(stack, padding, constant_values=128))
        fields, heat = _run(self.network.body, pixels)

        def whole(answer: Tensor) -> Raster:
            size = pixels.shape[2], pixels.shape[3]
            return _enlarged(answer, size)[:, :height, :width]

        return whole(heat), whole(fields)

    def _parts(self, bodies: list[list[Points]]) -> Iterator[_Part]:
        for picture, persons in enumerate(bodies):
            for person, body in enumerate(persons):
                left, right = hand_squares(body) if self.hands else (None, None)
                face = face_square(body) if self.face else None
                for name, square in (("left_hand", left), ("right_hand", right), ("face", face)):
                    if square is not None:
                        yield _Part(picture, person, name, square)

    def _hand_points(self, pictures: Sequence[Image], parts: Iterable[_Part]) -> dict[tuple[int, int, str], Points]:
        import numpy as np

        found = {}
        for some in _chunks([part for part in parts if part.name != "face"]):
            heat: Any = 0.0
            for size in _HAND_SIZES:
                seen = np.stack([part.square.cut_from(pictures[part.picture], size) for part in some])
                answer = _run(self.network.hand, self._pixels(seen))[:, :HAND]
                heat = heat + _enlarged(answer, (_HAND_GRID, _HAND_GRID)) / len(_HAND_SIZES)
            for part, raster in zip(some, heat, strict=True):
                found[part[:3]] = part.square.placed(hand_points(raster), _HAND_GRID)
        return found

    def _face_points(self, pictures: Sequence[Image], parts: Iterable[_Part]) -> dict[tuple[int, int, str], Points]:
        import numpy as np

        found = {}
        for some in _chunks([part for part in parts if part.name == "face"]):
            seen = np.stack([part.square.cut_from(pictures[part.picture], _FACE_SIZE) for part in some])
            answer = _run(self.network.face, self._pixels(seen))[-1][:, :FACE]
            for part, raster in zip(some, _enlarged(answer, (_FACE_SIZE, _FACE_SIZE)), strict=True):
                found[part[:3]] = part.square.placed(face_points(raster), _FACE_SIZE)
        return found

    def _of(self, picture: int, person: int, points: dict[tuple[int, int, str], Points]) -> dict[str, Points]:
        """The hands and the face of a person; without a point where they were looked for and are not to be seen."""
        import numpy as np

        asked = {"left_hand": HAND, "right_hand": HAND} if self.hands else {}
        asked |= {"face": FACE} if self.face else {}
        return {name: points.get((picture, person, name), np.zeros((count, 3))) for name, count in asked.items()}

    def _pixels(self, stack: NDArray[np.uint8]) -> Tensor:
        import torch

        pixels = torch.from_numpy(stack).to(self.torch_device()).permute(0, 3, 1, 2)
        return pixels.float() / 256 - 0.5


def _run(network: Any, pixels: Tensor) -> Any:
    import torch

    with torch.inference_mode():
        return network(pixels)


def _enlarged(answer: Tensor, size: tuple[int, int]) -> Raster:
    """(B, C, h, w) as an array (B, H, W, C) of that size."""
    from torch.nn.functional import interpolate

    whole = interpolate(answer, size, mode="bicubic", align_corners=False)
    raster: Raster = whole.permute(0, 2, 3, 1).float().cpu().numpy()
    return raster


def _at_scale(points: Points, scale_x: float, scale_y: float) -> Points:
    import numpy as np

    scale, half = np.array([scale_x, scale_y, 1.0]), np.array([0.5, 0.5, 0.0])
    moved: Points = ((points + half) * scale - half) * (points[:, 2:] > 0)
    return moved


def _chunks(parts: list[_Part]) -> Iterator[list[_Part]]:
    for start in range(0, len(parts), _AT_ONCE):
        yield parts[start : start + _AT_ONCE]
