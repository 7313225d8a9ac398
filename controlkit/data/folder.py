"""A dataset folder: which files are pictures, where their maps lie, what metadata.jsonl says of them.

DATA/
    a.jpg   sub/b.png               pictures, never touched
    metadata.jsonl                  a row a picture: file_name, text, canny_file_name, … and columns of the user's own
    conditions/canny/a.jpg.png      a map a picture; the picture's suffix stays, so that a.jpg and a.png cannot collide
    errors.jsonl                    pictures that failed, each with its reason
`datasets.load_dataset("imagefolder", data_dir=DATA)` reads it as it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from controlkit.data.pictures import SUFFIXES
from controlkit.errors import RequestError
from controlkit.files import atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Iterable

CONDITIONS = "conditions"
METADATA = "metadata.jsonl"
ERRORS = "errors.jsonl"

Row = dict[str, Any]


def find_pictures(folder: Path) -> list[str]:
    """Relative posix paths of the pictures below `folder`, sorted; `conditions/` and hidden names are left out."""
    if not folder.exists():
        raise RequestError(f"{folder}: there is no such folder; give the folder that holds your pictures")
    if not folder.is_dir():
        raise RequestError(f"{folder}: is a file; give the folder that holds your pictures")
    found: list[str] = []
    total = 0
    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(place)  # noqa: PTH116 (os.walk gives text; a Path for each of a million places costs)
        if (status.st_dev, status.st_ino) in visited:  # a link that leads back up
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        relative = Path(place).relative_to(folder)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not (relative == Path() and name == CONDITIONS)
        )
        total += len(files)
        found.extend(
            (relative / name).as_posix()
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122
        )
    if not found:
        what = "is empty" if total == 0 else f"holds {total} files but no picture"
        raise RequestError(f"{folder}: {what}; expected files like {', '.join(sorted(SUFFIXES)[:6])}, …")
    return sorted(found)


def map_name(type: str, file_name: str) -> str:
    """Where the map of a picture lies: canny, "sub/a.jpg" -> "conditions/canny/sub/a.jpg.png"."""
    return str(PurePosixPath(CONDITIONS, type, file_name + ".png"))


def keypoints_name(type: str, file_name: str) -> str:
    """Where the keypoints behind a map lie: pose, "sub/a.jpg" -> "conditions/pose/sub/a.jpg.json"."""
    return map_name(type, file_name).removesuffix(".png") + ".json"


def column(type: str) -> str:
    """The metadata column that names a map: canny -> "canny_file_name", which `datasets` reads as the column canny."""
    return f"{type}_file_name"


def read_rows(folder: Path) -> list[Row]:
    """The rows of metadata.jsonl in their order; an empty list if there is no such file."""
    return _read_jsonl(folder / METADATA)


def write_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Replace metadata.jsonl, if anything changes."""
    _write_jsonl(folder / METADATA, rows)


def read_errors(folder: Path) -> list[Row]:
    """The rows of errors.jsonl: `file_name`, `reason`, and in `row` what metadata.jsonl held of the picture."""
    return _read_jsonl(folder / ERRORS)


def write_errors(folder: Path, rows: list[Row]) -> None:
    """Replace errors.jsonl; without a row the file goes away."""
    if rows:
        _write_jsonl(folder / ERRORS, rows)
    else:
        (folder / ERRORS).unlink(missing_ok=True)


def sidecar_caption(picture: Path) -> str | None:
    """The caption in a .txt beside the picture."""
    try:
        return read_text(picture.with_suffix(".txt")).strip()
    except FileNotFoundError:
        return None


def read_text(path: Path) -> str:
    """A text file of UTF-8, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RequestError(f"{path}: is not UTF-8; save it as UTF-8") from None


def printable(name: str) -> str:
    """A file name as it can be written and printed; one that is not UTF-8 shows its bytes as \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()


def _read_jsonl(path: Path) -> list[Row]:
    try:
        text = read_text(path)
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as reason:
            raise RequestError(f"{path}: line {number} is not JSON ({reason}); mend or remove that line") from None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise RequestError(f'{path}: line {number} has no "file_name"; expected {{"file_name": "a.jpg", …}}')
        rows.append(row)
    return rows


def _write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    # A file name that is not UTF-8 comes with lone surrogates, which printable turns into JSON's escapes.
    text = "".join(printable(json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write_text(path, text)
