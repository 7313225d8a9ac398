"""The worlds by name. A scene depends on (seed, index) alone, and is the same at every size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlkit.errors import RequestError, known
from controlkit.toybox import circles, rooms

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlkit.toybox.scene import Plan, Scene


@dataclass(frozen=True)
class World:
    """`plan(seed, index)` decides a scene; `maps` are the control maps that are exactly known when it is drawn."""

    plan: Callable[[int, int], Plan]
    maps: tuple[str, ...]


WORLDS: dict[str, World] = {
    "circles": World(circles.plan, ("outline",)),
    "rooms": World(rooms.plan, ("depth", "pose")),
}


def find_world(name: str) -> World:
    """The world of that name, or the nearest name and the list."""
    if name not in WORLDS:
        raise RequestError(f"unknown world {name!r}: {known(name, WORLDS)}")
    return WORLDS[name]


def draw(world: str, seed: int, index: int, size: int) -> Scene:
    """Scene `index` of a world, size x size pixels."""
    return find_world(world).plan(seed, index).draw(size)
