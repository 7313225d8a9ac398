"""Rows for the training of a base: pictures with their captions or classes, no maps needed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.data import folder as layout
from controlkit.data.pictures import cover, read_picture, resize_picture
from controlkit.errors import RequestError, known
from controlkit.files import sha256

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelledRow:
    """One picture. `content` is its SHA-256."""

    file_name: str
    picture: Path
    caption: str
    label: str | None
    content: str


def read_labelled(folder: Path, label: str | None) -> list[LabelledRow]:
    """The rows of metadata.jsonl, or every picture below the folder where there is none."""
    rows = layout.read_rows(folder) or [{"file_name": name} for name in layout.find_pictures(folder)]
    missing = [row["file_name"] for row in rows if not (folder / row["file_name"]).is_file()]
    if missing:
        raise RequestError(f"{folder / missing[0]}: named in metadata.jsonl but missing ({len(missing)} such)")
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(lambda row: sha256(folder / row["file_name"]), rows))
    return [
        LabelledRow(
            row["file_name"],
            folder / row["file_name"],
            _caption(row) or layout.sidecar_caption(folder / row["file_name"]) or "",
            None if label is None else _label(folder, row, label),
            content,
        )
        for row, content in zip(rows, contents, strict=True)
    ]


def load_pictures(rows: list[LabelledRow], size: int) -> NDArray[np.uint8]:
    """(N, size, size, 3): scaled to cover the square, the middle cut out. In memory, as small worlds fit there."""

    def load(row: LabelledRow) -> NDArray[np.uint8]:
        image = read_picture(row.picture)
        to, window = cover(image.shape[1], image.shape[0], size)
        return resize_picture(image, to)[window]

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(load, rows)))


def _caption(row: layout.Row) -> str | None:
    text = row.get("text")
    return str(text[0] if isinstance(text, list) and text else text) if text else None


def _label(folder: Path, row: layout.Row, label: str) -> str:
    """`column`, or `column.key` where the column holds JSON."""
    column, _, key = label.partition(".")
    value: Any = row.get(column)
    if value is None:
        raise RequestError(f"data.label={label}: {folder / row['file_name']} has no such column: {known(column, row)}")
    if key:
        try:
            inner = json.loads(value) if isinstance(value, str) else value
            value = inner[key]
        except (ValueError, KeyError, TypeError):
            raise RequestError(
                f"data.label={label}: {folder / row['file_name']} has no {key!r} in {column!r}"
            ) from None
    return str(value)
