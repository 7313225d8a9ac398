"""The world `rooms`: shaded solids and jointed dolls on a floor before a wall, one to four of them.

First everything is decided (`plan`), in units of the room and shares of the picture; then it can be drawn at any size.
Variety is kept small on purpose, so that a model of a few million parameters can learn all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from annotators.contract import in_three_channels
from annotators.keypoints import People, Person
from annotators.pose_drawing import draw
from controlkit.toybox import dolls
from controlkit.toybox.camera import FOCAL, project
from controlkit.toybox.captions import Described, caption
from controlkit.toybox.render import Part, render
from controlkit.toybox.scene import COLOURS, GROUNDS, Scene, contrast
from controlkit.toybox.things import SIZES, SOLIDS, Thing, doll, seen_keypoints, solid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from controlkit.toybox.scene import Colour

T = TypeVar("T")

_CONTRAST = 95  # at least, between a thing and what is behind it
_GROUND_CONTRAST = 80  # between floor and wall
_FRONT, _BACK = 9.9, 13.2  # where things stand, in z
_MARGIN = 0.02  # of the picture, that things keep from its edges

# The colour of a doll's parts: mixed with so much white, then so much of it.
_TINTS = {dolls.PLAIN: (0.0, 1.0), dolls.FACE: (0.28, 1.0), dolls.JOINT: (0.0, 0.72), dolls.EYE: (0.0, 0.12)}


@dataclass(frozen=True)
class Room:
    """A scene of `rooms`, decided and not yet drawn. The things come from left to right; `people` are the points of the
    dolls among them, each (18, 3): x and y as shares of the picture, and confidence."""

    wall: str
    floor: str
    things: list[Thing]
    people: list[NDArray[np.float64]]
    caption: str
    facts: dict[str, Any] = field(repr=False)

    def draw(self, size: int) -> Scene:
        parts = [
            Part(body, number, _tinted(COLOURS[thing.colour], tint), thing.shiny, casts_shadow=tint != dolls.EYE)
            for number, thing in enumerate(self.things)
            for body, tint in thing.bodies
        ]
        rendering = render(parts, GROUNDS[self.wall], GROUNDS[self.floor], size)
        people = People.from_shares(size, size, map(Person, self.people))
        return Scene(
            image=rendering.image,
            caption=self.caption,
            maps={
                "depth": in_three_channels(rendering.depth_map),
                "pose": draw(people, size, size),
            },
            keypoints=people.to_json(),
            facts=self.facts,
            depth=rendering.depth,
            owners=rendering.owners,
        )


def plan(seed: int, index: int) -> Room:
    """Scene `index` of that seed."""
    random = np.random.default_rng([seed, index])
    wall = _one_of(random, list(GROUNDS))
    floor = _one_of(random, [name for name in GROUNDS if contrast(GROUNDS[name], GROUNDS[wall]) >= _GROUND_CONTRAST])
    behind = (GROUNDS[wall], GROUNDS[floor])
    colours = [name for name in COLOURS if all(contrast(COLOURS[name], ground) >= _CONTRAST for ground in behind)]

    things: list[Thing] = []
    for shape in _shapes(random):
        attempts = (_placed(random, _thing(random, shape), things) for _ in range(4))
        thing = next((placed for placed in attempts if placed is not None), None)
        if thing is not None:
            colour = _one_of(random, [name for name in colours if all(name != other.colour for other in things)])
            things.append(replace(thing, colour=colour, shiny=bool(random.random() < 0.35)))
    things.sort(key=lambda thing: thing.x / thing.z)
    described = [_describe(thing) for thing in things]
    return Room(
        wall=wall,
        floor=floor,
        things=things,
        people=[points for thing in things if (points := seen_keypoints(thing, things)) is not None],
        caption=caption(described, wall, floor, random),
        facts={"wall": wall, "floor": floor, "objects": [_facts(thing) for thing in things]},
    )


def _shapes(random: np.random.Generator) -> list[str]:
    """What to place, dolls first since they need most room; about two scenes in three have a doll."""
    count = _one_of(random, [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4])
    with_dolls = min(_one_of(random, [0, 0, 0, 1, 1, 1, 1, 1, 2]), count)
    return ["doll"] * with_dolls + [_one_of(random, SOLIDS) for _ in range(count - with_dolls)]


def _thing(random: np.random.Generator, shape: str) -> Thing:
    size = _one_of(random, SIZES)
    if shape != "doll":
        return solid(shape, size, yaw=float(random.uniform(20, 45)))
    gesture = dolls.GESTURES[_one_of(random, list(dolls.GESTURES))]
    return doll(
        size,
        gesture,
        yaw=float(random.uniform(*gesture.turn)) * _one_of(random, [-1, 1]),
        lean=float(random.uniform(-5, 5)),
        mirrored=_one_of(random, [False, True]),
        jitter=random.uniform(-9, 9, (2, 4, 2)) * [[1.0], [1.0], [0.4], [0.4]],  # the legs stay steadier
    )


def _placed(random: np.random.Generator, thing: Thing, others: Sequence[Thing]) -> Thing | None:
    """The thing at a place where it is seen and hides no other; None if none is found."""
    z = random.uniform(_FRONT, _BACK, 30)
    x = random.uniform(-0.45, 0.45, 30) * z / FOCAL
    for number, outline in enumerate(thing.outlines_at(x, z)):
        u0, v0, u1, v1 = outline.rectangle
        inside = min(u0, v0) >= _MARGIN and max(u1, v1) <= 1 - _MARGIN
        if inside and all(outline.clear_of(other.outline) for other in others):
            return thing.moved(float(x[number]), float(z[number]))
    return None


def _describe(thing: Thing) -> Described:
    u, _ = project(thing.x, 0, thing.z)
    return Described(thing.shape, thing.colour, thing.size, thing.shiny, thing.gesture, u, thing.z)


def _facts(thing: Thing) -> dict[str, Any]:
    """What is true of a thing, in JSON's types; places are shares of the picture."""
    u, v = project(thing.x, 0, thing.z)
    return {
        "shape": thing.shape,
        "colour": thing.colour,
        "size": thing.size,
        "material": "shiny" if thing.shiny else "matte",
        "gesture": thing.gesture,
        "place": ("left", "middle", "right")[min(int(u * 3), 2)],
        "stands_at": [round(u, 4), round(v, 4)],
        "distance": round(thing.z, 4),
        "rectangle": [round(side, 4) for side in thing.outline.rectangle],
    }


def _tinted(colour: Colour, tint: str) -> Colour:
    white, share = _TINTS[tint]
    red, green, blue = (round((channel + (255 - channel) * white) * share) for channel in colour)
    return red, green, blue


def _one_of(random: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(random.integers(len(choices)))]
