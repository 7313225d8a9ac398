"""From the points that COCO names to OpenPose's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from annotators.keypoints import Person, face_of_68, middle

if TYPE_CHECKING:
    from annotators.keypoints import Points

_NOSE, _SHOULDERS = 0, (5, 6)
# Of COCO's 17, those that follow the nose and the neck in OpenPose's 18: right before left.
_AFTER_THE_NECK = (6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)

# COCO-WholeBody: 17 of the body, 6 of the feet, 68 of the face, 21 of each hand.
_FACE, _LEFT_HAND, _RIGHT_HAND = slice(23, 91), slice(91, 112), slice(112, 133)
WHOLE_BODY = 133


def body_of_coco(points: Points) -> Points:
    """OpenPose's 18 from COCO's 17: the neck is the middle of the shoulders, as certain as the less certain one."""
    import numpy as np

    neck = middle(points[list(_SHOULDERS)])
    return np.concatenate([points[[_NOSE]], neck[None], points[list(_AFTER_THE_NECK)]])


def person_of_whole_body(points: Points, *, hands: bool = True, face: bool = True) -> Person:
    """A person from COCO-WholeBody's 133 points; the feet have no place in OpenPose's 18."""
    return Person(
        body_of_coco(points[:17]),
        points[_LEFT_HAND] if hands else None,
        points[_RIGHT_HAND] if hands else None,
        face_of_68(points[_FACE]) if face else None,
    )
