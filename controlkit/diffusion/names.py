"""How an unknown name is answered: the nearest known one, and all of them."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def unknown(kind: str, name: object, names: Iterable[str]) -> ValueError:
    """To be raised: "unknown sampler 'eular': did you mean 'euler'? known: ddim, ddpm, …"."""
    names = sorted(names)
    near = get_close_matches(str(name), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")
