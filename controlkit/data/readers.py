"""The rows that data hold, whatever the form: a short reader each, and all say the same of the same content.

an imagefolder      pictures, metadata.jsonl with file_name, text and a TYPE_file_name for each map
a tutorial's folder prompt.json of the original ControlNet: source, target, prompt
two folders         pictures with captions in .txt, and maps under the pictures' names
webdataset          tars whose members share a key: 0001.jpg, 0001.txt or 0001.json, 0001.TYPE.png; on another machine
                    too (`data.remote`)
parquet             a column of pictures, one of captions, one for each type of map; or a folder of such files, as on
                    the hub
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from controlkit.data import folder as layout
from controlkit.data.archives import PARQUET, TARS
from controlkit.data.inputs import TUTORIAL, find_pictures
from controlkit.data.pictures import SUFFIXES
from controlkit.data.readable import Cell, Member
from controlkit.data.remote import RemoteTar
from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from controlkit.data.readable import Readable

CAPTIONS = ("text", "caption", "prompt")  # columns, the first that is there


@dataclass(frozen=True)
class Found:
    """A row as its reader finds it. `columns` is what is said of the picture."""

    file_name: str
    picture: Readable
    maps: dict[str, Readable] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def captions(self) -> tuple[str, ...]:
        text = next((self.columns[name] for name in CAPTIONS if self.columns.get(name)), None)
        if isinstance(text, list):
            return tuple(map(str, text))
        return (str(text) if text is not None else "",)


def read(data: Path | RemoteTar, maps: Path | None = None, condition: str | None = None) -> list[Found]:
    """The rows of any of these forms. `maps` is the second of two folders, and holds maps of type `condition`."""
    if isinstance(data, RemoteTar):
        return list(_by_key((member.name, member) for member in data.members))
    if maps is not None:
        return _two_folders(data, maps, condition or "")
    if tars := _files(data, ".tar"):
        return [found for tar in tars for found in _tar(tar)]
    if parquets := _files(data, PARQUET):
        return [found for file in parquets for found in _parquet(file)]
    if data.is_file():
        kind = "is compressed" if data.name.lower().endswith(TARS) else "is no tar and no parquet file"
        raise RequestError(f"{data}: {kind}; put its pictures into a folder: controlkit annotate {data} --out DIR")
    return _folder(data)


def _folder(folder: Path) -> list[Found]:
    rows = layout.read_rows(folder)
    if not rows and (folder / TUTORIAL).is_file():
        rows = find_pictures(folder).rows
    if not rows:
        rows = [{"file_name": name} for name in layout.find_pictures(folder)]
    return [_of_folder(folder, row) for row in rows]


def _of_folder(folder: Path, row: layout.Row) -> Found:
    picture = folder / row["file_name"]
    if not any(row.get(name) for name in CAPTIONS) and (text := layout.sidecar_caption(picture)):
        row = {**row, "text": text}
    maps: dict[str, Readable] = {
        key.removesuffix("_file_name"): folder / name
        for key, name in row.items()
        if key.endswith("_file_name") and isinstance(name, str) and name
    }
    return Found(row["file_name"], picture, maps, row)


def _two_folders(folder: Path, maps: Path, condition: str) -> list[Found]:
    if not maps.is_dir():
        raise RequestError(f"data.maps={maps}: there is no such folder; give the one that holds the maps")
    there = {PurePosixPath(name).with_suffix(""): maps / name for name in layout.find_pictures(maps)}
    found = []
    for name in layout.find_pictures(folder):
        row = _of_folder(folder, {"file_name": name})
        control_map = there.get(PurePosixPath(name).with_suffix(""))
        if control_map is None:
            raise RequestError(f"data.maps={maps}: holds no map for {name}; expected one under the same name")
        found.append(Found(name, row.picture, {condition: control_map}, row.columns))
    return found


def _tar(path: Path) -> Iterator[Found]:
    try:
        with tarfile.open(path, "r:") as archive:
            files = (info for info in archive if info.isreg())
            yield from _by_key((info.name, Member(path, info.name, info.offset_data, info.size)) for info in files)
    except (tarfile.TarError, EOFError, OSError) as reason:
        raise RequestError(f"{path}: is no whole tar archive ({reason}); get a whole copy") from None


def _by_key(files: Iterable[tuple[str, Readable]]) -> Iterator[Found]:
    """Members of one key lie beside each other, as webdataset demands."""
    key = ""
    members: dict[str, Readable] = {}
    for full_name, member in files:
        name = PurePosixPath(full_name)
        if name.name.startswith("."):
            continue
        stem, _, kind = name.name.partition(".")
        if (own := str(name.with_name(stem))) != key:
            yield from _of_key(key, members)
            key, members = own, {}
        members[kind.lower()] = member
    yield from _of_key(key, members)


def _of_key(key: str, members: dict[str, Readable]) -> Iterator[Found]:
    pictures = [kind for kind in members if f".{kind}" in SUFFIXES]
    if not pictures:
        return
    columns: dict[str, Any] = {}
    if "json" in members:
        try:
            columns = json.loads(members["json"].read_bytes())
        except ValueError as reason:
            raise RequestError(f"{members['json']}: is not JSON ({reason})") from None
        if not isinstance(columns, dict):
            raise RequestError(f"{members['json']}: expected names and values in JSON, got {type(columns).__name__}")
    if "txt" in members and not columns.get("text"):
        columns["text"] = members["txt"].read_bytes().decode("utf-8-sig", "replace").strip()
    maps: dict[str, Readable] = {
        kind.rpartition(".")[0]: member
        for kind, member in members.items()
        if "." in kind and f".{kind.rpartition('.')[2]}" in SUFFIXES
    }
    yield Found(f"{key}.{pictures[0]}", members[pictures[0]], maps, columns)


def _parquet(path: Path) -> Iterator[Found]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        schema = file.schema_arrow
        pictures = [name for name in schema.names if _holds_pictures(schema.field(name).type)]
        if not pictures:
            raise RequestError(f"{path}: has no column of pictures; its columns: {', '.join(schema.names)}")
        picture = "image" if "image" in pictures else pictures[0]
        others = [name for name in schema.names if name not in pictures]
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=others).to_pylist() if others else []
            for number in range(file.metadata.row_group(group).num_rows):
                maps: dict[str, Readable] = {
                    name: Cell(path, group, number, name) for name in pictures if name != picture
                }
                columns = rows[number] if rows else {}
                yield Found(f"{path.stem}/{group}/{number}", Cell(path, group, number, picture), maps, columns)
    except pyarrow.ArrowException as reason:
        raise RequestError(f"{path}: is no whole parquet file ({reason}); get a whole copy") from None


def _holds_pictures(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _files(data: Path, suffix: str) -> list[Path]:
    """The file itself, or those of a folder without metadata.jsonl that holds them at its top or in data/, where the
    hub keeps them: of several splits the one for training."""
    if data.is_file():
        return [data] if data.name.lower().endswith(suffix) else []
    if (data / layout.METADATA).exists() or (data / TUTORIAL).exists():
        return []
    files = sorted([*data.glob(f"*{suffix}"), *(data / "data").glob(f"*{suffix}")])
    if files and any(path.suffix.lower() in SUFFIXES for path in data.rglob("*")):
        return []  # pictures, with something beside them
    return [path for path in files if path.name.startswith("train")] or files
