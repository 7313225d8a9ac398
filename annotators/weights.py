"""Where the weights of a network lie: a path that was named, the hub's cache on this machine, or the hub.

What is missing is said in one sentence: which file, from where, how large, under which licence, and what gets it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")


class MissingWeights(ValueError):  # noqa: N818  (the name that callers read)
    """Weights that a network needs are not on this machine."""


@dataclass(frozen=True)
class Weights:
    """One file that a network needs.

    beside   the small files that lie beside it and are needed with it
    instead  the names under which some repositories keep the same thing
    """

    repo: str
    file: str
    megabytes: float
    licence: str
    beside: tuple[str, ...] = ()
    instead: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file} of {self.repo} ({self.megabytes:g} MB, {self.licence})"


def locate(wanted: Weights, named: str | None, *, offline: bool, fetch: str, who: str) -> tuple[Path, ...]:
    """The file and those beside it, as they lie on this machine.

    named   a file, a folder or a hub id that takes the place of `wanted.repo`
    fetch   what `controlkit fetch` is to be called with; who: the annotator, for the refusal
    """
    if named is not None:
        path = Path(named).expanduser()
        if path.is_file():
            return _beside(path, wanted, who)
        if path.is_dir():
            return _inside(path, wanted, who)
        if not is_hub_id(named):
            raise MissingWeights(f"{who}: weights={named!r}: no such file or folder, and no hub id; it wants {wanted}")
    repo = named or wanted.repo
    if found := in_cache(repo, wanted):
        return found
    reason = "the network is off"
    if not offline:
        try:
            return download(repo, wanted)
        except not_given() as refusal:
            reason = " ".join(str(refusal).split())[:120]
    about = f" ({wanted.megabytes:g} MB, {wanted.licence})" if repo == wanted.repo else ""
    raise MissingWeights(
        f"{who}: {wanted.file} of {repo}{about} is not on this machine ({reason}); get it where there is a network "
        f"with `controlkit fetch {named or fetch}`, or name its folder as weights"
    )


def in_cache(repo: str, wanted: Weights) -> tuple[Path, ...] | None:
    """The files as the hub's cache on this machine has them; None unless all are there."""
    from huggingface_hub import try_to_load_from_cache

    for name in (wanted.file, *wanted.instead):
        paths = [try_to_load_from_cache(repo, each) for each in (name, *wanted.beside)]
        if all(isinstance(path, str) for path in paths):
            return tuple(Path(path) for path in paths)
    return None


def download(repo: str, wanted: Weights) -> tuple[Path, ...]:
    """The files from the hub; one of `not_given()` if it does not give them."""
    from huggingface_hub import hf_hub_download

    refusals = []
    for name in (wanted.file, *wanted.instead):
        try:
            return tuple(Path(hf_hub_download(repo, each)) for each in (name, *wanted.beside))
        except not_given() as refusal:
            refusals.append(refusal)
    raise refusals[0]


def not_given() -> tuple[type[Exception], ...]:
    """What the hub raises: no network, no such repository, a gated one (all of them OSError), no such file."""
    from huggingface_hub.errors import EntryNotFoundError

    return (OSError, EntryNotFoundError)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def digest(paths: tuple[Path, ...]) -> str:
    """First 16 hex digits of the SHA-256 over files, read once per process while they stay as they are."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(sha256(path).encode())
    return whole.hexdigest()[:16]


def sha256(path: Path) -> str:
    """The SHA-256 of one file, in hex."""
    state = path.stat()
    return _file_digest(path, state.st_size, state.st_mtime_ns).hex()


@cache
def _file_digest(path: Path, size: int, modified_ns: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _beside(path: Path, wanted: Weights, who: str) -> tuple[Path, ...]:
    """A named file stands for `wanted.file` whatever its own name."""
    return (path, *(_in_folder(path.parent, (name,), wanted, who) for name in wanted.beside))


def _inside(folder: Path, wanted: Weights, who: str) -> tuple[Path, ...]:
    first = _in_folder(folder, (wanted.file, *wanted.instead), wanted, who)
    return (first, *(_in_folder(folder, (name,), wanted, who) for name in wanted.beside))


def _in_folder(folder: Path, names: tuple[str, ...], wanted: Weights, who: str) -> Path:
    """The first of the names that is there, in the repository's subfolder or without it."""
    places = [place for name in names for place in (folder / name, folder / Path(name).name)]
    found = _first(lambda place: place if place.is_file() else None, places)
    if found is None:
        raise MissingWeights(f"{who}: {folder} has no {' or '.join(names)}; it wants {wanted}")
    return found


def _first(get: Callable[[T], Path | None], candidates: Iterable[T]) -> Path | None:
    return next((path for candidate in candidates if (path := get(candidate))), None)
