"""Tars on another machine, under any address that fsspec knows (hf://, s3://, gs://, https://): read where they lie.

Each is read through once, by one of the processes, and what it holds is kept in the cache: where every member lies,
its SHA-256, the size of its picture, its texts. From then on these are data like any others: rows known by their
content, an order that is a function of the seed, a share for each process, a run that goes on at its row. A step asks
for the ranges of its own rows alone.

What is kept counts while the system says of the tar what it said then (size, and a hash, an ETag or a time). Of a tar
of which nothing but the size is said, nothing is kept: it is read through at each start.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from glob import has_magic
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from controlkit.data.pictures import SUFFIXES, upright_size
from controlkit.data.readable import Kept, Part
from controlkit.errors import RequestError
from controlkit.files import atomic_write_text, cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from controlkit.processes import Processes

FORMAT = 1  # raised when what is kept of a tar changes
BLOCK = 8 << 20  # bytes asked for at once where a tar is read through
AT_ONCE = 8  # tars, by each process
TEXTS = (".txt", ".json")

_TELLING = (
    *("ETag", "etag", "e_tag", "blob_id", "xet_hash", "lfs", "md5Hash", "crc32c", "content_md5", "generation"),
    *("mtime", "created", "updated", "LastModified", "last_modified", "Last-Modified"),
)
"""What systems call the fields that change with a file."""


@dataclass(frozen=True)
class RemoteFile:
    """A tar by its address."""

    address: str


@dataclass(frozen=True)
class RemoteTar:
    """A tar that was read through."""

    address: str
    members: tuple[Part | Kept, ...]

    def __str__(self) -> str:
        return self.address


def find_remote(address: str) -> list[RemoteFile]:
    """The tars that an address names, by wildcards too."""
    if not address.endswith(".tar"):
        raise RequestError(
            f"data.path={address}: expected tars, e.g. …/*.tar; what else lies there is read from the disk: fetch it "
            f"first, say with hf download"
        )
    system, path = _system(address)
    if not has_magic(path):
        return [RemoteFile(address)]
    try:
        found = sorted(system.glob(path))
    except Exception as reason:  # each system has its own for what a network may do
        raise _unreadable(address, reason) from None
    if not found:
        raise RequestError(f"data.path={address}: there is no such tar; look with fsspec, hf or a browser")
    return [RemoteFile(system.unstrip_protocol(each)) for each in found]


def read_through(
    files: list[RemoteFile], processes: Processes, say: Callable[[str], None] = lambda text: None
) -> dict[RemoteFile, RemoteTar]:
    """What the tars hold. All processes call it together; each reads its share of those that are not known yet."""
    if not files:
        return {}
    mine = processes.slice(files)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        known = list(pool.map(_recalled, mine))
        if unknown := sum(processes.gather([known.count(None)])):
            say(f"{unknown} of {len(files)} tars on another machine are read through, once")
        tars = list(pool.map(lambda file, tar: tar or _read_through(file), mine, known))
    return {RemoteFile(tar.address): tar for tar in processes.gather(tars)}


def _read_through(file: RemoteFile) -> RemoteTar:
    system, path = _system(file.address)
    try:
        said = _said(system, path)
        with system.open(path, "rb", block_size=BLOCK) as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
            tar = RemoteTar(file.address, tuple(_members(file.address, archive)))
        unchanged = _said(system, path) == said
    except (tarfile.TarError, EOFError) as reason:
        raise RequestError(f"{file.address}: is no whole tar archive ({reason}); put a whole one there") from None
    except Exception as reason:
        raise _unreadable(file.address, reason) from None
    if not unchanged:
        raise RequestError(f"{file.address}: changed while it was read; begin again when it is whole")
    if said is not None:
        members = [{"kind": type(member).__name__, **asdict(member)} for member in tar.members]
        data = {"format": FORMAT, "address": file.address, "said": said, "members": members}
        atomic_write_text(_memory(file), json.dumps(data))
    return tar


def _members(address: str, archive: tarfile.TarFile) -> Iterator[Part | Kept]:
    for info in archive:
        suffix = PurePosixPath(info.name).suffix.lower()
        if not info.isreg() or suffix not in (*SUFFIXES, *TEXTS):
            continue
        file = archive.extractfile(info)
        data = file.read() if file else b""
        if len(data) != info.size:
            raise EOFError(f"{info.name} ends early")
        if suffix in TEXTS:
            yield Kept(info.name, data.decode("utf-8-sig", "replace"))
            continue
        try:
            upright = upright_size(data)
        except Exception:  # no picture, or a damaged one: said where it is read
            upright = None
        yield Part(address, info.name, info.offset_data, info.size, hashlib.sha256(data).hexdigest(), upright)


def _recalled(file: RemoteFile) -> RemoteTar | None:
    """What the cache holds of a tar that is still the same."""
    try:
        data = json.loads(_memory(file).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    system, path = _system(file.address)
    try:
        said = _said(system, path)
    except Exception as reason:
        raise _unreadable(file.address, reason) from None
    if data["format"] != FORMAT or data["address"] != file.address or said is None or data["said"] != said:
        return None
    return RemoteTar(file.address, tuple(map(_member, data["members"])))


def _member(values: dict[str, Any]) -> Part | Kept:
    kind = values.pop("kind")
    if kind == Kept.__name__:
        return Kept(**values)
    return Part(**{**values, "upright": tuple(values["upright"]) if values["upright"] else None})


def _memory(file: RemoteFile) -> Path:
    return cache_folder() / "remote" / f"{hashlib.sha256(file.address.encode()).hexdigest()[:32]}.json"


def _said(system: Any, path: str) -> str | None:
    """What tells whether a file is still the same; None where nothing does."""
    system.invalidate_cache()
    info = system.info(path)
    telling = {name: str(info[name]) for name in _TELLING if info.get(name) is not None}
    return json.dumps({"size": info.get("size"), **telling}, sort_keys=True) if telling else None


def _system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        system, path = url_to_fs(address)
    except (ValueError, ImportError) as reason:
        raise RequestError(f"data.path={address}: {reason}") from None
    return system, path


def _unreadable(address: str, reason: Exception) -> RequestError:
    if isinstance(reason, FileNotFoundError):
        return RequestError(f"{address}: there is no such file")
    return RequestError(f"{address}: cannot be read ({' '.join(str(reason).split()) or type(reason).__name__})")
