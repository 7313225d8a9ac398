"""Pictures that are no files of their own yet: in zip and tar archives (webdataset too), parquet files, videos.

`unpack` puts them into a folder, from where they are annotated like any others. What is there with the same bytes
stays, so that a killed run goes on; what is there with other bytes is never overwritten.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from controlkit.data import folder as layout
from controlkit.data.inputs import TUTORIAL, is_inside
from controlkit.data.pictures import MAX_PIXELS, SUFFIXES
from controlkit.errors import RequestError
from controlkit.files import atomic_write_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
PARQUET = ".parquet"
CAPTION_COLUMNS = ("text", "caption", "prompt")

MOST_BYTES = 8 * MAX_PIXELS  # of a file; more is no picture that could be read


@dataclass(frozen=True)
class Item:
    """A file of an archive. `data` is None where it cannot be read, and `reason` says why."""

    name: str
    data: bytes | None
    text: str | None = None
    reason: str = ""


def is_archive(data: Path) -> bool:
    """Whether DATA holds pictures that have to be unpacked: by its suffix, or as a folder of parquet files alone."""
    name = data.name.lower()
    if data.is_dir():
        return bool(_parquet_files(data)) and not _has_pictures(data)
    return data.is_file() and name.endswith((".zip", *TARS, PARQUET, *VIDEOS))


def unpack(data: Path, out: Path, fps: float | None = None) -> dict[str, str]:
    """Put the pictures and their captions into `out`; the reasons by name of those that cannot be read."""
    failed = {}
    rows: list[layout.Row] = []
    for item in _items(data, fps):
        if item.data is None:
            failed[item.name] = item.reason
            continue
        if item.text is not None:
            rows.append({"file_name": item.name, "text": item.text})
        path = out / item.name
        if not path.exists():
            atomic_write_bytes(path, item.data)
        elif item.name != layout.METADATA and path.read_bytes() != item.data:
            raise RequestError(f"{path}: is there already, with other content than in {data}; choose another --out")
    if rows and not (out / layout.METADATA).exists():
        layout.write_rows(out, rows)
    return failed


def _items(data: Path, fps: float | None) -> Iterator[Item]:
    name = data.name.lower()
    if fps is not None and not name.endswith(VIDEOS):
        raise RequestError(f"--fps {fps:g}: {data} is no video")
    if name.endswith(VIDEOS):
        return _frames(data, fps)
    if data.is_dir() or name.endswith(PARQUET):
        return _parquet_rows(data)
    return _zipped(data) if name.endswith(".zip") else _tarred(data)


def _zipped(path: Path) -> Iterator[Item]:
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [info for info in archive.infolist() if not info.is_dir() and _is_wanted(path, info.filename)]
            for info in wanted:
                if info.file_size > MOST_BYTES:
                    yield Item(info.filename, None, reason=f"is too large ({info.file_size:,} bytes)")
                    continue
                try:
                    yield Item(info.filename, archive.read(info))
                except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as reason:
                    yield Item(info.filename, None, reason=f"cannot be unpacked ({reason})")
    except zipfile.BadZipFile as reason:
        raise RequestError(f"{path}: is no whole zip archive ({reason}); get a whole copy") from None


def _tarred(path: Path) -> Iterator[Item]:
    try:
        with tarfile.open(path) as archive:
            wanted = [member for member in archive if not member.isdir() and _is_wanted(path, member.name)]
            names = {member.name for member in wanted}
            for member in wanted:
                if _is_map(member.name, names):
                    continue
                if not member.isreg():
                    yield Item(member.name, None, reason="is no file but a link or a device")
                elif member.size > MOST_BYTES:
                    yield Item(member.name, None, reason=f"is too large ({member.size:,} bytes)")
                else:
                    file = archive.extractfile(member)
                    yield Item(member.name.removeprefix("./"), file.read() if file else b"")
    except (tarfile.TarError, EOFError, OSError) as reason:
        raise RequestError(f"{path}: is no whole tar archive ({reason}); get a whole copy") from None


def _is_map(name: str, names: set[str]) -> bool:
    """Whether it is the map of another picture in webdataset's way: 000012.canny.png beside 000012.jpg."""
    key, dot, _ = PurePosixPath(name).stem.rpartition(".")
    beside = (str(PurePosixPath(name).with_name(key + suffix)) for suffix in SUFFIXES)
    return bool(dot) and any(each in names for each in beside)


