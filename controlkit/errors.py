"""The one exception that means "the request was wrong", and the phrase that names the nearest known thing."""

from collections.abc import Iterable
from difflib import get_close_matches


class RequestError(ValueError):
    """What came, what was expected, what to do: one line for each thing that is wrong."""


def known(name: str, names: Iterable[str]) -> str:
    """How an unknown name is answered: "did you mean 'canny'? known: canny, depth"."""
    names = sorted(names)
    near = get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(names) or 'none'}"
