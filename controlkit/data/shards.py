"""A dataset as webdataset shards: tars of some rows each, as streaming readers like them.

A row is the members of one key, the row's number: 000000012.jpg (the picture's own bytes), .txt (the first caption),
.json (the row of metadata.jsonl), .canny.png (a map), .pose.json (keypoints beside a map). The same dataset gives the
same bytes: no times, no owners.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from controlkit.data import folder as layout
from controlkit.errors import RequestError
from controlkit.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from controlkit.processes import Processes

ROWS = 1000


def shard_name(number: int) -> str:
    return f"{number:06d}.tar"


def write_shards(
    dataset: Path, folder: Path, rows_a_shard: int, processes: Processes, done: Callable[[], None] = lambda: None
) -> int:
    """Write the shards of a dataset, this process its share of them, and return how many there are in all."""
    rows = layout.read_rows(dataset)
    starts = range(0, len(rows), rows_a_shard)
    expected = {shard_name(number) for number in range(len(starts))}
    strange = sorted(path.name for path in folder.glob("*.tar") if path.name not in expected)
    if strange:
        raise RequestError(
            f"{folder}: holds {strange[0]}, which is none of the {len(expected)} shards to be written; a reader would "
            f"take it for one of them: choose another folder or remove it"
        )
    for row in rows:
        for name in (row["file_name"], *(path for _, path in _maps(row))):
            if not (dataset / name).is_file():
                raise RequestError(f"{dataset / name}: named in {layout.METADATA} but missing; mend or remove that row")
    for number, start in processes.slice(list(enumerate(starts))):
        with atomic_file(folder / shard_name(number)) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for index, row in enumerate(rows[start : start + rows_a_shard], start):
                for name, data in _members(dataset, row):
                    member = tarfile.TarInfo(f"{index:09d}{name}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        done()
    return len(starts)


def _members(dataset: Path, row: layout.Row) -> Iterator[tuple[str, bytes]]:
    picture = row["file_name"]
    yield PurePosixPath(picture).suffix.lower(), (dataset / picture).read_bytes()
    captions = row.get("text")
    caption = captions[0] if isinstance(captions, list) and captions else captions
    if isinstance(caption, str):
        yield ".txt", caption.encode()
    yield ".json", json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")
    for type, path in _maps(row):
        yield f".{type}{PurePosixPath(path).suffix}", (dataset / path).read_bytes()
        keypoints = dataset / layout.keypoints_name(type, picture)
        if keypoints.is_file():
            yield f".{type}.json", keypoints.read_bytes()


def _maps(row: layout.Row) -> list[tuple[str, str]]:
    """Type and path of each."""
    columns = sorted(column for column, path in row.items() if column.endswith("_file_name") and path)
    return [(column.removesuffix("_file_name"), row[column]) for column in columns]
