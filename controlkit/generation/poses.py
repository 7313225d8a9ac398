"""Poses as keypoints: their map is drawn at the size that is painted, with sticks as thick as pose ControlNets know
them, where a map of pixels would be enlarged with all its sticks.

A control may be OpenPose's JSON itself, or a map beside which its JSON lies, as `controlkit annotate` leaves it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from annotators.pose_drawing import draw
from annotators.pose_json import PoseFiles, read_poses
from controlkit.data.pictures import MAX_PIXELS
from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from annotators.keypoints import People

POSE = "pose"


def are_keypoints(file: Path) -> bool:
    """Whether a control is a file of keypoints, not of pixels."""
    return file.suffix.lower() == ".json"


def poses_in(file: Path) -> People:
    """The people of a control that is OpenPose's JSON, on the canvas that it names."""
    try:
        people = read_poses(file).on_its_canvas()
    except ValueError as reason:
        raise RequestError(f"--control {reason}") from None
    if people.width * people.height > MAX_PIXELS:
        raise RequestError(
            f"--control {file}: a canvas of {people.width}x{people.height} is more than {MAX_PIXELS:,} pixels"
        )
    return people


def poses_beside(file: Path, pixels: NDArray[np.uint8], say: Callable[[str], None]) -> tuple[People, Path] | None:
    """The people of a pose map and the file that holds them, if one lies beside it and still says what the map shows;
    a map that was changed since it was drawn counts as it is (and that is said)."""
    beside = PoseFiles(file.parent).find(file.name)
    if beside is None or not _holds_people(beside):
        return None
    try:
        people = read_poses(beside).keypoints(pixels)
    except ValueError as reason:
        raise RequestError(f"--control {file}: its keypoints are of no use ({reason}); mend or move them") from None
    if not np.array_equal(draw(people, people.width, people.height), pixels):
        say(f"{file.name} is not what {beside.name} draws, and is used as it is; for those keypoints give that file")
        return None
    return people, beside


def _holds_people(file: Path) -> bool:
    """Other tools leave other things in JSON beside a picture."""
    try:
        data = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "people" in data
