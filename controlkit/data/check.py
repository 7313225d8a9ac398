"""Looks through an annotated folder for what would spoil a training. Writes nothing."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from annotators import ANNOTATORS
from controlkit.data import folder as layout
from controlkit.data.inputs import find_pictures
from controlkit.data.ledger import read_entry
from controlkit.data.pictures import BadPicture, read_picture, upright_size
from controlkit.errors import RequestError, known

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_TOKENS = 77  # of CLIP, its start and end included
LINES = frozenset({"canny", "lineart", "mlsd", "scribble", "softedge"})
"""Types whose maps are lines on black, so that most of a map is dark."""

# CLIP cuts a text into these before it looks for tokens, and each is a token or more.
_PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    file_name: str
    kind: str
    text: str


def least_tokens(text: str) -> int:
    """The fewest tokens that CLIP can make of a text, counted without its vocabulary: a rare word takes several."""
    return len(_PIECES.findall(text)) + 2


def check(folder: Path, types: list[str] | None = None, workers: int = 1) -> tuple[int, list[Finding]]:
    """The number of pictures and what was found, in the order of metadata.jsonl. `types`: those to look at, else all
    that the rows name."""
    if not folder.is_dir():
        raise RequestError(f"{folder}: expected the folder of a dataset")
    names = set(find_pictures(folder).names)
    rows = layout.read_rows(folder)
    there = sorted({key.removesuffix("_file_name") for row in rows for key in row if key.endswith("_file_name")} - {""})
    there = [type for type in there if type != "file_name"]
    for type in types or ():
        if type not in there:
            raise RequestError(f"--type {type}: {folder / layout.METADATA} has no such maps: {known(type, there)}")

    names |= {row["file_name"] for row in rows}
    images: dict[str, str] = {}  # SHA-256 -> the picture that had it first
    findings = []
    for found, digest in _in_order(folder, rows, types or there, workers):
        findings += found
        if digest is not None:
            name, sha = digest
            first = images.setdefault(sha, name)
            if first != name:
                findings.append(Finding(name, "duplicate", f"the same file as {first}"))
    with_row = {row["file_name"] for row in rows}
    waiting = {error["file_name"]: error["reason"] for error in layout.read_errors(folder)}
    for name in sorted(names - with_row):
        why = f"failed: {waiting[name]}" if name in waiting else f"has no row in {layout.METADATA}"
        findings.append(Finding(name, "missing", why))
    return len(names), findings


def _in_order(
    folder: Path, rows: list[layout.Row], types: list[str], workers: int
) -> Iterator[tuple[list[Finding], tuple[str, str] | None]]:
    pending: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for row in rows:
            pending.append(pool.submit(_look, folder, row, types))
            if len(pending) > 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _look(folder: Path, row: layout.Row, types: list[str]) -> tuple[list[Finding], tuple[str, str] | None]:
    """What is wrong with a row, and the name and SHA-256 of its picture."""
    name = row["file_name"]
    found = [Finding(name, kind, text) for kind, text in _caption_problems(row.get("text"))]
    try:
        data = (folder / name).read_bytes()
        size = upright_size(data)
    except Exception as reason:  # a damaged file makes decoders raise nearly anything
        why = getattr(reason, "strerror", None) or " ".join(str(reason).split())
        return [*found, Finding(name, "missing", f"the picture cannot be read ({why})")], None
    sha = hashlib.sha256(data).hexdigest()
    for type in types:
        path = row.get(layout.column(type))
        if not path:
            found.append(Finding(name, "missing", f"has no {type} map"))
            continue
        found += [
            Finding(name, kind, f"{path}: {text}") for kind, text in _map_problems(folder / path, type, size, sha)
        ]
    return found, (name, sha)


def _caption_problems(text: Any) -> Iterator[tuple[str, str]]:
    captions = [str(each) for each in (text if isinstance(text, list) else [text]) if each is not None]
    if not any(caption.strip() for caption in captions):
        yield "caption", "has no caption"
    for caption in captions:
        if (tokens := least_tokens(caption)) > MOST_TOKENS:
            yield "caption", f"the caption has at least {tokens} tokens, of which CLIP reads {MOST_TOKENS}"


def _map_problems(path: Path, type: str, size: tuple[int, int], source_sha256: str) -> Iterator[tuple[str, str]]:
    try:
        pixels = read_picture(path)
    except BadPicture as reason:
        yield "missing", reason.reason
        return
    entry = read_entry(path)
    if entry and entry.source_sha256 != source_sha256:
        yield "out of date", "was made of another picture; annotate again"
    elif entry and (version := entry.versions.get(type)) and version != _version(type, entry.backend, version):
        yield "out of date", f"was made by version {version} of {type}; annotate again"
    if (pixels.shape[1], pixels.shape[0]) != size:
        yield "size", f"is {pixels.shape[1]}x{pixels.shape[0]}, the picture {size[0]}x{size[1]}"
    if (pixels == pixels[0, 0]).all():
        yield "constant", f"is all {'black' if not pixels.any() else 'of one colour'}"
    elif type in LINES and pixels.mean() > 127.5:
        yield "inverted", "is dark on white; lines are white on black"


def _version(type: str, backend: str | None, otherwise: str) -> str:
    """Of the annotator that would make the map now, where it is known here."""
    if type not in ANNOTATORS or backend not in (None, *ANNOTATORS.backends(type)):
        return otherwise
    return str(ANNOTATORS.class_of(type, backend).version)
