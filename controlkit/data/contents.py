"""What files hold: their SHA-256, remembered so that a file that nobody touched is not read again.

Trusted like git trusts its index: a remembered hash counts while size, inode and both times of change are what they
were. The time of the inode's change cannot be set by a program, so that a file put in place with an old date is seen.
"""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from controlkit.data.pictures import BadPicture
from controlkit.data.readable import Part, file_of
from controlkit.files import atomic_write_text, cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlkit.data.readable import Readable
    from controlkit.processes import Processes

TICK = 2.0  # seconds; the coarsest clock of a file system. What changed just now could change again unseen

Stamp = list[int]


def contents(files: Sequence[Readable], dataset: str, processes: Processes) -> list[str]:
    """The SHA-256 of each file, this process reading its share of them; one that cannot be read is a BadPicture.

    What is remembered of a dataset lies together; `dataset` is what it was asked for by.
    """
    memo = cache_folder() / "contents" / f"{sha256(dataset.encode()).hexdigest()[:32]}.json"
    known = _read(memo)
    with ThreadPoolExecutor() as pool:
        found = processes.gather(list(pool.map(lambda path: _content(path, known), processes.slice(list(files)))))
    if processes.first:
        now = time.time()
        fresh = {
            _name(path): [stamp, digest]
            for path, (stamp, digest) in zip(files, found, strict=True)
            if stamp and now - max(stamp[1], stamp[2]) / 1e9 > TICK
        }
        if any(known.get(name) != value for name, value in fresh.items()):
            with contextlib.suppress(OSError):  # a memory that cannot be kept costs time, nothing else
                atomic_write_text(memo, json.dumps(known | fresh))
    return [digest for _, digest in found]


def digest_of(path: Readable) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _content(path: Readable, known: dict[str, list[object]]) -> tuple[Stamp, str]:
    if isinstance(path, Part):
        return [], path.sha256
    try:
        stamp = _stamp(path)
        remembered = known.get(_name(path))
        if remembered and remembered[0] == stamp:
            return stamp, str(remembered[1])
        return stamp, digest_of(path)
    except OSError as reason:
        raise BadPicture(path, f"cannot be read ({reason.strerror})") from None


def _stamp(path: Readable) -> Stamp:
    status = file_of(path).stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _name(path: Readable) -> str:
    return f"{file_of(path).absolute()} {path}"


def _read(memo: Path) -> dict[str, list[object]]:
    try:
        known: dict[str, list[object]] = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known
