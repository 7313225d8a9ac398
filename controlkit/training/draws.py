"""Every random draw of a run is a function of (seed, epoch, what the row holds, purpose).

It never depends on the rank, the worker, the order or on what was drawn before. So a resumed run needs no random state,
two processes draw what one would, and different rows never share their noise.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence


def generator(*key: object) -> torch.Generator:
    """A generator of its own for this key, on the CPU so that every device gets the same numbers."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)


def uniform(*key: object) -> float:
    """A number in [0, 1)."""
    return torch.rand((), generator=generator(*key), dtype=torch.float64).item()


def epoch_order(seed: int, epoch: int, rows: int) -> list[int]:
    """The numbers of all rows as they come in that epoch."""
    order: list[int] = torch.randperm(rows, generator=generator(seed, epoch, "order")).tolist()
    return order


def positions(seed: int, rows: int, start: int) -> Iterator[tuple[int, int]]:
    """The endless stream of (epoch, row number) from its `start`-th place: each epoch holds every row once, reshuffled.

    A batch may span two epochs, so no row is dropped and a folder may be smaller than a batch.
    """
    epoch, place = divmod(start, rows)
    while True:
        for number in epoch_order(seed, epoch, rows)[place:]:
            yield epoch, number
        epoch, place = epoch + 1, 0


def positions_alike(
    seed: int, groups: Sequence[Hashable], together: int, start: int
) -> Iterator[list[tuple[int, int]]]:
    """The endless stream of batches of `together` places of `positions`, each of rows of one group; from the batch on
    before which `start` rows were seen.

    Rows wait for others of their group, over the end of an epoch too, so that none is dropped. How many wait where an
    epoch begins follows from the numbers of the groups, and so the stream can be entered anywhere.
    """
    counts, number = Counter(groups), start // together
    epoch = start // len(groups)  # begins with no more batches behind it than `number`
    waiting = {group: epoch * count % together for group, count in counts.items()}
    earlier = max(-(-left // counts[group]) for group, left in waiting.items())
    queues: dict[Hashable, list[tuple[int, int]]] = {group: [] for group in counts}
    for past in range(epoch - earlier, epoch):
        for row in epoch_order(seed, past, len(groups)):
            queues[groups[row]].append((past, row))
    for group, left in waiting.items():
        queues[group] = queues[group][len(queues[group]) - left :]

    skipped = number - sum(epoch * count // together for count in counts.values())
    for place in positions(seed, len(groups), epoch * len(groups)):
        queue = queues[groups[place[1]]]
        queue.append(place)
        if len(queue) == together:
            if skipped:
                skipped -= 1
            else:
                yield list(queue)
            queue.clear()
