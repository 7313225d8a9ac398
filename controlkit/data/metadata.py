"""metadata.jsonl after a run: a row for every picture that has its maps, with whatever its owner wrote kept.

The row of a picture that failed waits in errors.jsonl until the picture is mended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlkit.data import folder as layout
from controlkit.data.inputs import is_inside
from controlkit.errors import RequestError
from controlkit.files import link_or_copy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from controlkit.data.inputs import Source


def read_metadata(source: Source, out: Path) -> list[layout.Row]:
    """The rows as they are before a run: those of the dataset, else those beside the pictures, with those set aside and
    what the input itself says. Refused, before any work, if they could not be kept."""
    folder = source.folder
    table = folder / "metadata.csv"
    if table.exists():
        raise RequestError(
            f"{table}: controlkit keeps its columns in metadata.jsonl; convert the file, e.g. with "
            f"python -c \"import pandas; pandas.read_csv('metadata.csv').to_json('metadata.jsonl', orient='records', "
            f'lines=True)", and remove the .csv'
        )
    rows = layout.read_rows(out) or layout.read_rows(folder)
    set_aside, _ = _split_errors(source, out)
    rows += [error["row"] for error in set_aside if error.get("row")]
    known = {row["file_name"] for row in rows}
    return rows + [row for row in source.rows if row["file_name"] not in known]


def bring_up_to_date(
    source: Source,
    out: Path,
    types: list[str],
    failed: dict[str, str],
    caption: Callable[[str], str | None] = lambda name: None,
) -> None:
    """Write metadata.jsonl and errors.jsonl. `failed` holds the reasons by picture, and gets those whose caption cannot
    be read; `caption` gives the caption of a picture that has none of its own."""
    rows = read_metadata(source, out)
    known = {row["file_name"] for row in rows}
    rows += [{"file_name": name} for name in sorted({*source.names, *failed}) if name not in known]
    present = set(source.names)
    _, errors = _split_errors(source, out)

    kept = []
    for row in rows:
        name = row["file_name"]
        if name in present and name not in failed and "text" not in row:
            try:
                text = layout.sidecar_caption(source.folder / name)
            except RequestError as reason:
                failed[name] = str(reason)
            else:
                text = caption(name) if text is None else text
                row = row if text is None else {"file_name": name, "text": text, **row}
        if name in failed:
            errors.append({"file_name": name, "reason": failed[name], "row": row})
            continue
        if name in present:
            row = row | {layout.column(type): layout.map_name(type, name) for type in types}
        if out != source.folder:
            _bring_maps(source.folder, out, row)
        kept.append(row)
    layout.write_rows(out, kept)
    layout.write_errors(out, errors)


def _split_errors(source: Source, out: Path) -> tuple[list[layout.Row], list[layout.Row]]:
    """errors.jsonl apart: what this run decides anew, and pictures that are there but not among those of this run."""
    present = set(source.names)
    ours: list[layout.Row] = []
    others: list[layout.Row] = []
    for error in layout.read_errors(out):
        elsewhere = error["file_name"] not in present and (source.folder / error["file_name"]).exists()
        (others if elsewhere else ours).append(error)
    return ours, others


def _bring_maps(folder: Path, out: Path, row: layout.Row) -> None:
    """The files that a row names beside its picture, such as maps made before, belong to the dataset wherever it is."""
    for key, name in row.items():
        names_file = key.endswith("_file_name") and isinstance(name, str) and is_inside(name)
        if names_file and not (out / name).exists() and (folder / name).is_file():
            link_or_copy(folder / name, out / name)
