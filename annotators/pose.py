"""What the networks that find people share: keypoints first, and the map is drawn from them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from annotators.contract import check_image
from annotators.keypoints import People
from annotators.network import NetworkAnnotator
from annotators.pose_drawing import draw
from annotators.weights import MissingWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annotators.contract import Image
    from annotators.keypoints import Points


@dataclass(frozen=True)
class PoseAnnotator(NetworkAnnotator):
    """A pose network. Points of less than `min_confidence` count as not seen, in the map and in the keypoints."""

    min_confidence: float = 0.3

    mirrors: ClassVar[bool] = False  # each limb has its colour

    def weight_files(self) -> tuple[Path, ...]:
        wanted = self.wanted()
        if len(wanted) > 1 and self.weights is not None and Path(self.weights).is_file():
            files = ", ".join(each.file for each in wanted)
            raise MissingWeights(f"pose: weights={self.weights!r} is one file; name the folder that holds {files}")
        return super().weight_files()

    @abstractmethod
    def find(self, images: Sequence[Image]) -> list[People]:
        """Everybody in each picture, with the network's own confidences."""

    def keypoints_of(self, images: Sequence[Image]) -> list[People]:
        """The people of several pictures, found together."""
        for image in images:
            check_image("pose", image)
        return [self._seen(people) for people in self.find(images)]

    def keypoints(self, image: Image) -> People:
        """The people of one picture."""
        return self.keypoints_of([image])[0]

    def drawn(self, people: People) -> Image:
        """The map of a picture whose people are known."""
        return draw(people, people.width, people.height)

    def batch(self, images: Sequence[Image]) -> list[Image]:
        return [self.drawn(people) for people in self.keypoints_of(images)]

    def _seen(self, people: People) -> People:
        persons = (person.map(self._without_doubtful) for person in people.persons)
        return People(people.width, people.height, tuple(person for person in persons if person.is_seen()))

    def _without_doubtful(self, points: Points) -> Points:
        return points * (points[:, 2:] >= self.min_confidence)
