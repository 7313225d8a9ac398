"""What holds the bytes of a picture or a map: a file, or a part of one. All are read by `read_bytes`, as a Path is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol


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


def file_of(readable: Readable) -> Path:
    """The file on the disk that holds it."""
    return readable if isinstance(readable, Path) else readable.file  # type: ignore[attr-defined]


@lru_cache(maxsize=2)
def _column(file: Path, group: int, column: str) -> Any:
    from pyarrow import parquet  # type: ignore[import-untyped]

    return parquet.ParquetFile(file).read_row_group(group, columns=[column])[column]
