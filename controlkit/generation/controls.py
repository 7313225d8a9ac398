"""Control files become maps at the size of the picture: typed, checked, resized by the rule of their kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from annotators import ANNOTATORS
from annotators.contract import resize_map
from controlkit.data.ledger import Entry, encode_map, read_entry
from controlkit.data.pictures import read_picture
from controlkit.errors import RequestError
from controlkit.files import sha256

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from controlkit.generation.request import Control
    from controlkit.models.bases import Base

# A map so much larger than the base's native area is brought down to it: bases repeat themselves far above.
LARGEST_AREA = 1.5


@dataclass(frozen=True)
class Map:
    """A control map as it was read (or made), and what is known of it."""

    control: Control
    pixels: NDArray[np.uint8]
    type: str | None
    file_sha256: str
    made_png: bytes | None = None  # the map as `annotate` would write it, where it was made from a photograph

    @property
    def values(self) -> frozenset[int] | None:
        return ANNOTATORS[self.type].values if self.type and self.type in ANNOTATORS else None


def read_map(control: Control, expected: str | None, *, annotate: bool, say: Callable[[str], None]) -> Map:
    """The map of a control. Its type is what was said, else what the file says of itself, else what the ControlNet was
    trained on, else guessed (and said)."""
    pixels = read_picture(control.file)
    entry = read_entry(control.file)
    type = control.type or (entry.type if entry else None) or expected
    if entry and type != entry.type:
        raise RequestError(f"--control {control.file}: this file is a {entry.type} map; asked for as {type}")
    if annotate:
        if type is None:
            raise RequestError(
                f"--annotate: the type of {control.file} is not known; say it: --control canny={control.file}"
            )
        if entry:
            raise RequestError(f"--annotate: {control.file} is a {entry.type} map already; leave out --annotate")
        annotator = ANNOTATORS.create(type)
        digest = sha256(control.file)
        pixels = annotator(pixels)
        return Map(
            control, pixels, type, digest, encode_map(pixels, Entry.of(type, annotator, digest), annotator.values)
        )
    if type is None:
        if looks_like_edges(pixels):
            type = "canny"
            say(f"{control.file.name} looks like a canny map and is taken for one; say otherwise with TYPE=")
    elif type == "canny" and not looks_like_edges(pixels):
        if looks_like_edges(255 - pixels):
            raise RequestError(
                f"--control {control.file}: black lines on white; canny maps are white on black: invert the picture"
            )
        raise RequestError(
            f"--control {control.file}: this is a photograph, not a canny map; add --annotate to make its map first"
        )
    if type and type in ANNOTATORS and ANNOTATORS[type].values == frozenset({0, 255}):
        pixels = np.where(pixels > 127, 255, 0).astype(np.uint8)  # saved as JPEG or enlarged by another tool
    return Map(control, pixels, type, sha256(control.file))


def looks_like_edges(pixels: NDArray[np.uint8]) -> bool:
    """Nearly all pixels near black or white, without colour, and the white ones in the minority."""
    grey = pixels.astype(np.int16)
    colourless = (np.ptp(grey, axis=2) < 32).mean() > 0.98
    extreme = ((grey.mean(axis=2) < 32) | (grey.mean(axis=2) > 223)).mean() > 0.9
    return bool(colourless and extreme and (grey.mean(axis=2) > 127).mean() < 0.5)


def choose_size(
    asked: tuple[int, int] | None, maps: list[Map], base: Base, say: Callable[[str], None]
) -> tuple[int, int]:
    """Width and height of the picture: what was asked for, which the VAE must be able to make; else the first map's,
    brought to the base's native area where it is far larger and rounded to what the VAE needs."""
    factor = base.vae_factor
    if asked is not None:
        if any(side % factor for side in asked):
            near = "x".join(str(max(factor, round(side / factor) * factor)) for side in asked)
            raise RequestError(f"--size {asked[0]}x{asked[1]}: the base's VAE needs multiples of {factor}; use {near}")
        return asked
    height, width = maps[0].pixels.shape[:2]
    scale = 1.0
    if width * height > LARGEST_AREA * base.native_size**2:
        scale = base.native_size / (width * height) ** 0.5
    chosen = tuple(max(factor, round(side * scale / factor) * factor) for side in (width, height))
    if chosen != (width, height):
        why = (
            f"{base.name} paints at about {base.native_size}x{base.native_size}"
            if scale != 1
            else (f"the VAE needs multiples of {factor}")
        )
        say(f"painting at {chosen[0]}x{chosen[1]} for a map of {width}x{height}: {why}; --size says otherwise")
    return chosen[0], chosen[1]


def fit_map(control_map: Map, size: tuple[int, int], say: Callable[[str], None]) -> NDArray[np.uint8]:
    """The map at exactly that size: scaled to cover it, and what stands out cut off on both sides alike (and said)."""
    height, width = control_map.pixels.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    covering = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    cut = covering[0] - size[0], covering[1] - size[1]
    if max(cut[0] / covering[0], cut[1] / covering[1]) > 0.02:  # less is the rounding to the VAE's grid
        say(
            f"{control_map.control.file.name} is {width}x{height}, the picture {size[0]}x{size[1]}: "
            f"its middle is used, {max(cut[0] / covering[0], cut[1] / covering[1]):.0%} is cut off"
        )
    resized = resize_map(control_map.pixels, *covering, control_map.values)
    left, top = cut[0] // 2, cut[1] // 2
    return resized[top : top + size[1], left : left + size[0]].copy()
