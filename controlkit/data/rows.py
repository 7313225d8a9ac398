"""The rows that a training or an evaluation reads: picture, control map, captions, and the content that names them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controlkit.data import folder as layout
from controlkit.data.ledger import read_entry
from controlkit.errors import RequestError, known
from controlkit.files import sha256

if TYPE_CHECKING:
    from collections.abc import Callable

WORLDS: dict[str, Callable[[int | None, Callable[[str], None]], Path]] = {}
"""Worlds that can be named where a dataset is expected; each gives the folder with so many scenes, drawn on demand
(None: its usual number), saying so where it takes a while. Filled from above."""


@dataclass(frozen=True)
class Row:
    """One picture with its map. `content` is the picture's SHA-256: it names the row whatever the file is called."""

    file_name: str
    picture: Path
    control: Path
    captions: tuple[str, ...]
    content: str


def find_datasets(path: str, say: Callable[[str], None] = lambda text: None) -> list[Path]:
    """The folders that `data.path` names, apart by commas: each a folder, or a world (`rooms`, `rooms:20000`), which is
    drawn into the cache first."""
    if Path(path).expanduser().is_dir():
        return [Path(path).expanduser()]
    return [_find_dataset(each.strip(), say) for each in path.split(",")]


def read_dataset(folder: Path, condition: str) -> list[Row]:
    """The rows of an annotated folder that have a map of that type, in the order of metadata.jsonl."""
    make = f"controlkit annotate --type {condition} {folder}"
    found = layout.read_rows(folder)
    if not found:
        layout.find_pictures(folder)  # refuses an empty folder in its own words
        raise RequestError(f"{folder} holds pictures but no control maps; make them: {make}")
    column = layout.column(condition)
    chosen = [row for row in found if row.get(column)]
    if not chosen:
        types = sorted({key.removesuffix("_file_name") for row in found for key in row if key.endswith("_file_name")})
        raise RequestError(f"{folder} has no {condition} maps: {known(condition, types)}; make them: {make}")
    missing = [name for row in chosen for name in (row["file_name"], row[column]) if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RequestError(f"{folder / missing[0]}{more}: named in metadata.jsonl but missing; run {make}")
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(lambda row: _content(folder, row["file_name"], row[column]), chosen))
    return [
        Row(row["file_name"], folder / row["file_name"], folder / row[column], _captions(row), content)
        for row, content in zip(chosen, contents, strict=True)
    ]


def _find_dataset(path: str, say: Callable[[str], None]) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    world, colon, count = path.partition(":")
    if world not in WORLDS:
        raise RequestError(
            f"data.path={path}: there is no such folder, and no world of that name: {known(world, WORLDS)}"
        )
    if colon and not (count.isdecimal() and int(count) > 0):
        raise RequestError(f"data.path={path}: expected a number of scenes behind the colon, e.g. {world}:20000")
    return WORLDS[world](int(count) if colon else None, say)


def held_out(content: str, share: float) -> bool:
    """Whether a row is kept from training: decided by its content, so that a copy under another name goes with it."""
    return int(content[:8], 16) < share * 2**32


def _captions(row: layout.Row) -> tuple[str, ...]:
    text = row.get("text")
    if isinstance(text, list):
        return tuple(str(each) for each in text) or ("",)
    return (str(text) if text is not None else "",)


def _content(folder: Path, picture: str, control: str) -> str:
    """The hash in the map's ledger spares reading the picture."""
    entry = read_entry(folder / control)
    return entry.source_sha256 if entry else sha256(folder / picture)
