"""A world becomes a dataset folder, in the layout that `controlkit annotate` writes."""

from __future__ import annotations

import io
import json
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotators import ANNOTATORS
from controlkit.data import folder as layout
from controlkit.data.annotate import Job, annotate
from controlkit.errors import RequestError
from controlkit.files import (
    atomic_folder,
    atomic_write_bytes,
    atomic_write_text,
    cache_folder,
    need_writable,
    remove_leftovers,
)
from controlkit.processes import Processes
from controlkit.toybox.worlds import find_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STAMP = "toybox.json"
_DRAWING = 1  # raised when a change here or in a world changes the pixels


def make(
    out: Path,
    world: str,
    *,
    count: int,
    size: int = 64,
    seed: int = 0,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Draw the first `count` scenes of a world into `out`, with canny maps.

    What is there already is kept; a folder that holds anything else is refused.
    """
    find_world(world)
    if size < 8 or count < 1:
        raise RequestError(f"count={count}, size={size}: expected at least 1 scene of at least 8 pixels")
    stamp = {"world": world, "size": size, "seed": seed, "drawing": _DRAWING}
    need_writable(out, "the output folder")
    _check_stamp(out, stamp)
    begun = time.time()
    atomic_write_text(out / STAMP, json.dumps(stamp) + "\n")

    rows: list[dict[str, Any]] = []
    progress(0, count)
    for row in _in_order(partial(_draw_one, out, world, seed, size), count, workers):
        rows.append(row)
        progress(len(rows), count)
    remove_leftovers(out, begun)
    known = {row["file_name"]: row for row in layout.read_rows(out)}
    layout.write_rows(out, [{**known.pop(row["file_name"], {}), **row} for row in rows] + list(known.values()))
    annotate(Job(data=out, out=out, annotators={"canny": ANNOTATORS.create("canny")}, workers=workers), Processes())


def cached_world(world: str, count: int = 256, size: int = 64) -> Path:
    """The folder of a world in the cache, drawn when it is first asked for."""
    folder = cache_folder() / "worlds" / f"v{_DRAWING}" / f"{world}-{count}x{size}"
    if not (folder / layout.METADATA).exists():
        with atomic_folder(folder) as unfinished:
            make(unfinished, world, count=count, size=size)
    return folder


def _in_order(draw: Callable[[int], dict[str, Any]], count: int, workers: int) -> Iterator[dict[str, Any]]:
    """The rows by index; drawing holds the interpreter, so several workers are processes."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn")) if workers > 1 else nullcontext()
    with pool as executor:
        if executor is None:
            yield from map(draw, range(count))
            return
        chunks: deque[Any] = deque()
        for start in range(0, count, 64):
            chunks.append(executor.submit(_draw_many, draw, range(start, min(count, start + 64))))
            if len(chunks) > 4 * workers:
                yield from chunks.popleft().result()
        while chunks:
            yield from chunks.popleft().result()


def _draw_many(draw: Callable[[int], dict[str, Any]], indices: range) -> list[dict[str, Any]]:
    return [draw(index) for index in indices]


def _draw_one(out: Path, world: str, seed: int, size: int, index: int) -> dict[str, Any]:
    """Draw a scene if it is not there, and give its row."""
    from PIL import Image

    name = f"{index:06d}.png"
    scene = find_world(world)(seed, index, size)
    if not (out / name).exists():
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, format="PNG", compress_level=1)
        atomic_write_bytes(out / name, buffer.getvalue())
    return {"file_name": name, "text": scene.caption, "scene": json.dumps(scene.facts)}


def _check_stamp(out: Path, stamp: dict[str, Any]) -> None:
    try:
        found = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise RequestError(f"{out} is not empty and holds no drawn world; choose another folder") from None
        return
    if found != stamp:
        raise RequestError(f"{out} holds {found}, asked for is {stamp}; choose another folder")
