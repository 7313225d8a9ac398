"""Which pictures may be mirrored in training: maps and captions may tell left from right, and writing does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from annotators import ANNOTATORS

if TYPE_CHECKING:
    from controlkit.data.rows import Row

_TELLS_SIDES = re.compile(
    r"\b(left|right|clockwise|counterclockwise|anticlockwise|east|west|text|writing|written|words?|letters?|letterings?|"
    r"inscriptions?|signs?|signboards?|logos?|watermarks?|captions?|labels?|numbers?|clocks?|maps?|reads|saying|says)\b",
    re.IGNORECASE,
)


def may_mirror_maps(condition: str) -> bool:
    """Whether maps of that type may be: as their annotator declares, and for types that no annotator makes, yes."""
    return condition not in ANNOTATORS or bool(getattr(ANNOTATORS[condition], "mirrors", False))


def may_mirror(row: Row) -> bool:
    """Whether this picture may be: not if a caption of it speaks of sides or of writing."""
    return not any(_TELLS_SIDES.search(caption) for caption in row.captions)
