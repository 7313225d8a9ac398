"""Tensors kept on the disk under keys that say what they are: computed once, then read by mapping the files.

FOLDER/
    recipe.json             what made all entries here, for people to read; its hash is the folder's name
    HASH.safetensors        a shard: some entries, each tensor named KEY.NAME
A shard is named for the hash of its bytes and appears whole, so that damage of any kind is seen. Shards are never
changed: what comes later lies in others. Removing any of these files costs their making and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from controlkit.errors import RequestError
from controlkit.files import atomic_write_bytes, atomic_write_text, need_writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from controlkit.processes import Processes

Work = TypeVar("Work")
Loaded = TypeVar("Loaded")

Tensors = dict[str, "torch.Tensor"]

SHARD = 256  # entries; a process that is killed loses as many at most, and processes wait for each other as often
UNSAVED_SECONDS = 30  # of work at most, where entries take long
AHEAD = 16  # entries loaded before they are asked for


def digest(*what: object) -> str:
    """The name of something that JSON can write."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Entries:
    """What a store held when it was asked. Each process, also a worker, maps the shards for itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unreadable: list[Path] = []
        self._places: dict[str, tuple[str, tuple[str, ...]]] = {}  # key -> shard, names of its tensors
        self._open: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            names: dict[str, tuple[str, ...]] = {}
            try:
                for tensor in self._shard(path.name).keys():  # noqa: SIM118 (no dictionary)
                    key, _, name = tensor.partition(".")
                    names[key] = (*names.get(key, ()), name)
            except (OSError, SafetensorError):
                self.unreadable.append(path)
                continue
            for key, known in names.items():
                self._places.setdefault(key, (path.name, known))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Tensors:
        name, names = self._places[key]
        shard = self._shard(name)
        return {name: shard.get_tensor(f"{key}.{name}") for name in names}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}

    def shards_of(self, keys: Iterable[str]) -> list[Path]:
        """The files that hold these entries, of those that there are."""
        return [self.folder / name for name in sorted({self._places[key][0] for key in keys if key in self._places})]

    def _shard(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = safe_open(self.folder / name, "pt")
        return self._open[name]


class Store:
    """The entries that one recipe makes; another recipe has a folder of its own, so that nothing is ever outdated."""

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self.folder = folder / digest(recipe)
        need_writable(self.folder, "the cache (CONTROLKIT_CACHE)")
        text = json.dumps(recipe, indent=1, sort_keys=True, default=str) + "\n"
        if not (self.folder / "recipe.json").exists():
            atomic_write_text(self.folder / "recipe.json", text)

    def fill(
        self,
        wanted: Mapping[str, Work],
        load: Callable[[Work], Loaded],
        encode: Callable[[Loaded], Tensors],
        processes: Processes,
        say: Callable[[str], None] = lambda text: None,
    ) -> tuple[Entries, int]:
        """The entries, after those that were missing or damaged have been made, and how many these were.

        `load` runs ahead in threads; `encode` gets one thing at a time, since kernels round differently at other batch
        sizes: so an entry is the same bytes whatever was made beside it, before it, or by which process.
        """
        made = 0
        entries = self._sound_entries(wanted, processes, say)
        # The second time for machines that do not share a disk: each makes what it lacks.
        for _ in range(2):
            missing = [key for key in sorted(wanted) if key not in entries]
            share = _share(missing, processes)
            counts = processes.gather([len(share)])
            if not any(counts):
                break
            made += len(share)
            progress = _Progress(sum(counts), say)
            for start in range(0, max(counts), SHARD):
                keys = share[start : start + SHARD]
                self._make({key: wanted[key] for key in keys}, load, encode, progress, processes.count)
                processes.gather([None])  # none runs ahead so far that the others would wait for long
            entries = Entries(self.folder)
        assert all(key in entries for key in wanted), f"{self.folder} does not keep what is written into it"
        return entries, sum(processes.gather([made]))

    def _sound_entries(self, wanted: Iterable[str], processes: Processes, say: Callable[[str], None]) -> Entries:
        """What is there, without the shards of these entries that are damaged, which are removed. Each process looks at
        its share of them."""
        entries = Entries(self.folder)
        share = _share(entries.shards_of(wanted), processes)
        with ThreadPoolExecutor() as pool:
            sound = list(pool.map(_is_sound, share))
        damaged = entries.unreadable + [path for path, yes in zip(share, sound, strict=True) if not yes]
        for path in damaged:
            path.unlink(missing_ok=True)
        names = set(processes.gather([path.name for path in damaged]))
        if not names:
            return entries
        say(f"cache: {len(names)} damaged files in {self.folder} are removed, and what they held is made anew")
        return Entries(self.folder)

    def _make(
        self,
        wanted: Mapping[str, Work],
        load: Callable[[Work], Loaded],
        encode: Callable[[Loaded], Tensors],
        progress: _Progress,
        processes: int,
    ) -> None:
        unsaved: Tensors = {}
        saved = time.monotonic()
        for key, loaded in _loaded_ahead(wanted, load):
            tensors = encode(loaded)
            if progress.done == 0:
                self._need_space(progress.total * sum(tensor.nbytes for tensor in tensors.values()))
            unsaved.update({f"{key}.{name}": tensor.contiguous().cpu() for name, tensor in tensors.items()})
            progress.step(processes)
            if time.monotonic() - saved > UNSAVED_SECONDS:
                self._write(unsaved)
                unsaved, saved = {}, time.monotonic()
        self._write(unsaved)

    def _write(self, tensors: Tensors) -> None:
        if not tensors:
            return
        data = save(tensors)
        try:
            atomic_write_bytes(self.folder / f"{_name(data)}.safetensors", data)
        except OSError as reason:
            if reason.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise RequestError(f"{self.folder}: the disk is full; {_ELSEWHERE}") from None

    def _need_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise RequestError(
                f"{self.folder}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; {_ELSEWHERE}"
            )


_ELSEWHERE = "make room, name another place in CONTROLKIT_CACHE, or train with cache=off"


class _Progress:
    """Says now and then how far all processes together are."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.say, self.done = total, say, 0
        self.begun = self.said = time.monotonic()

    def step(self, processes: int) -> None:
        self.done += processes
        now = time.monotonic()
        if now - self.said > UNSAVED_SECONDS and self.done < self.total:
            self.said = now
            left = (now - self.begun) / self.done * (self.total - self.done)
            self.say(f"cache: {self.done:,} of {self.total:,}, {left / 60:.0f} minutes left")


def _share(items: list[Any], processes: Processes) -> list[Any]:
    """This process's part, or all of it where the processes see different disks. No process goes on before all have
    looked."""
    if processes.count == 1:
        return items
    same = len(set(processes.gather([digest([str(item) for item in items])]))) == 1
    return processes.slice(items) if same else items


def _loaded_ahead(wanted: Mapping[str, Work], load: Callable[[Work], Loaded]) -> Iterator[tuple[str, Loaded]]:
    keys: Sequence[str] = list(wanted)
    with ThreadPoolExecutor() as pool:
        futures = {key: pool.submit(load, wanted[key]) for key in keys[:AHEAD]}
        try:
            for place, key in enumerate(keys):
                loaded = futures.pop(key).result()
                if place + AHEAD < len(keys):
                    futures[keys[place + AHEAD]] = pool.submit(load, wanted[keys[place + AHEAD]])
                yield key, loaded
        finally:
            for future in futures.values():
                future.cancel()


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _is_sound(path: Path) -> bool:
    try:
        return _name(path.read_bytes()) == path.stem
    except OSError:
        return False
