"""Control files become maps at the size of the picture: typed, checked, resized by the rule of their kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from annotators import ANNOTATORS
from annotators.contract import resize_map
from annotators.pose_drawing import draw, usual_stick_width
from controlkit.data.ledger import Entry, encode_map, read_entry
from controlkit.data.pictures import cover, read_picture, resize_picture
from controlkit.errors import RequestError
from controlkit.files import sha256
from controlkit.generation.poses import POSE, are_keypoints, poses_beside, poses_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from annotators.keypoints import People
    from controlkit.generation.request import Control
    from controlkit.models.bases import Base

# A map so much larger than the base's native area is brought down to it: bases repeat themselves far above.
LARGEST_AREA = 1.5

RESIZES = ("crop", "pad", "fit")


@dataclass(frozen=True)
class Map:
    """A control map as it was read (or made), and what is known of it."""

    control: Control
    pixels: NDArray[np.uint8]
    type: str | None
    file_sha256: str
    made_png: bytes | None = None  # the map as `annotate` would write it, where it was made from a photograph
    people: People | None = None  # a map of poses: whom it shows, in its pixels
    keypoints: Path | None = None  # the file beside the map that says so

    def at(self, width: int, height: int, seen: tuple[int, int]) -> NDArray[np.uint8]:
        """The map at another size, for networks that see a (width, height) of it at once."""
        if self.people:
            return draw(self.people, width, height, usual_stick_width(*seen))
        return resize_map(self.pixels, width, height, self.values)

    @property
    def values(self) -> frozenset[int] | None:
        return ANNOTATORS[self.type].values if self.type and self.type in ANNOTATORS else None


@dataclass(frozen=True)
class Given:
    """What a picture is made from, and so what its size follows from: a "map" or a "picture"."""

    what: str
    width: int
    height: int

    @staticmethod
    def of(what: str, pixels: NDArray[np.uint8]) -> Given:
        return Given(what, pixels.shape[1], pixels.shape[0])


def type_of(control: Control) -> str | None:
    """What was said, else what the file says of itself."""
    if control.type is None and are_keypoints(control.file):
        return POSE
    entry = read_entry(control.file)
    return control.type or (entry.type if entry else None)


def read_map(control: Control, expected: str | None, *, annotate: bool, say: Callable[[str], None]) -> Map:
    """The map of a control. Its type is what was said, else what the file says of itself, else what the ControlNet was
    trained on, else guessed (and said)."""
    if are_keypoints(control.file):
        return _drawn_map(control, annotate=annotate)
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
        annotator: Any = ANNOTATORS.create(type)
        digest = sha256(control.file)
        people = annotator.keypoints_of([pixels])[0] if hasattr(annotator, "keypoints_of") else None
        pixels = annotator.drawn(people) if people else annotator(pixels)
        made = encode_map(pixels, Entry.of(type, annotator, digest), annotator.values)
        return Map(control, pixels, type, digest, made, people)
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
    people, keypoints = (type == POSE and poses_beside(control.file, pixels, say)) or (None, None)
    return Map(control, pixels, type, sha256(control.file), people=people, keypoints=keypoints)


def _drawn_map(control: Control, *, annotate: bool) -> Map:
    if control.type not in (None, POSE):
        raise RequestError(f"--control {control.file}: keypoints are poses; asked for as {control.type}")
    if annotate:
        raise RequestError(f"--annotate: {control.file} holds the keypoints already; leave out --annotate")
    people = poses_in(control.file)
    return Map(control, draw(people, people.width, people.height), POSE, sha256(control.file), people=people)


def looks_like_edges(pixels: NDArray[np.uint8]) -> bool:
    """Nearly all pixels near black or white, without colour, and the white ones in the minority."""
    grey = pixels.astype(np.int16)
    colourless = (np.ptp(grey, axis=2) < 32).mean() > 0.98
    extreme = ((grey.mean(axis=2) < 32) | (grey.mean(axis=2) > 223)).mean() > 0.9
    return bool(colourless and extreme and (grey.mean(axis=2) > 127).mean() < 0.5)


def choose_size(
    asked: tuple[int, int] | None, given: Given | None, base: Base, say: Callable[[str], None]
) -> tuple[int, int]:
    """Width and height of the picture: what was asked for, which the VAE must be able to make; else that of the map or
    picture it is made from, brought to the base's native area where it is far larger and rounded to what the VAE needs;
    else the base's own."""
    factor = base.vae_factor
    if asked is not None:
        if any(side % factor for side in asked):
            near = "x".join(map(str, scaled(asked, 1, factor)))
            raise RequestError(f"--size {asked[0]}x{asked[1]}: the base's VAE needs multiples of {factor}; use {near}")
        return asked
    if given is None:
        return base.native_size, base.native_size
    width, height = given.width, given.height
    scale = 1.0
    if width * height > LARGEST_AREA * base.native_size**2:
        scale = base.native_size / (width * height) ** 0.5
    chosen = scaled((width, height), scale, factor)
    if chosen != (width, height):
        why = (
            f"{base.name} paints at about {base.native_size}x{base.native_size}"
            if scale != 1
            else (f"the VAE needs multiples of {factor}")
        )
        say(f"painting at {chosen[0]}x{chosen[1]} for a {given.what} of {width}x{height}: {why}; --size says otherwise")
    return chosen


