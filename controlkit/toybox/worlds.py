"""The worlds by name. A world is a function (seed, index, size) -> Scene that depends on nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlkit.errors import RequestError, known
from controlkit.toybox import circles

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlkit.toybox.scene import Scene

WORLDS: dict[str, Callable[[int, int, int], Scene]] = {"circles": circles.draw}


def find_world(name: str) -> Callable[[int, int, int], Scene]:
    """The world of that name, or the nearest name and the list."""
    if name not in WORLDS:
        raise RequestError(f"unknown world {name!r}: {known(name, WORLDS)}")
    return WORLDS[name]
