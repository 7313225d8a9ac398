"""The one index of rows that a training or an evaluation reads: picture, control map, captions, label, and the content
that names the row. What form the data have is the business of `data.readers`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.data.contents import contents
from controlkit.data.ledger import read_entry
from controlkit.data.pictures import cover, read_picture, resize_picture
from controlkit.data.readers import read
from controlkit.data.remote import RemoteFile, RemoteTar, find_remote, read_through
from controlkit.errors import RequestError, known
from controlkit.processes import Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from controlkit.data.ledger import Entry
    from controlkit.data.readable import Readable
    from controlkit.data.readers import Found

WORLDS: dict[str, Callable[[int | None, Callable[[str], None]], Path]] = {}
"""Worlds that can be named where a dataset is expected; each gives the folder with so many scenes, drawn on demand
(None: its usual number), saying so where it takes a while. Filled from above."""


@dataclass(frozen=True)
class Row:
    """One picture. `content` is its SHA-256: it names the row whatever the file is called. `controls` (its maps by
    type), `label`, `mask` and `columns` are there where they were asked for; a row without a mask counts as a whole."""

    file_name: str
    picture: Readable
    captions: tuple[str, ...]
    content: str
    controls: Mapping[str, Readable] = field(default_factory=dict)
    label: str | None = None
    mask: Readable | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        return self.captions[0]

    @property
    def control(self) -> Readable | None:
        """The first of its maps: of rows that were asked for one type, the map."""
        return next(iter(self.controls.values()), None)


def find_datasets(path: str, say: Callable[[str], None] = lambda text: None) -> list[Path]:
    """What a `data.path` names on this machine, apart by commas: each a folder, a file or several by wildcards, or a
    world (`rooms`, `rooms:20000`), which is drawn into the cache first."""
    found = _find_datasets(path, say, Processes())
    if elsewhere := [each.address for each in found if isinstance(each, RemoteFile)]:
        raise RequestError(f"data.path={elsewhere[0]}: lies on another machine, and is needed here; copy it")
    return [each for each in found if isinstance(each, Path)]


def types_of(condition: str | Sequence[str] | None) -> tuple[str, ...]:
    """The control types that are meant: one, several, or none."""
    return (condition,) if isinstance(condition, str) else tuple(condition or ())


def read_datasets(
    path: str,
    condition: str | Sequence[str] | None = None,
    *,
    maps: str | None = None,
    label: str | None = None,
    mask: str | None = None,
    columns: Collection[str] = (),
    without_maps: bool = False,
    say: Callable[[str], None] = lambda text: None,
    processes: Processes | None = None,
) -> list[Row]:
    """The rows of all that `data.path` names; the rest is that of `read_dataset`."""
    processes = processes or Processes()
    found = _find_datasets(path, say, processes)
    if maps is not None and (len(found) > 1 or not (isinstance(found[0], Path) and found[0].is_dir())):
        raise RequestError(f"data.maps={maps}: goes with one folder of pictures, but data.path={path} is none")
    folder = None if maps is None else Path(maps).expanduser()
    tars = read_through([each for each in found if isinstance(each, RemoteFile)], processes, say)
    return [
        row
        for data in (tars[each] if isinstance(each, RemoteFile) else each for each in found)
        for row in read_dataset(
            data,
            condition,
            maps=folder,
            label=label,
            mask=mask,
            columns=columns,
            without_maps=without_maps,
            processes=processes,
        )
    ]


def read_dataset(
    data: Path | RemoteTar,
    condition: str | Sequence[str] | None = None,
    *,
    maps: Path | None = None,
    label: str | None = None,
    mask: str | None = None,
    columns: Collection[str] = (),
    without_maps: bool = False,
    processes: Processes | None = None,
) -> list[Row]:
    """The rows of a dataset in any form, in its order: with a `condition` those that have a map of that type, or of
    each of several (those `without_maps` too, if asked for), which for the first of two folders lie in `maps`; with a
    `label` the value of that column, or of `column.key` in its JSON; with a `mask` the map of that name; of these
    `columns` those that it has.

    Called by all processes together, each hashes its share of the pictures.
    """
    types = types_of(condition)
    found = read(data, maps, types[0] if types else None)
    for each_type in () if without_maps else types:
        found = [each for each in found if each_type in each.maps] or _refuse(data, each_type, found)
    controls = [{type: each.maps[type] for type in types if type in each.maps} for each in found]
    masks = [None if mask is None else each.maps.get(mask) for each in found]
    if mask is not None and not any(masks):
        there = sorted({type for each in found for type in each.maps})
        raise RequestError(f"data.mask={mask}: no row of {data} has a map of that name: {known(mask, there)}")
    for type in types:
        _refuse_missing(data, type, found, [maps_of_row.get(type) for maps_of_row in controls])
    _refuse_missing(data, None, found, masks)
    return [
        Row(
            each.file_name,
            each.picture,
            each.captions,
            content,
            maps_of_row,
            label and _label(each, label),
            own_mask,
            {name: str(each.columns[name]) for name in columns if name in each.columns},
        )
        for each, maps_of_row, own_mask, content in zip(
            found, controls, masks, _contents(data, found, controls, processes or Processes()), strict=True
        )
    ]


def load_pictures(rows: list[Row], size: int) -> NDArray[np.uint8]:
    """(N, size, size, 3): scaled to cover the square, the middle cut out. In memory, as small worlds fit there."""

    def load(row: Row) -> NDArray[np.uint8]:
        image = read_picture(row.picture)
        to, window = cover(image.shape[1], image.shape[0], size)
        return resize_picture(image, to)[window]

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(load, rows)))


def held_out(content: str, share: float) -> bool:
    """Whether a row is kept from training: decided by its content, so that a copy under another name goes with it."""
    return int(content[:8], 16) < share * 2**32


def _find_datasets(path: str, say: Callable[[str], None], processes: Processes) -> list[Path | RemoteFile]:
    """With `://` on another machine."""
    if Path(path).expanduser().exists():
        return [Path(path).expanduser()]
    return [found for each in path.split(",") for found in _find_dataset(each.strip(), say, processes)]


def _find_dataset(path: str, say: Callable[[str], None], processes: Processes) -> Sequence[Path | RemoteFile]:
    if "://" in path:
        return find_remote(path)
    if Path(path).expanduser().exists():
        return [Path(path).expanduser()]
    if has_magic(path) and (matching := sorted(glob(str(Path(path).expanduser())))):  # noqa: PTH207 (absolute too)
        return [Path(each) for each in matching]
    world, colon, count = path.partition(":")
    if world not in WORLDS:
        raise RequestError(
            f"data.path={path}: there is no such folder, and no world of that name: {known(world, WORLDS)}"
        )
    if colon and not (count.isdecimal() and int(count) > 0):
        raise RequestError(f"data.path={path}: expected a number of scenes behind the colon, e.g. {world}:20000")
    find_or_draw = partial(WORLDS[world], int(count) if colon else None, say)
    if processes.first:
        find_or_draw()
    processes.wait()
    return [find_or_draw()]  # it is there, unless this machine does not see the disk of the first


def _contents(
    data: Path | RemoteTar, found: list[Found], controls: Sequence[Mapping[str, Readable]], processes: Processes
) -> list[str]:
    """The ledger in a map spares reading its picture."""

    def look(maps: Mapping[str, Readable]) -> Entry | None:
        first = next(iter(maps.values()), None)
        return read_entry(first) if isinstance(first, Path) else None

    with ThreadPoolExecutor() as pool:
        entries = list(pool.map(look, controls))
    unsaid = [number for number, entry in enumerate(entries) if entry is None]
    read_now = contents([found[number].picture for number in unsaid], str(data), processes)
    by_number = dict(zip(unsaid, read_now, strict=True))
    return [by_number[number] if entry is None else entry.source_sha256 for number, entry in enumerate(entries)]


def _refuse(data: Path | RemoteTar, condition: str, found: list[Found]) -> list[Found]:
    make = _make(data, condition)
    types = sorted({type for each in found for type in each.maps})
    if not types:
        raise RequestError(f"{data} holds pictures but no control maps; make them: {make}")
    raise RequestError(f"{data} has no {condition} maps: {known(condition, types)}; make them: {make}")


def _refuse_missing(
    data: Path | RemoteTar, condition: str | None, found: list[Found], controls: list[Readable | None]
) -> None:
    named = [each for found_one, control in zip(found, controls, strict=True) for each in (found_one.picture, control)]
    missing = [each for each in named if isinstance(each, Path) and not each.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        advice = f"run {_make(data, condition)}" if condition else "bring it back, or remove its row"
        raise RequestError(f"{missing[0]}{more}: named in metadata.jsonl but missing; {advice}")


def _make(data: Path | RemoteTar, condition: str) -> str:
    if isinstance(data, RemoteTar):
        return f"controlkit annotate --type {condition} on a copy of the tar"
    return f"controlkit annotate --type {condition} {data}" + ("" if data.is_dir() else " --out DIR")


def _label(found: Found, label: str) -> str:
    column, _, key = label.partition(".")
    value: Any = found.columns.get(column)
    if value is None:
        raise RequestError(f"data.label={label}: {found.picture} has no such column: {known(column, found.columns)}")
    if key:
        try:
            inner = json.loads(value) if isinstance(value, str) else value
            value = inner[key]
        except (ValueError, KeyError, TypeError):
            raise RequestError(f"data.label={label}: {found.picture} has no {key!r} in {column!r}") from None
    return str(value)