def _is_wanted(archive: Path, name: str) -> bool:
    """Pictures and what describes them. All names are looked at before the first file is written."""
    path = PurePosixPath(name)
    if not is_inside(name):
        raise RequestError(f"{archive}: holds {name!r}, which leads out of the folder; such an archive is refused")
    if any(part.startswith(".") and part != "." for part in path.parts) or path.parts[0] == "__MACOSX":
        return False
    return path.suffix.lower() in (*SUFFIXES, ".txt") or str(path) in (layout.METADATA, TUTORIAL)


def _parquet_rows(data: Path) -> Iterator[Item]:
    """Rows of a hub dataset: a column of pictures, as `datasets` stores them or as bytes, and one of captions."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    number = 0
    for path in _parquet_files(data) if data.is_dir() else [data]:
        try:
            file = parquet.ParquetFile(path)
            pictures, captions = _columns(path, file.schema_arrow)
            columns = [pictures, *([captions] if captions else [])]
            for batch in file.iter_batches(batch_size=64, columns=columns):
                for row in batch.to_pylist():
                    yield _row_item(number, row[pictures], row.get(captions) if captions else None)
                    number += 1
        except pyarrow.ArrowException as reason:
            raise RequestError(f"{path}: is no whole parquet file ({reason}); get a whole copy") from None


def _columns(path: Path, schema: Any) -> tuple[str, str | None]:
    import pyarrow

    def holds_pictures(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_pictures(field.type)]
    if not found:
        raise RequestError(f"{path}: has no column of pictures; its columns: {', '.join(schema.names)}")
    pictures = "image" if "image" in found else found[0]
    return pictures, next((name for name in CAPTION_COLUMNS if name in schema.names), None)


def _row_item(number: int, value: Any, caption: Any) -> Item:
    from PIL import Image

    data = value.get("bytes") if isinstance(value, dict) else value
    if not data:
        return Item(f"{number:06d}", None, reason="the row holds no picture")
    try:
        with Image.open(io.BytesIO(data)) as image:
            suffix = (image.format or "").lower()
    except Exception:  # damaged: it is listed when it is decoded
        suffix = "png"
    suffix = {"jpeg": "jpg", "tiff": "tif", "ppm": "ppm"}.get(suffix, suffix)
    text = caption[0] if isinstance(caption, list) and caption else caption
    return Item(f"{number:06d}.{suffix}", data, text=str(text) if text else None)


def _frames(path: Path, fps: float | None) -> Iterator[Item]:
    """Frames as PNG, all or `fps` a second; each is named by its number in the video."""
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        own = video.get(cv2.CAP_PROP_FPS)
        if fps is not None and not 0 < fps <= own:
            raise RequestError(f"--fps {fps:g}: {path} has {own:g} frames a second")
        number = taken = 0
        while video.grab():
            if fps is None or number * fps >= taken * own:
                read, frame = video.retrieve()
                if read:
                    _, encoded = cv2.imencode(".png", frame, [cv2.IMWRITE_PNG_COMPRESSION, 1])
                    yield Item(f"{path.stem}-{number:06d}.png", encoded.tobytes())
                taken += 1
            number += 1
        if not taken:
            raise RequestError(f"{path}: is no video that OpenCV reads")
    finally:
        video.release()


def _parquet_files(folder: Path) -> list[Path]:
    """Where the hub keeps them; a folder of a million pictures is not searched through for them."""
    return sorted([*folder.glob(f"*{PARQUET}"), *(folder / "data").glob(f"*{PARQUET}")])


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*"))
