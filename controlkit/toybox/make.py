"""A world becomes a dataset folder, in the layout that `controlkit annotate` writes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotators import ANNOTATORS
from controlkit.data import folder as layout
from controlkit.data.ledger import Entry, encode_map
from controlkit.errors import RequestError, known
from controlkit.files import (
    atomic_folder,
    atomic_write_bytes,
    atomic_write_text,
    cache_folder,
    need_writable,
    remove_leftovers,
)
from controlkit.toybox.worlds import find_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from controlkit.toybox.scene import Scene

STAMP = "toybox.json"
ANNOTATED = ("canny",)  # types that no world knows by itself; its annotator makes them from the picture

_DRAWING = 2  # raised when a change here or in a world changes the pixels
_CACHED = 2048  # scenes, where no number is said
_CHUNK = 16  # scenes that a worker draws at a time


def make(
    out: Path,
    world: str,
    *,
    count: int,
    size: int = 64,
    seed: int = 0,
    workers: int = 1,
    types: tuple[str, ...] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Draw the first `count` scenes of a world into `out`, with control maps of these types (None: all there are).

    What is there already is kept; a folder that holds anything else is refused. Beside a pose map lie its keypoints, in
    OpenPose's JSON. `progress` is called with the scenes done and their number.
    """
    available = (*find_world(world).maps, *ANNOTATED)
    for type in types or ():
        if type not in available:
            raise RequestError(f"the world {world!r} has no maps of type {type!r}: {known(type, available)}")
    if size < 8 or count < 1 or seed < 0 or workers < 1:
        raise RequestError(
            f"count={count}, size={size}, seed={seed}, workers={workers}: expected at least 1 scene of at least 8 "
            f"pixels, a seed that is not negative, and at least 1 worker"
        )
    stamp = {"world": world, "size": size, "seed": seed, "drawing": _DRAWING}
    need_writable(out, "the output folder")
    _check_stamp(out, stamp)
    begun = time.time()
    atomic_write_text(out / STAMP, json.dumps(stamp) + "\n")

    rows: list[dict[str, Any]] = []
    progress(0, count)
    draw_one = partial(_draw_one, out, world, seed, size, available if types is None else types)
    for row in _in_order(draw_one, count, workers):
        rows.append(row)
        progress(len(rows), count)
    remove_leftovers(out, begun)
    before = {row["file_name"]: row for row in layout.read_rows(out)}
    layout.write_rows(out, [{**before.pop(row["file_name"], {}), **row} for row in rows] + list(before.values()))


def cached_world(
    world: str, count: int | None = None, say: Callable[[str], None] = lambda text: None, *, size: int = 64
) -> Path:
    """The folder of a world in the cache, drawn when it is first asked for; many scenes by all processors at once."""
    count = count or _CACHED
    folder = cache_folder() / "worlds" / f"v{_DRAWING}" / f"{world}-{count}x{size}"
    if not (folder / layout.METADATA).exists():
        say(f"drawing {count} scenes of the world {world} into {folder}")
        with atomic_folder(folder) as unfinished:
            make(unfinished, world, count=count, size=size, workers=min(1 + count // 4096, os.cpu_count() or 1))
    return folder


def _in_order(draw: Callable[[int], dict[str, Any]], count: int, workers: int) -> Iterator[dict[str, Any]]:
    """The rows by index; drawing holds the interpreter, so several workers are processes."""
    if workers == 1:
        yield from map(draw, range(count))
        return
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker)
    try:
        chunks: deque[Any] = deque()
        for start in range(0, count, _CHUNK):
            chunks.append(executor.submit(_draw_many, draw, range(start, min(count, start + _CHUNK))))
            if len(chunks) > 4 * workers:
                yield from chunks.popleft().result()
        while chunks:
            yield from chunks.popleft().result()
    finally:  # interrupted or failed: finish what has begun, begin nothing more
        executor.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    import cv2

    cv2.setNumThreads(1)  # the workers share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others


def _draw_many(draw: Callable[[int], dict[str, Any]], indices: range) -> list[dict[str, Any]]:
    return [draw(index) for index in indices]


def _draw_one(out: Path, world: str, seed: int, size: int, types: tuple[str, ...], index: int) -> dict[str, Any]:
    """Draw a scene if any of its files is not there, and give its row."""
    name = f"{index:06d}.png"
    scene = find_world(world).plan(seed, index)
    maps = {type: layout.map_name(type, name) for type in types}
    keypoints = layout.map_name("pose", name).removesuffix(".png") + ".json"
    wanted = [name, *maps.values(), *([keypoints] if "pose" in types else [])]
    missing = {path for path in wanted if not (out / path).exists()}
    if missing:
        drawn = scene.draw(size)
        picture = encode_scene(drawn.image)
        if name in missing:
            atomic_write_bytes(out / name, picture)
        for type, path in maps.items():
            if path in missing:
                atomic_write_bytes(out / path, _encode_map(type, world, drawn, picture))
        if keypoints in missing:
            atomic_write_text(out / keypoints, json.dumps(drawn.keypoints) + "\n")
    columns = {layout.column(type): path for type, path in maps.items()}
    return {"file_name": name, "text": scene.caption, **columns, "scene": json.dumps(scene.facts)}


def encode_scene(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _encode_map(type: str, world: str, scene: Scene, picture: bytes) -> bytes:
    """The PNG of a map with its ledger. A map by an annotator is the one that `controlkit annotate` would write."""
    digest = hashlib.sha256(picture).hexdigest()
    if type in ANNOTATED:
        annotator = ANNOTATORS.create(type)
        return encode_map(annotator(scene.image), Entry.of(type, annotator, digest), annotator.values)
    entry = Entry(type, digest, parameters={"world": world}, versions={"toybox": str(_DRAWING)})
    return encode_map(scene.maps[type], entry, None)


def _check_stamp(out: Path, stamp: dict[str, Any]) -> None:
    try:
        found = json.loads((out / STAMP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise RequestError(f"{out} is not empty and holds no drawn world; choose another folder") from None
        return
    except ValueError:
        raise RequestError(f"{out / STAMP} cannot be read; choose another folder, or remove this one") from None
    if found != stamp:
        raise RequestError(f"{out} holds {found}, asked for is {stamp}; choose another folder")
