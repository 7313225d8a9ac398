"""What holds the bytes of a picture or a map: a file, or a part of one. All are read by `read_bytes`, as a Path is."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

WAITS = (1.0, 4.0, 16.0)
"""Seconds before a range of a file on another machine is asked for again."""


class Readable(Protocol):
    """Its text names it in messages."""

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class Member:
    """A file in a tar, read where it lies."""

    file: Path
    name: str
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        with self.file.open("rb") as archive:
            archive.seek(self.offset)
            return archive.read(self.size)

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"


@dataclass(frozen=True)
class Cell:
    """A cell of a parquet file, as bytes or as `datasets` stores pictures."""

    file: Path
    group: int
    row: int
    column: str

    def read_bytes(self) -> bytes:
        value = _column(self.file, self.group, self.column)[self.row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        return data or b""

    def __str__(self) -> str:
        return f"{self.file}: {self.column} of row {self.row} in group {self.group}"


@dataclass(frozen=True)
class Part:
    """A file in a tar on another machine, of which `data.remote` has seen what it holds: its SHA-256, and of a picture
    the width and height as people see it. Read as a range; other bytes than were seen are refused."""

    address: str
    name: str
    offset: int
    size: int
    sha256: str
    upright: tuple[int, int] | None

    def read_bytes(self) -> bytes:
        data = self._range()
        if sha256(data).hexdigest() != self.sha256:
            raise OSError(errno.EIO, "is not what it was when its tar was read through; begin again")
        return data

    def _range(self) -> bytes:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        system, path = url_to_fs(self.address)
        for wait in (*WAITS, None):
            try:
                data: bytes = system.cat_file(path, self.offset, self.offset + self.size)
            except FileNotFoundError:
                raise
            except Exception as reason:  # each system has its own for what a network may do
                if wait is None:
                    raise OSError(errno.EIO, " ".join(str(reason).split())) from reason
                time.sleep(wait)
            else:
                break
        return data

    def __str__(self) -> str:
        return f"{self.address}/{self.name}"


@dataclass(frozen=True)
class Kept:
    """A text in such a tar, small enough to be kept."""

    name: str
    text: str

    def read_bytes(self) -> bytes:
        return self.text.encode()

    def __str__(self) -> str:
        return self.name


def file_of(readable: Readable) -> Path:
    """The file on the disk that holds it."""
    return readable if isinstance(readable, Path) else readable.file  # type: ignore[attr-defined]


@lru_cache(maxsize=2)
def _column(file: Path, group: int, column: str) -> Any:
    from pyarrow import parquet  # type: ignore[import-untyped]

    return parquet.ParquetFile(file).read_row_group(group, columns=[column])[column]
