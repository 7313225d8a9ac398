"""Pose maps from keypoint files, without a network: a folder of OpenPose's JSON, and an annotator for each picture."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from annotators.contract import check_image
from annotators.keypoints import People
from annotators.pose_drawing import VERSION, draw

if TYPE_CHECKING:
    from annotators.contract import Image


@dataclass(frozen=True)
class PoseFiles:
    """A folder of keypoint files, named for the pictures: for sub/a.jpg it is, of these, the first that there is.

    sub/a.jpg.json          as controlkit writes them
    sub/a_keypoints.json    as OpenPose writes them
    sub/a.json
    """

    folder: str | Path

    def __post_init__(self) -> None:
        if not Path(self.folder).is_dir():
            raise ValueError(f"{self.folder}: no such folder; give the one that holds the keypoint files")

    def annotator(self, name: str) -> DrawnPose:
        """The annotator for the picture of that name, a relative path with its suffix."""
        found = self.find(name)
        if found is None:
            *names, last = (path.name for path in self._paths(name))
            folder = (Path(self.folder) / name).parent
            raise ValueError(f"no keypoints for it: {folder} has no {', '.join(names)} or {last}")
        return read_poses(found)

    def find(self, name: str) -> Path | None:
        """The file for the picture of that name, if there is one."""
        return next((path for path in self._paths(name) if path.is_file()), None)

    def _paths(self, name: str) -> list[Path]:
        picture = Path(self.folder) / name
        names = (f"{picture.name}.json", f"{picture.stem}_keypoints.json", f"{picture.stem}.json")
        return [picture.with_name(each) for each in names]


def read_poses(path: Path) -> DrawnPose:
    """The annotator that draws what one file of keypoints says."""
    try:
        data = path.read_bytes()
    except OSError as reason:
        raise ValueError(f"{path}: cannot be read ({reason.strerror})") from None
    try:
        keypoints = json.loads(data)
    except (ValueError, RecursionError) as reason:
        raise ValueError(f"{path}: is not JSON ({' '.join(str(reason).split())})") from None
    annotator = DrawnPose(hashlib.sha256(data).hexdigest(), keypoints, str(path))
    annotator.people(64, 64)  # what cannot be read is refused now
    return annotator


@dataclass(frozen=True)
class DrawnPose:
    """Draws the keypoints of one picture at that picture's size."""

    keypoints_sha256: str
    data: Any = field(repr=False, compare=False)
    source: str = field(compare=False)

    type: ClassVar[str] = "pose"
    backend: ClassVar[str] = "json"
    values: ClassVar[frozenset[int] | None] = None
    version: ClassVar[int] = VERSION
    licence: ClassVar[str] = "Apache-2.0; no weights"
    runs_with: ClassVar[frozenset[str]] = frozenset({"data", "source"})
    mirrors: ClassVar[bool] = False

    def __call__(self, image: Image) -> Image:
        people = self.keypoints(image)
        return draw(people, people.width, people.height)

    def keypoints(self, image: Image) -> People:
        """The people, in pixels of the picture."""
        check_image("pose", image)
        height, width = image.shape[:2]
        people = self.people(width, height)
        if abs(people.width * height - people.height * width) > max(people.width, people.height, width, height):
            canvas = f"{people.width} x {people.height}"
            raise ValueError(
                f"{self.source}: is for a picture of {canvas}, this one has {width} x {height}, which is another aspect"
            )
        return people.scaled(width, height)

    def people(self, width: int, height: int) -> People:
        """The people as the file has them; a file that names no canvas is one for a picture of this size."""
        return self._people((width, height))

    def on_its_canvas(self) -> People:
        """The people as the file has them; one that names no canvas is refused."""
        return self._people(None)

    def _people(self, size: tuple[int, int] | None) -> People:
        try:
            return People.from_json(self.data, size)
        except ValueError as reason:
            raise ValueError(f"{self.source}: {reason}") from None

    def libraries(self) -> dict[str, str]:
        import cv2

        return {"opencv": cv2.__version__}
