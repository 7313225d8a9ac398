"""Every random draw of a run is a function of (seed, epoch, what the row holds, purpose).

It never depends on the rank, the worker, the order or on what was drawn before. So a resumed run needs no random state,
two processes draw what one would, and different rows never share their noise.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def generator(*key: object) -> torch.Generator:
    """A generator of its own for this key, on the CPU so that every device gets the same numbers."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") % 2**63)


def uniform(*key: object) -> float:
    """A number in [0, 1)."""
    return torch.rand((), generator=generator(*key), dtype=torch.float64).item()


def positions(seed: int, rows: int, start: int) -> Iterator[tuple[int, int]]:
    """The endless stream of (epoch, row number) from its `start`-th place: each epoch holds every row once, reshuffled.

    A batch may span two epochs, so no row is dropped and a folder may be smaller than a batch.
    """
    epoch, place = divmod(start, rows)
    while True:
        order = torch.randperm(rows, generator=generator(seed, epoch, "order")).tolist()
        for number in order[place:]:
            yield epoch, number
        epoch, place = epoch + 1, 0
