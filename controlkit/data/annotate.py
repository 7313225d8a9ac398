"""The annotate runner: pictures become a dataset with control maps.

The maps are their own ledger (`controlkit.data.ledger`): what is there with the right source, parameters and versions
is not made again, so that a run that was killed goes on where it stopped and ends with the same bytes. A bad picture
costs only itself.

The work goes in slices of the sorted pictures (`controlkit.data.slices`), and a process takes whole ones.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from controlkit.data import folder as layout
from controlkit.data.archives import is_archive, unpack
from controlkit.data.captions import Captioner, caption_from_name
from controlkit.data.inputs import find_pictures
from controlkit.data.maps import MapMaker
from controlkit.data.metadata import bring_up_to_date, read_metadata
from controlkit.data.pictures import BadPicture
from controlkit.data.slices import Maker, Slices
from controlkit.errors import RequestError
from controlkit.files import need_writable, remove_leftovers
from controlkit.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from annotators import Annotator
    from annotators.pose_json import PoseFiles

BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to annotate. `out` holds the dataset (None: where the pictures are); pictures from elsewhere are linked or
    copied there.

    batch_size        pictures that go through a network together. Another number rounds differently, and a map that is
                      there is not made again for that
    depth16           write depth maps a second time, with 16 bits, as the column depth16
    names_as_captions, caption_model
                      what gives a picture without a caption one: its file name, or an image-to-text model
    device, offline   where and whence the caption model runs; annotators know theirs
    fps               frames a second of a video (None: all)
    """

    data: Path
    out: Path | None = None
    annotators: Mapping[str, Annotator | PoseFiles]
    workers: int = 1
    batch_size: int = BATCH_SIZE
    depth16: bool = False
    names_as_captions: bool = False
    caption_model: str | None = None
    device: str | None = None
    offline: bool = False
    fps: float | None = None
    overwrite: bool = False
    strict: bool = False


@dataclass
class Report:
    """What came of it, over all processes."""

    folder: Path
    out: Path
    pictures: int = 0
    made: int = 0
    kept: int = 0
    captioned: int = 0
    errors: list[layout.Row] = field(default_factory=list)


def annotate(job: Job, processes: Processes, progress: Callable[[int], None] = lambda total: None) -> Report:
    """Make the maps that are missing, then bring metadata.jsonl up to date. `progress` is called with the number of
    pictures of this process before the first and after each."""
    unreadable = _unpacked(job, processes)
    source = find_pictures(job.data if unreadable is None else job.out or job.data)
    out = job.out or source.folder
    need_writable(out, "the output folder")
    rows = read_metadata(source, out)  # refused now if they cannot be read
    maps = [
        MapMaker(type, annotator, out, depth16=job.depth16 and type == "depth")
        for type, annotator in job.annotators.items()
    ]
    captioner = _captioner(job, source.folder, out, rows)
    del rows
    makers: list[Maker] = [*maps, *([captioner] if captioner else [])]

    begun = time.time()
    slices = Slices(
        folder=source.folder,
        out=out,
        makers=makers,
        workers=job.workers,
        batch_size=job.batch_size,
        overwrite=job.overwrite,
    )
    share = processes.slice(slices.of(source.names))
    total = sum(len(names) for names in share)
    progress(total)
    counts: Counter[str] = Counter()
    failed = []
    for outcome in slices.outcomes(share):
        if outcome.reasons and job.strict:
            raise BadPicture(source.folder / outcome.name, "; ".join(outcome.reasons))
        if outcome.reasons:
            failed.append((outcome.name, "; ".join(outcome.reasons)))
        counts["captioned"] += Captioner.type in outcome.made
        counts["made"] += len(set(outcome.made) & set(job.annotators))
        counts["kept"] += len(set(outcome.kept) & set(job.annotators))
        progress(total)

    reasons = {**(unreadable or {}), **dict(processes.gather(failed))}
    captions = dict(processes.gather(list(captioner.texts.items()) if captioner else []))
    totals = sum(processes.gather([counts]), Counter())
    if processes.first:
        types = [type for maker in maps for type in maker.types]
        own = caption_from_name if job.names_as_captions else captions.get
        bring_up_to_date(source, out, types, reasons, own)
        for type in types:
            remove_leftovers(out / layout.CONDITIONS / type, begun)
        if captioner:
            captioner.forget()
    return Report(
        folder=source.folder,
        out=out,
        pictures=len(source.names),
        made=totals["made"],
        kept=totals["kept"],
        captioned=totals["captioned"],
        errors=[{"file_name": layout.printable(name), "reason": reason} for name, reason in sorted(reasons.items())],
    )


def _unpacked(job: Job, processes: Processes) -> dict[str, str] | None:
    """Where DATA is an archive: its pictures into `out`, and the reasons of those that cannot be read."""
    if not is_archive(job.data):
        if job.fps is not None:
            raise RequestError(f"--fps {job.fps:g}: {job.data} is no video")
        return None
    if job.out is None:
        raise RequestError(f"{job.data}: its pictures have to be put somewhere; give --out DIR")
    need_writable(job.out, "the output folder")
    unreadable = unpack(job.data, job.out, job.fps) if processes.first else {}
    processes.wait()  # until all is there
    return unreadable


def _captioner(job: Job, folder: Path, out: Path, rows: list[layout.Row]) -> Captioner | None:
    if job.caption_model is None:
        return None
    captioner = Captioner(
        model=job.caption_model,
        device=job.device,
        offline=job.offline,
        folder=folder,
        out=out,
        captioned=frozenset(row["file_name"] for row in rows if "text" in row),
    )
    captioner.network  # noqa: B018  (refused now if it cannot be loaded)
    return captioner