def scaled(size: tuple[int, int], scale: float, factor: int) -> tuple[int, int]:
    """So many times the size, rounded to what the VAE needs."""
    width, height = (max(factor, round(side * scale / factor) * factor) for side in size)
    return width, height


def fit_picture(
    pixels: NDArray[np.uint8], name: str, size: tuple[int, int], say: Callable[[str], None]
) -> NDArray[np.uint8]:
    """A picture at exactly that size: scaled to cover it; what stands out is cut off on both sides alike (and said)."""
    height, width = pixels.shape[:2]
    covering, window = cover(width, height, size)
    _say_cut(name, (width, height), covering, size, say)
    grows = covering[0] > width
    return (enlarge(pixels, covering) if grows else resize_picture(pixels, covering))[window].copy()


def enlarge(pixels: NDArray[np.uint8], to: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture at a larger (width, height), by Lanczos as diffusers' pipelines resize: what is painted over it keeps
    its edges."""
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize(to, Image.Resampling.LANCZOS))


def fit_map(
    control_map: Map,
    size: tuple[int, int],
    say: Callable[[str], None],
    resize: str = "crop",
    *,
    seen: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """A map at exactly that size, with the values of its kind: it covers the size and is cut ("crop"), stands in it
    whole between black, which controls nothing ("pad"), or gives up its shape ("fit"). `seen` is the size of the tiles
    that networks see of it (None: all at once)."""
    name, seen = control_map.control.file.name, seen or size
    height, width = control_map.pixels.shape[:2]
    if resize == "crop":
        covering, window = cover(width, height, size)
        _say_cut(name, (width, height), covering, size, say)
        return control_map.at(*covering, seen)[window].copy()
    if resize == "fit":
        return control_map.at(*size, seen)
    scale = min(size[0] / width, size[1] / height)
    inner = min(size[0], max(1, round(width * scale))), min(size[1], max(1, round(height * scale)))
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    padded = np.zeros((size[1], size[0], 3), np.uint8)
    padded[top : top + inner[1], left : left + inner[0]] = control_map.at(*inner, seen)
    return padded


def _say_cut(
    name: str, own: tuple[int, int], covering: tuple[int, int], size: tuple[int, int], say: Callable[[str], None]
) -> None:
    cut = max((across - kept) / across for across, kept in zip(covering, size, strict=True))
    if cut > 0.02:  # less is the rounding to the VAE's grid
        say(f"{name} is {own[0]}x{own[1]}, the picture {size[0]}x{size[1]}: its middle is used, {cut:.0%} is cut off")
