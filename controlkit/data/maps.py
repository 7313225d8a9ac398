"""The maps of one type: which are up to date, what the annotator makes of pictures, and the files that hold it.

Beside a map of poses lie its keypoints, in OpenPose's JSON. They are written first: a map that is there has them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from annotators import MissingWeights, annotate_many
from annotators.contract import in_three_channels
from annotators.depth import to_map
from annotators.pose_json import PoseFiles
from controlkit.data import folder as layout
from controlkit.data.ledger import Entry, encode_map, read_entry
from controlkit.errors import RequestError
from controlkit.files import atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from annotators import Annotator
    from annotators.keypoints import People

    Image = NDArray[np.uint8]


T = TypeVar("T")

DEPTH16 = "depth16"


@dataclass(frozen=True)
class Made:
    """What an annotator made of a picture."""

    control_map: Image
    people: People | None = None
    depth16: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class Failed:
    """Why it made nothing of it."""

    reason: str


class MapMaker:
    """Makes the maps of one type below the folder `out`; `depth16`: with 16 bits too, as a type of its own."""

    def __init__(self, type: str, source: Annotator | PoseFiles, out: Path, *, depth16: bool = False) -> None:
        """Weights are looked for here, so that those which are missing are refused before the first picture."""
        self.type, self.source, self.out, self.depth16 = type, source, out, depth16
        if depth16 and not hasattr(source, "depths"):
            raise RequestError(
                f"depth16: {source.__class__.__name__} gives maps of 8 bits only; choose another --backend"
            )
        self.together = hasattr(source, "batch")
        self._recipe: Entry | None = None
        self._defaults: dict[str, Any] = {}
        if isinstance(source, PoseFiles):
            own = out / layout.CONDITIONS / type
            self._writes_keypoints = Path(source.folder).resolve() != own.resolve()  # what it reads stays as it is
        else:
            try:
                self._recipe = Entry.of(type, source, "")
            except ImportError as reason:
                raise RequestError(f"{type}: {reason}") from reason
            known = self._recipe.parameters
            self._defaults = {each.name: each.default for each in fields(source) if each.name in known}  # type: ignore[arg-type]
            self._writes_keypoints = hasattr(source, "keypoints")

    def missing(self, name: str, source_sha256: str, *, even_if_there: bool = False) -> Entry | Failed | None:
        """The ledger of a picture's map if there is none with that ledger yet."""
        try:
            entry = self._entry(name, source_sha256)
        except ValueError as reason:
            return _failed(self.type, reason)
        return None if not even_if_there and self._is_there(name, entry) else entry

    def make(self, names: Sequence[str], images: Sequence[Image]) -> list[Made | Failed]:
        """The maps of pictures that are computed together."""
        self._load()
        return failing_alone(self.type, self._make, names, images)

    def write(self, name: str, made: Made, entry: Entry) -> None:
        if made.people is not None and self._writes_keypoints:
            text = json.dumps(made.people.to_json()) + "\n"
            atomic_write_text(self.out / layout.keypoints_name(self.type, name), text)
        if made.depth16 is not None:
            encoded = encode_map(made.depth16, replace(entry, type=DEPTH16), None)
            atomic_write_bytes(self.out / layout.map_name(DEPTH16, name), encoded)
        values = getattr(self.source, "values", None)
        atomic_write_bytes(self.out / layout.map_name(self.type, name), encode_map(made.control_map, entry, values))

    @property
    def types(self) -> list[str]:
        """The types of all the maps that it writes."""
        return [self.type, DEPTH16] if self.depth16 else [self.type]

    def _load(self) -> None:
        """A network that cannot be loaded stops the run: it is no fault of the pictures."""
        if hasattr(self.source.__class__, "network"):
            try:
                _ = self.source.network  # type: ignore[union-attr]
            except ValueError:
                raise
            except Exception as reason:
                raise RequestError(f"{self.type}: its network cannot be loaded ({reason})") from reason

    def _is_there(self, name: str, entry: Entry) -> bool:
        for type in self.types:
            found = read_entry(self.out / layout.map_name(type, name))
            if not replace(entry, type=type).describes(found, self._defaults):
                return False
        return not self._writes_keypoints or (self.out / layout.keypoints_name(self.type, name)).exists()

    def _entry(self, name: str, source_sha256: str) -> Entry:
        if self._recipe is not None:
            return replace(self._recipe, source_sha256=source_sha256)
        assert isinstance(self.source, PoseFiles)
        return Entry.of(self.type, self.source.annotator(name), source_sha256)

    def _make(self, names: Sequence[str], images: Sequence[Image]) -> list[Made]:
        source: Any = self.source
        if isinstance(source, PoseFiles):
            drawn = [source.annotator(name) for name in names]
            made = [Made(each(image), each.keypoints(image)) for each, image in zip(drawn, images, strict=True)]
        elif hasattr(source, "keypoints_of"):
            made = [Made(source.drawn(people), people) for people in source.keypoints_of(images)]
        elif self.depth16:
            made = [Made(in_three_channels(to_map(depth)), depth16=_deep(depth)) for depth in source.depths(images)]
        elif self._writes_keypoints:
            made = [Made(source(image), source.keypoints(image)) for image in images]
        else:
            made = [Made(control_map) for control_map in annotate_many(source, images)]
        for image, each in zip(images, made, strict=True):
            self._check(image, each.control_map)
        return made

    def _check(self, image: Image, control_map: Image) -> None:
        if control_map.shape != image.shape or control_map.dtype != image.dtype:
            raise ValueError(
                f"gave {control_map.dtype} {control_map.shape} for a picture of {image.shape}: a bug of {self.type}"
            )


def failing_alone(
    what: str, make: Callable[[Sequence[str], Sequence[Image]], list[T]], names: Sequence[str], images: Sequence[Image]
) -> list[T | Failed]:
    """What is made of pictures that are computed together. If that fails they are made one by one, so that the picture
    on which it fails costs only itself."""
    try:
        return [*make(names, images)]
    except (MissingWeights, RequestError):
        raise
    except Exception as reason:
        if len(images) == 1:
            return [_failed(what, reason)]
        if type(reason).__name__ == "OutOfMemoryError":
            raise RequestError(
                f"{what}: {len(images)} pictures together need more memory than the device has; "
                f"choose a smaller --batch-size"
            ) from reason
        alone = (failing_alone(what, make, [name], [image]) for name, image in zip(names, images, strict=True))
        return [made for each in alone for made in each]


def _failed(what: str, reason: Exception) -> Failed:
    return Failed(f"{what}: {' '.join(str(reason).split()) or type(reason).__name__}")


def _deep(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    return to_map(depth, bits=16).astype(np.uint16, copy=False)
