"""Where the joints of people are in a picture: one type for every pose network, and OpenPose's JSON of it.

x, y: pixels, whole numbers at the centres of pixels. A confidence of 0 means not seen, and then x = y = 0.
The orders are OpenPose's: body 18 (its COCO model), hand 21, face 70 (the 68 of iBUG and the two pupils).
"Right" is the person's right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Points = NDArray[np.float64]

BODY, HAND, FACE = 18, 21, 70

_PARTS = {
    "body": ("pose_keypoints_2d", BODY),
    "left_hand": ("hand_left_keypoints_2d", HAND),
    "right_hand": ("hand_right_keypoints_2d", HAND),
    "face": ("face_keypoints_2d", FACE),
}

# OpenPose's BODY_25 has a point between the hips and six of the feet; the rest are ours.
_OF_BODY_25 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
_RIGHT_EYE, _LEFT_EYE = slice(36, 42), slice(42, 48)


@dataclass(frozen=True, eq=False)
class Person:
    """Arrays (points, 3) of x, y, confidence; None: that part was not looked for."""

    body: Points
    left_hand: Points | None = None
    right_hand: Points | None = None
    face: Points | None = None

    def __post_init__(self) -> None:
        for part, (_, count) in _PARTS.items():
            points = getattr(self, part)
            if points is not None:
                object.__setattr__(self, part, _checked(part, points, count))

    def map(self, change: Callable[[Points], Points]) -> Person:
        """The person with each part's points changed."""
        return Person(**{part: change(points) for part, points in self.parts().items()})

    def is_seen(self) -> bool:
        """Whether any point of any part is."""
        return any(points.any() for points in self.parts().values())

    def parts(self) -> dict[str, Points]:
        """The parts that were looked for, by name."""
        return {part: points for part in _PARTS if (points := getattr(self, part)) is not None}


@dataclass(frozen=True, eq=False)
class People:
    """Everybody in a picture of that size."""

    width: int
    height: int
    persons: tuple[Person, ...] = ()

    @staticmethod
    def from_shares(width: int, height: int, persons: Iterable[Person]) -> People:
        """People whose x and y are shares of the picture, 0 and 1 at its edges."""
        import numpy as np

        scale, half = np.array([width, height, 1.0]), np.array([0.5, 0.5, 0.0])
        return People(width, height, tuple(person.map(lambda points: points * scale - half) for person in persons))

    def scaled(self, width: int, height: int) -> People:
        """The same people in the picture at another size."""
        import numpy as np

        if (width, height) == (self.width, self.height):
            return self
        shares = np.array([self.width, self.height, 1.0])
        half = np.array([0.5, 0.5, 0.0])
        persons = (person.map(lambda points: (points + half) / shares) for person in self.persons)
        return People.from_shares(width, height, persons)

    def part(self, left: int, top: int, width: int, height: int) -> People:
        """The same people in a box of the picture, whose corner may lie outside it."""
        import numpy as np

        corner = np.array([left, top, 0.0])
        return People(width, height, tuple(person.map(lambda points: points - corner) for person in self.persons))

    def to_json(self) -> dict[str, Any]:
        """OpenPose's JSON: places to a thousandth of a pixel, confidences to six digits."""
        return {
            "version": 1.3,
            "canvas_width": self.width,
            "canvas_height": self.height,
            "people": [
                {"person_id": [-1], **{_PARTS[part][0]: _flat(points) for part, points in person.parts().items()}}
                for person in self.persons
            ],
        }

    @staticmethod
    def from_json(data: Any, size: tuple[int, int] | None = None) -> People:
        """People from OpenPose's JSON, and from what other tools write in its format.

        A file without a canvas size is in pixels of the picture that it was made from, whose (width, height) `size`
        gives. If no number of at least two places is beyond 1, all are shares of the canvas, as some tools write them.
        BODY_25 becomes 18 points, a face of 68 gets its pupils. Anything else is a ValueError of one line.
        """
        if not isinstance(data, dict) or not isinstance(data.get("people"), list):
            raise ValueError('no keypoints: expected a JSON object with "people", a list, as OpenPose writes it')
        width, height = _canvas(data, size)
        persons = [_read_person(number, person) for number, person in enumerate(data["people"], start=1)]
        if _are_shares(persons):
            return People.from_shares(width, height, persons)
        return People(width, height, tuple(persons))


