r"""What webuis read in a prompt beside its words.

    (word)   counts 1.1 times     (word:1.3)    1.3 times
    [word]   1 / 1.1 times        \( \) \[ \]   the characters themselves
    BREAK    what follows begins a part of its own

They nest, and their factors multiply. A bracket that is not closed holds to the end, one that was not opened is text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from controlkit.errors import RequestError

STRONGER = 1.1

_MARKS = re.compile(
    r"\\(?P<escaped>.?)"
    r"|(?P<opening>[(\[])"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<closing>[)\]])"
    r"|(?P<words>[^\\()\[\]:]+|:)",
    re.DOTALL,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_CHANGING = re.compile(r"\||:\s*\d*\.?\d+\s*$")  # inside square brackets: [a|b], [a:b:0.5]
_FILE = re.compile(r"<(lora|lyco|hypernet):([^:>]*)[^>]*>")


@dataclass(frozen=True)
class Piece:
    """Words, and how often they count."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """What a prompt says: its parts, which are read apart from each other, and their pieces."""

    parts: tuple[tuple[Piece, ...], ...]

    @staticmethod
    def literal(text: str) -> Prompt:
        """Every character counts as it stands."""
        return Prompt(((Piece(text),),))

    @staticmethod
    def parse(text: str) -> Prompt:
        """As webuis read it; what they do between steps is refused."""
        if named := _FILE.search(text):
            option = "--hypernetwork" if named[1] == "hypernet" else "--lora"
            raise RequestError(f"{named[0]} in a prompt loads nothing; name the file: {option} FILE@0.8")
        parts: list[list[Piece]] = [[]]
        for piece in _weighed(text):
            if piece is None:
                parts.append([])
            elif parts[-1] and parts[-1][-1].weight == piece.weight:
                parts[-1][-1] = Piece(parts[-1][-1].text + piece.text, piece.weight)
            else:
                parts[-1].append(piece)
        if len(parts) > 1 and not parts[-1]:  # a BREAK at the end begins nothing
            parts.pop()
        return Prompt(tuple(tuple(part) for part in parts))

    @property
    def plain(self) -> bool:
        """Nothing is weighted or parted: a text like any other."""
        return len(self.parts) == 1 and all(piece.weight == 1 for piece in self.parts[0])

    @property
    def text(self) -> str:
        """Its words alone."""
        return " ".join("".join(piece.text for piece in part) for part in self.parts)


def escaped(text: str) -> str:
    """A text as it must be written to be read literally."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


def _weighed(text: str) -> list[Piece | None]:
    """The pieces in their order; None for a BREAK."""
    texts: list[str | None] = []
    weights: list[float] = []
    starts: dict[str, list[int]] = {"(": [], "[": []}  # where those that are open began

    def weigh(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]

    for mark in _MARKS.finditer(text):
        found: list[str | None] = [mark[0]]
        if mark["opening"]:
            starts[mark["opening"]].append(len(texts))
            continue
        if (mark["weight"] or mark["closing"] == ")") and starts["("]:
            weigh(starts["("].pop(), float(mark["weight"] or STRONGER))
            continue
        if mark["closing"] == "]" and starts["["]:
            start = starts["["].pop()
            if _CHANGING.search("".join(each or "" for each in texts[start:])):
                raise RequestError(
                    "a prompt that changes between the steps, [a|b] or [a:b:0.5], is not read here; write one of them, "
                    r"or \[ and \] where the brackets are text"
                )
            weigh(start, 1 / STRONGER)
            continue
        if mark["escaped"] is not None:
            found = [mark["escaped"]]
        elif mark["words"]:
            first, *behind = _BREAK.split(mark["words"])
            found = [first, *(each for words in behind for each in (None, words))]
        texts += found
        weights += [1.0] * len(found)
    for start in starts["("]:
        weigh(start, STRONGER)
    for start in starts["["]:
        weigh(start, 1 / STRONGER)
    pieces = zip(texts, weights, strict=True)
    # Rounded, so that a bracket within its opposite leaves exactly 1.
    return [None if each is None else Piece(each, round(weight, 9)) for each, weight in pieces if each != ""]
