"""From the two answers of OpenPose's body network to people (arXiv:1611.08050, sections 2.2 to 2.4).

heat     (H, W, 19)  confidence that a joint of each kind lies at a place; the last is the background
fields   (H, W, 38)  part affinity: along a limb, its direction; two channels, x and y, a limb
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from annotators.keypoints import BODY
from annotators.pose_drawing import STICKS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotators.keypoints import Points

    Raster = NDArray[np.float32]

# The limbs by the joints they join: the sticks of the map, and from each shoulder to its ear, which only joins parts
# of one person that were found apart. With each, the first of its channels in `fields`.
LIMBS = (*STICKS, (2, 16), (5, 17))
CHANNELS = (12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26)

# OpenPose's own thresholds.
_PEAK = 0.1
_ALONG = 0.05  # of the field along a limb, at
_SHARE = 0.8  # of the
_SAMPLES = 10  # places looked at between its joints
_FEWEST_JOINTS = 4
_MEAN_SCORE = 0.4  # of a person's joints and limbs, for each joint

_MOST = 127  # joints of one kind, the strongest: as many people as OpenPose tells apart


class Limb(NamedTuple):
    """A limb that was found: from which joint to which, and its score."""

    start: int
    end: int
    score: float


@dataclass
class _Assembled:
    """Joints that belong together: kind -> number of the joint of that kind."""

    joints: dict[int, int] = field(default_factory=dict)
    score: float = 0.0


def people_of(heat: Raster, fields: Raster) -> list[Points]:
    """The joints (18, 3) of each person, in pixels of the rasters, with the heat at each."""
    import numpy as np

    joints = [peaks_of(heat[:, :, kind]) for kind in range(BODY)]
    persons: list[_Assembled] = []
    for number, (first, second) in enumerate(LIMBS):
        channel = CHANNELS[number]
        field_of_limb = fields[:, :, channel : channel + 2]
        for limb in limbs_between(joints[first], joints[second], field_of_limb):
            _add(persons, number, limb, joints)
    found = []
    for person in persons:
        if len(person.joints) >= _FEWEST_JOINTS and person.score / len(person.joints) >= _MEAN_SCORE:
            points = np.zeros((BODY, 3))
            for kind, joint in person.joints.items():
                points[kind] = joints[kind][joint]
            found.append(points)
    return found


def peaks_of(heat: Raster) -> Points:
    """Places (n, 3) of x, y, heat where a raster (H, W) is highest around, the strongest first."""
    import cv2
    import numpy as np

    smooth = cv2.GaussianBlur(heat, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
    framed = np.pad(smooth, 1, constant_values=-np.inf)
    above, below, left, right = framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]
    # Strictly, on two sides, so that of a plateau one place counts.
    highest = (smooth > above) & (smooth > left) & (smooth >= below) & (smooth >= right) & (smooth > _PEAK)
    rows, columns = np.nonzero(highest)
    strongest = np.argsort(-smooth[rows, columns], kind="stable")[:_MOST]
    rows, columns = rows[strongest], columns[strongest]
    x = columns + _vertex(left[rows, columns], smooth[rows, columns], right[rows, columns])
    y = rows + _vertex(above[rows, columns], smooth[rows, columns], below[rows, columns])
    return np.column_stack([x, y, heat[rows, columns]]).astype(np.float64)


def limbs_between(starts: Points, ends: Points, field_of_limb: Raster) -> list[Limb]:
    """Which joints of two kinds the field (H, W, 2) joins: the best pairs first, each joint once (Eq. 10 to 14)."""
    import numpy as np

    if not len(starts) or not len(ends):
        return []
    height, width = field_of_limb.shape[:2]
    share = np.linspace(0, 1, _SAMPLES)[:, None, None, None]
    places = (1 - share) * starts[:, None, :2] + share * ends[None, :, :2]  # (samples, starts, ends, 2)
    columns = np.clip(np.round(places[..., 0]).astype(int), 0, width - 1)
    rows = np.clip(np.round(places[..., 1]).astype(int), 0, height - 1)
    along = ends[None, :, :2] - starts[:, None, :2]
    length = np.maximum(np.linalg.norm(along, axis=2), 1e-3)
    agreement = (field_of_limb[rows, columns] * (along / length[..., None])).sum(axis=-1)
    score = agreement.mean(axis=0) + np.minimum(0.5 * height / length - 1, 0)  # very long limbs are unlikely
    possible = ((agreement > _ALONG).mean(axis=0) > _SHARE) & (score > 0)

    limbs = []
    free_starts, free_ends = np.ones(len(starts), bool), np.ones(len(ends), bool)
    pairs = np.argwhere(possible)
    for start, end in pairs[np.argsort(-score[possible], kind="stable")].tolist():
        if free_starts[start] and free_ends[end]:
            free_starts[start] = free_ends[end] = False
            limbs.append(Limb(start, end, float(score[start, end])))
    return limbs


def _add(persons: list[_Assembled], number: int, limb: Limb, joints: list[Points]) -> None:
    """Give a limb to the person that has one of its joints; a limb between two persons makes them one."""
    first, second = LIMBS[number]
    owners = [
        person for person in persons if person.joints.get(first) == limb.start or person.joints.get(second) == limb.end
    ]
    if not owners:
        if number >= len(STICKS):
            return
        owners = [_Assembled()]
        persons.append(owners[0])
    owner, *others = owners
    if others:
        other = others[0]
        if owner.joints.keys() & other.joints.keys():
            return
        owner.joints.update(other.joints)
        owner.score += other.score + limb.score
        persons.remove(other)
        return
    fitting = {first: limb.start, second: limb.end}
    if any(owner.joints.get(kind, joint) != joint for kind, joint in fitting.items()):
        return
    for kind, joint in fitting.items():
        if kind not in owner.joints:
            owner.joints[kind] = joint
            owner.score += float(joints[kind][joint, 2])
    owner.score += limb.score


def _vertex(before: Raster, at: Raster, after: Raster) -> Raster:
    """How far from a peak the parabola through it and its neighbours is highest; at a border, not at all."""
    import numpy as np

    bend = 2 * at - before - after
    with np.errstate(invalid="ignore", divide="ignore"):
        away = (after - before) / (2 * bend)
    inside: Raster = np.where(np.isfinite(away) & np.isfinite(bend), np.clip(away, -0.5, 0.5), 0)
    return inside
