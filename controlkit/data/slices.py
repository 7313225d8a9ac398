"""Pictures in slices: threads read, decode and encode; networks compute the pictures of a slice together.

A slice is a fixed part of the sorted pictures. Kernels round differently at other batch sizes, so a network always gets
whole slices: where a map is missing, those that are there are computed again beside it, and stay as they are. Thereby
neither workers nor processes nor interruptions change a byte. (On a CPU torch's number of threads rounds too, and
`accelerate launch` sets it to 1 unless OMP_NUM_THREADS says otherwise.)

Only a few slices are in memory at a time, in order: some being decoded, one in the networks, some being encoded.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import stat
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from controlkit.data.maps import Failed
from controlkit.data.pictures import BadPicture, decode_picture, read_picture
from controlkit.files import link_or_copy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]


class Maker(Protocol):
    """Makes one thing of each picture: a map of its type (`controlkit.data.maps`), or a caption."""

    type: str
    together: bool
    """A network that computes several pictures at once."""

    def missing(self, name: str, source_sha256: str, *, even_if_there: bool) -> Any:
        """What `write` is to be told if there is work to do, else None; Failed if it cannot be done."""

    def make(self, names: Sequence[str], images: Sequence[Image]) -> Sequence[Any]:
        """What is made of each picture, or Failed."""

    def write(self, name: str, made: Any, told: Any) -> None: ...


@dataclass
class Outcome:
    """What came of a picture, and what is still to come of it while its slice is at work."""

    name: str
    made: list[str] = field(default_factory=list)  # types
    kept: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    is_picture: bool = True
    image: Image | None = None
    awaited: dict[str, Any] = field(default_factory=dict)  # by type: what a network is yet to make


@dataclass(frozen=True, kw_only=True)
class Slices:
    """How pictures of `folder` get their maps below `out`."""

    folder: Path
    out: Path
    makers: Sequence[Maker]
    workers: int
    batch_size: int
    overwrite: bool

    @property
    def size(self) -> int:
        """Pictures in a slice; without a network nothing is computed together."""
        return self.batch_size if any(maker.together for maker in self.makers) else 1

    def of(self, names: list[str]) -> list[list[str]]:
        return [names[start : start + self.size] for start in range(0, len(names), self.size)]

    def outcomes(self, slices: list[list[str]]) -> Iterator[Outcome]:
        """What comes of each picture, in order. Threads are enough: Pillow, OpenCV, zlib and hashlib all let go of the
        interpreter while they work."""
        import cv2

        _keep_freed_memory()
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)  # a worker is a core; the pictures share the cores already
        ahead = max(2, 4 * self.workers // self.size)
        begun: deque[list[Future[Outcome]]] = deque()
        ending: deque[list[Future[Outcome]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for names in slices:
                    begun.append([pool.submit(self._begin, name) for name in names])
                    if len(begun) > ahead:
                        ending.append(self._through_networks(pool, begun.popleft()))
                    if len(ending) > ahead:
                        yield from (future.result() for future in ending.popleft())
                while begun:
                    ending.append(self._through_networks(pool, begun.popleft()))
                while ending:
                    yield from (future.result() for future in ending.popleft())
            finally:  # interrupted, or stopped by --strict: finish what networks have made, begin nothing more
                for future in chain.from_iterable(begun):
                    future.cancel()
                cv2.setNumThreads(threads)

    def _begin(self, name: str) -> Outcome:
        """Read a picture, decode it if a map is missing, and make the maps that need no network."""
        outcome = Outcome(name)
        try:
            name.encode()
            if not stat.S_ISREG((self.folder / name).stat().st_mode):
                return self._unreadable(outcome, "is no file but something else, such as a pipe")
            data = (self.folder / name).read_bytes()
        except UnicodeEncodeError:
            return self._unreadable(outcome, "its name is not UTF-8; rename it")
        except OSError as reason:
            return self._unreadable(outcome, f"cannot be read ({reason.strerror})")
        wanted = self._wanted(outcome, hashlib.sha256(data).hexdigest())
        if wanted:
            try:
                image = decode_picture(self.folder / name, data)
            except BadPicture as reason:
                return self._unreadable(outcome, reason.reason)
            for maker in self.makers:
                if maker.type not in wanted:
                    continue
                if maker.together:
                    outcome.awaited[maker.type], outcome.image = wanted[maker.type], image
                else:
                    self._keep(outcome, maker, maker.make([name], [image])[0], wanted[maker.type])
        if not outcome.awaited:
            self._bring_picture(outcome)
        return outcome

    def _wanted(self, outcome: Outcome, digest: str) -> dict[str, Any]:
        wanted = {}
        for maker in self.makers:
            told = maker.missing(outcome.name, digest, even_if_there=self.overwrite)
            if isinstance(told, Failed):
                outcome.reasons.append(told.reason)
            elif told is None:
                outcome.kept.append(maker.type)
            else:
                wanted[maker.type] = told
        return wanted

    def _through_networks(self, pool: ThreadPoolExecutor, futures: list[Future[Outcome]]) -> list[Future[Outcome]]:
        """The maps that only networks make; they are encoded while the next slice is computed."""
        outcomes = [future.result() for future in futures]
        makers = [maker for maker in self.makers if any(maker.type in outcome.awaited for outcome in outcomes)]
        if not makers:
            return futures
        up_to_date = [outcome for outcome in outcomes if outcome.image is None and outcome.is_picture]
        list(pool.map(self._decode_again, up_to_date))  # they were computed together with the others
        names = [outcome.name for outcome in outcomes if outcome.image is not None]
        images = [outcome.image for outcome in outcomes if outcome.image is not None]
        made = {maker.type: dict(zip(names, maker.make(names, images), strict=True)) for maker in makers}
        for outcome in outcomes:
            outcome.image = None
        return [
            pool.submit(self._finish, outcome, {each.type: made[each.type].get(outcome.name) for each in makers})
            if outcome.awaited
            else future
            for outcome, future in zip(outcomes, futures, strict=True)
        ]

    def _decode_again(self, outcome: Outcome) -> None:
        with contextlib.suppress(BadPicture):
            outcome.image = read_picture(self.folder / outcome.name)

    def _finish(self, outcome: Outcome, made: dict[str, Any]) -> Outcome:
        for maker in self.makers:
            if maker.type in outcome.awaited:
                self._keep(outcome, maker, made[maker.type], outcome.awaited[maker.type])
        self._bring_picture(outcome)
        return outcome

    def _keep(self, outcome: Outcome, maker: Maker, made: Any, told: Any) -> None:
        if isinstance(made, Failed):
            outcome.reasons.append(made.reason)
        else:
            maker.write(outcome.name, made, told)
            outcome.made.append(maker.type)

    def _bring_picture(self, outcome: Outcome) -> None:
        if self.out != self.folder and not outcome.reasons:
            link_or_copy(self.folder / outcome.name, self.out / outcome.name)

    def _unreadable(self, outcome: Outcome, reason: str) -> Outcome:
        outcome.reasons, outcome.is_picture = [reason], False
        return outcome


def _keep_freed_memory() -> None:
    """Have glibc hand the buffers of a picture to the next one. By itself it gives them back to the system after each
    and fetches every page anew, which in threads costs a quarter of the time. Elsewhere there is no such setting."""
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(trim_threshold, 1 << 30)
        libc.mallopt(mmap_threshold, 32 << 20)
