"""What can be seen of control maps without a network: faults that would spoil a training before its first step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np

from annotators import ANNOTATORS
from controlkit.data.check import LINES
from controlkit.evaluation.scores import Score

if TYPE_CHECKING:
    from annotators.contract import Image

    Grid = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

ROWS = 32
"""So many rows are looked at."""

_CELLS = 24  # a side of the grid on which outlines of map and picture are compared
_ENOUGH = 8  # rows, fewer say nothing about belonging together
_ALIKE = 0.8  # in correlation
_FITTING = 0.1  # in correlation: maps that lie on their pictures reach it, poses too
_DIM = 8  # of 255; a map that stays below it is as good as black to a network
_UNRELATED = frozenset({"shuffle", "inpaint"})  # types whose maps are not meant to lie on their pictures


@dataclass(frozen=True)
class MapFacts:
    """Of one map and its picture."""

    type: str
    lowest: int
    highest: int
    mean: float
    constant: bool
    other_values: bool  # than its annotator declares
    digest: str
    outlines: Grid  # of the map, standardised
    picture_outlines: Grid

    @staticmethod
    def of(condition: str, picture: Image, control: Image) -> MapFacts:
        values = ANNOTATORS[condition].values if condition in ANNOTATORS else None
        found = {int(value) for value in np.unique(control)}
        return MapFacts(
            type=condition,
            lowest=min(found),
            highest=max(found),
            mean=float(control.mean()),
            constant=bool((control == control[0, 0]).all()),
            other_values=values is not None and not found <= values,
            digest=hashlib.blake2b(control.tobytes(), digest_size=8).hexdigest(),
            outlines=_outlines(control),
            picture_outlines=_outlines(picture),
        )


def map_problems(maps: list[MapFacts]) -> list[str]:
    """A line for each fault that these maps share, type by type, the worst first; each with what to do."""
    types = dict.fromkeys(each.type for each in maps)
    return [line for type in types for line in _problems(type, [each for each in maps if each.type == type])]


def _problems(condition: str, maps: list[MapFacts]) -> list[str]:
    count = len(maps)
    black = sum(each.highest < _DIM for each in maps)
    constant = sum(each.constant and each.highest >= _DIM for each in maps)
    problems = []
    if 2 * black > count:
        brightest = max(each.highest for each in maps)
        if brightest == 0:
            problems.append(f"{black} of {count} {condition} maps are all black: annotate again, and look at them")
        else:
            problems.append(
                f"{black} of {count} {condition} maps are out of range: their brightest pixel is {brightest} of 255; "
                f"multiply them by 255 if they were written as 0 to 1"
            )
    if 2 * constant > count:
        problems.append(f"{constant} of {count} {condition} maps are of one colour: they hold nothing to follow")
    if not problems and count > 1 and len({each.digest for each in maps}) == 1:
        problems.append(f"all {count} {condition} maps are the same: each picture needs a map of its own")
    if problems:
        return problems
    inverted = sum(each.mean > 127.5 for each in maps) if condition in LINES else 0
    if 2 * inverted > count:
        problems.append(
            f"{inverted} of {count} {condition} maps are inverted, dark on white: lines are white on black; invert "
            f"them, or no published net or annotator will agree with yours"
        )
    strange = sum(each.other_values for each in maps)
    if 2 * strange > count:
        declared = sorted(ANNOTATORS[condition].values or ())
        problems.append(
            f"{strange} of {count} {condition} maps hold other values than {declared}: saved as JPEG, or resized with "
            f"smoothing? annotate again"
        )
    fit = belonging(maps)
    if fit and condition not in _UNRELATED and (fit.low or 0) <= 0 and (fit.high or 0) < _FITTING:
        problems.append(
            f"the {condition} maps do not belong to their pictures: their outlines lie no better on them than on other "
            f"pictures ({fit.mean:+.2f} in correlation, over {fit.n} rows); check how metadata.jsonl pairs them"
        )
    return problems


def belonging(maps: list[MapFacts]) -> Score | None:
    """By how much a map's outlines correlate better with its own picture than with the others'; None of too few, or
    where the maps or the pictures are so much alike that it could not be told."""
    if len(maps) < _ENOUGH:
        return None
    outlines, pictures = (
        np.stack(each) for each in zip(*((m.outlines, m.picture_outlines) for m in maps), strict=True)
    )
    if max(np.median(outlines @ outlines.T), np.median(pictures @ pictures.T)) > _ALIKE:
        return None
    table = outlines @ pictures.T
    own = np.diag(table)
    others = (table.sum(axis=1) - own) / (len(maps) - 1)
    return Score.of_values(own - others)


def _outlines(image: Image) -> Grid:
    """How much changes in each cell of a coarse grid; of mean 0 and length 1, so that products are correlations."""
    grey = image.astype(np.float32).mean(axis=2)
    across, down = (cv2.Sobel(grey, cv2.CV_32F, *direction) for direction in ((1, 0), (0, 1)))
    cells = cv2.resize(np.hypot(across, down), (_CELLS, _CELLS), interpolation=cv2.INTER_AREA).astype(np.float64)
    centred = cells.ravel() - cells.mean()
    length = np.linalg.norm(centred)
    return np.asarray(centred / length if length else centred)
