"""A scene of `rooms` in words: which things, how they lie to each other, on what floor and before what wall.

What a caption says is true; it does not say everything. A few phrasings, so that a prompt need not be one formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

MOST_WORDS = 40

SIDEWAYS = 0.16  # of the picture: from here on a thing is left or right of another …
IN_DEPTH = 1.0  # … and otherwise, from here on in units of the floor, in front of it or behind it


@dataclass(frozen=True)
class Described:
    """What a caption may say of a thing; `u` is where its middle is seen, `z` how far away it stands."""

    shape: str
    colour: str
    size: str
    shiny: bool
    gesture: str | None
    u: float
    z: float


def caption(things: Sequence[Described], wall: str, floor: str, random: np.random.Generator) -> str:
    """One of several phrasings, of at most MOST_WORDS words. `things` come from left to right."""
    with_sizes, with_gestures = random.random() < 0.85, random.random() < 0.85
    surroundings = random.random()
    relation = int(random.integers(3))
    parts = {
        "floor": surroundings < 0.75,
        "wall": surroundings < 0.35 or 0.75 <= surroundings < 0.9,
        "order": len(things) > 2 and relation == 0,
        "gestures": with_gestures,
    }

    def phrase() -> str:
        phrases = [noun_phrase(thing, size=with_sizes, gesture=parts["gestures"]) for thing in things]
        if len(things) == 2 and relation > 0:
            text = _of_two(things, phrases, relation)
        elif len(things) == 3 and relation == 1 and _apart(things[0], things[1]) and _apart(things[1], things[2]):
            text = f"{phrases[1]} between {phrases[0]} and {phrases[2]}"
        else:
            text = ("from left to right " if parts["order"] else "") + _listed(phrases)
        text += f" on {with_article(f'{floor} floor')}" if parts["floor"] else ""
        return text + (f" in front of {with_article(f'{wall} wall')}" if parts["wall"] else "")

    text = phrase()
    for expendable in ("wall", "order", "gestures"):
        if len(text.split()) > MOST_WORDS:
            parts[expendable] = False
            text = phrase()
    return text


def noun_phrase(thing: Described, *, size: bool = True, gesture: bool = True) -> str:
    """ "a big shiny red ball", "a small blue doll waving"."""
    words = [thing.size] if size else []
    words += ["shiny"] if thing.shiny else []
    text = with_article(" ".join([*words, thing.colour, thing.shape]))
    return f"{text} {thing.gesture}" if gesture and thing.gesture else text


def relation_of(one: Described, other: Described) -> str | None:
    """How the first lies to the second: "left of", "right of", "in front of", "behind"; None if it cannot be said."""
    if abs(one.u - other.u) >= SIDEWAYS:
        return "left of" if one.u < other.u else "right of"
    if abs(one.z - other.z) >= IN_DEPTH:
        return "in front of" if one.z < other.z else "behind"
    return None


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _of_two(things: Sequence[Described], phrases: list[str], start: int) -> str:
    one, other = (0, 1) if start == 1 else (1, 0)
    relation = relation_of(things[one], things[other])
    return f"{phrases[one]} {relation} {phrases[other]}" if relation else _listed(phrases)


def _apart(left: Described, right: Described) -> bool:
    return right.u - left.u >= SIDEWAYS


def _listed(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