def rounded(places: Points) -> Points:
    """Places as the JSON keeps them; drawing rounds in the same way, so a map and the one redrawn from it are equal."""
    import numpy as np

    thousandths: Points = np.round(places, 3)
    return thousandths


def face_of_68(points: ArrayLike) -> Points:
    """iBUG's 68 points of a face and, for OpenPose's two pupils, the middles of the six points around each eye, as
    certain as the least certain of those."""
    import numpy as np

    face = np.asarray(points, float)
    pupils = [middle(face[eye]) for eye in (_RIGHT_EYE, _LEFT_EYE)]
    return np.concatenate([face, np.array(pupils)])


def middle(points: Points) -> Points:
    """The mean place of points (n, 3), as certain as the least certain; not seen if one of them is not."""
    import numpy as np

    confidence = points[:, 2].min()
    return np.array([*points[:, :2].mean(axis=0), confidence]) if confidence > 0 else np.zeros(3)


def _checked(part: str, points: ArrayLike, count: int) -> Points:
    import numpy as np

    array = np.asarray(points, dtype=np.float64)
    if array.shape != (count, 3):
        raise ValueError(f"{part}: expected {count} points of x, y, confidence, got an array {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{part}: holds a number that is not finite")
    return np.where(array[:, 2:] > 0, array, 0.0)


def _flat(points: Points) -> list[float]:
    numbers: list[float] = []
    for (x, y), confidence in zip(rounded(points[:, :2]).tolist(), points[:, 2].tolist(), strict=True):
        numbers += [x, y, float(f"{confidence:.6g}")]
    return numbers


def _canvas(data: dict[str, Any], size: tuple[int, int] | None) -> tuple[int, int]:
    width, height = data.get("canvas_width"), data.get("canvas_height")
    if width is None and height is None:
        if size is None:
            raise ValueError('no "canvas_width" and "canvas_height": give the size of the picture they belong to')
        return size
    if type(width) is int and type(height) is int and min(width, height) > 0:
        return width, height
    raise ValueError(f"a canvas of {width} x {height}: expected two whole numbers of pixels above 0")


def _read_person(number: int, person: Any) -> Person:
    import numpy as np

    if not isinstance(person, dict):
        raise ValueError(f"person {number}: expected a JSON object, got {type(person).__name__}")
    parts = {}
    for part, (key, count) in _PARTS.items():
        points = _read_points(f"person {number}: {key}", person.get(key))
        if points is not None:
            parts[part] = _of_count(points, count, f"person {number}: {key}")
    return Person(**{"body": np.zeros((BODY, 3)), **parts})


def _read_points(name: str, flat: Any) -> Points | None:
    import numpy as np

    if flat is None or flat == []:
        return None
    if not isinstance(flat, list) or not all(type(value) in (int, float) for value in flat) or len(flat) % 3:
        raise ValueError(f"{name}: expected a list of numbers x, y, confidence, one after the other")
    try:
        return np.array(flat, dtype=np.float64).reshape(-1, 3)
    except OverflowError:
        raise ValueError(f"{name}: holds a whole number of more than 308 digits") from None


def _of_count(points: Points, count: int, name: str) -> Points:
    if len(points) == count:
        return points
    if count == BODY and len(points) == 25:
        return points[list(_OF_BODY_25)]
    if count == FACE and len(points) == 68:
        return face_of_68(points)
    expected = {BODY: "18 or 25", HAND: "21", FACE: "70 or 68"}[count]
    raise ValueError(f"{name}: has {len(points)} points, expected {expected}")


def _are_shares(persons: Sequence[Person]) -> bool:
    """A person in a single pixel is none, so numbers up to 1 are no pixels."""
    import numpy as np

    points = [points[points[:, 2] > 0, :2] for person in persons for points in person.parts().values()]
    places = np.concatenate(points) if points else np.zeros((0, 2))
    return len(np.unique(places, axis=0)) > 1 and bool((places >= 0).all() and (places <= 1).all())
