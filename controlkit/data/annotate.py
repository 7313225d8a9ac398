"""The annotate runner: a folder of pictures becomes a dataset with control maps.

The maps are their own ledger (`controlkit.data.ledger`): what is there with the right source, parameters and versions
is not made again, so that a run that was killed goes on where it stopped and ends with the same bytes. A bad picture
costs only itself.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controlkit.data import folder as layout
from controlkit.data.ledger import Entry, encode_map, read_entry
from controlkit.data.pictures import BadPicture, decode_picture
from controlkit.errors import RequestError
from controlkit.files import atomic_write_bytes, link_or_copy, need_writable, remove_leftovers
from controlkit.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from annotators import Annotator


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to annotate. `out` holds the dataset; where it is not `data`, the pictures are linked or copied there."""

    data: Path
    out: Path
    annotators: dict[str, Annotator]
    workers: int = 1
    overwrite: bool = False
    strict: bool = False


@dataclass
class Report:
    """What came of it, over all processes."""

    pictures: int = 0
    made: int = 0
    kept: int = 0
    errors: list[layout.Row] = field(default_factory=list)


@dataclass(frozen=True)
class _Outcome:
    file_name: str
    made: int = 0
    kept: int = 0
    reason: str | None = None


def annotate(job: Job, processes: Processes, progress: Callable[[int], None] = lambda total: None) -> Report:
    """Make the maps that are missing, then bring metadata.jsonl up to date. `progress` is called with the number of
    pictures of this process before the first and after each."""
    if (job.data / "metadata.csv").exists():
        raise RequestError(
            f"{job.data / 'metadata.csv'}: controlkit keeps its columns in metadata.jsonl; convert the file, e.g. with "
            f"python -c \"import pandas; pandas.read_csv('metadata.csv').to_json('metadata.jsonl', orient='records', "
            f'lines=True)", and remove the .csv'
        )
    pictures = layout.find_pictures(job.data)
    need_writable(job.out, "the output folder")
    rows = layout.read_rows(job.out) or layout.read_rows(job.data)  # refused now if they cannot be read

    begun = time.time()
    share = processes.slice(pictures)
    progress(len(share))
    outcomes = []
    for outcome in _in_order(job, share):
        if outcome.reason is not None and job.strict:
            raise BadPicture(job.data / outcome.file_name, outcome.reason)
        outcomes.append(outcome)
        progress(len(share))

    outcomes = processes.gather(outcomes)
    failed = {outcome.file_name: outcome.reason for outcome in outcomes if outcome.reason is not None}
    if processes.first:
        _write_metadata(job, pictures, rows, failed)
        for type in job.annotators:
            remove_leftovers(job.out / layout.CONDITIONS / type, begun)
    return Report(
        pictures=len(pictures),
        made=sum(outcome.made for outcome in outcomes),
        kept=sum(outcome.kept for outcome in outcomes),
        errors=[{"file_name": name, "reason": reason} for name, reason in sorted(failed.items())],
    )


def _in_order(job: Job, names: list[str]) -> Iterator[_Outcome]:
    """The outcomes in the order of the names, `job.workers` pictures at a time; never many pictures in memory.

    Threads are enough: Pillow, OpenCV, zlib and hashlib all let go of the interpreter while they work.
    """
    import cv2

    if job.workers > 1:
        cv2.setNumThreads(1)  # the pictures share the cores already
    with ThreadPoolExecutor(job.workers) as pool:
        pending: deque[Future[_Outcome]] = deque()
        try:
            for name in names:
                pending.append(pool.submit(_annotate_one, job, name))
                if len(pending) > 4 * job.workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # interrupted, or stopped by --strict: finish what has begun, begin nothing more
            pool.shutdown(cancel_futures=True)


def _annotate_one(job: Job, name: str) -> _Outcome:
    source = job.data / name
    try:
        data = source.read_bytes()
    except OSError as reason:
        return _Outcome(name, reason=f"cannot be read ({reason.strerror})")
    digest = hashlib.sha256(data).hexdigest()

    missing = {}
    for type, annotator in job.annotators.items():
        entry = Entry.of(type, annotator, digest)
        if job.overwrite or read_entry(job.out / layout.map_name(type, name)) != entry:
            missing[type] = entry
    if missing:
        try:
            image = decode_picture(source, data)
            maps = {type: _checked_map(type, job.annotators[type], image) for type in missing}
        except BadPicture as reason:
            return _Outcome(name, reason=reason.reason)
        except Exception as reason:  # an annotator that fails on one picture fails for that picture alone
            return _Outcome(name, reason=f"{type}: {' '.join(str(reason).split())}")
        for type, entry in missing.items():
            encoded = encode_map(maps[type], entry, job.annotators[type].values)
            atomic_write_bytes(job.out / layout.map_name(type, name), encoded)
    if job.out != job.data:
        link_or_copy(source, job.out / name)
    return _Outcome(name, made=len(missing), kept=len(job.annotators) - len(missing))


def _checked_map(type: str, annotator: Annotator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    made = annotator(image)
    if made.shape != image.shape or made.dtype != image.dtype:
        raise ValueError(f"gave {made.dtype} {made.shape} for a picture of {image.shape}: a bug of {type}")
    return made


def _write_metadata(job: Job, pictures: Iterable[str], rows: list[layout.Row], failed: dict[str, str]) -> None:
    """A row for every picture that has its maps; the row of a failed one waits in errors.jsonl until it is mended."""
    set_aside = layout.read_errors(job.out)
    rows = rows + [error["row"] for error in set_aside if error.get("row")]
    known = {row["file_name"] for row in rows}
    rows += [{"file_name": name} for name in pictures if name not in known]

    errors = []
    present = set(pictures)
    kept = []
    for row in rows:
        name = row["file_name"]
        if name in failed:
            errors.append({"file_name": name, "reason": failed[name], "row": row})
            continue
        if name in present:
            if "text" not in row and (caption := layout.sidecar_caption(job.data / name)) is not None:
                row = {"file_name": name, "text": caption, **row}
            row = row | {layout.column(type): layout.map_name(type, name) for type in job.annotators}
        kept.append(row)
    layout.write_rows(job.out, kept)
    layout.write_errors(job.out, errors)
