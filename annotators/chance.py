"""Chance that is the same each time: random numbers that follow from a picture's bytes and a seed."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from annotators.contract import Image


def stream(image: Image, seed: int) -> np.random.RandomState:
    """Numbers of this picture's own. NumPy keeps the legacy generator's numbers for ever, those of the new ones not."""
    import numpy as np

    return np.random.RandomState(seed_of(image, seed))


def seed_of(image: Image, seed: int) -> int:
    """32 bits of the SHA-256 over seed, shape and pixels."""
    import numpy as np

    whole = hashlib.sha256(f"{seed} {image.shape}".encode())
    whole.update(np.ascontiguousarray(image).tobytes())
    return int.from_bytes(whole.digest()[:4], "big")
