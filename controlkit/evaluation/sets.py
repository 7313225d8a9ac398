"""How far what was painted is, as a set, from the real pictures, by the features of a network (N, D).

Features wait in files until all are there: 50,000 pictures need no more memory than 500. They are read in the order of
the rows, so that neither processes nor interruptions change a digit.

frechet   two Gaussians apart (arXiv:1706.08500); too large by a bias that falls as 1/N
kernel    KID (arXiv:1801.01401): squared MMD under (x.y / D + 1)^3 without bias, mean of 100 subsets
cmmd      squared MMD of unit vectors under a Gaussian of sigma 10, times 1000, its diagonals kept (arXiv:2401.09603)
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.evaluation.frechet import Moments, frechet_distance
from controlkit.evaluation.scores import Score

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from controlkit.evaluation.contents import ContentJudge
    from controlkit.evaluation.obedience import Look
    from controlkit.processes import Processes

    Features = NDArray[np.float32]

FOLDER = ".features"
REFERENCE = "real"
KERNEL_LEAST = 4  # two of each kind, in two subsets that share none

_PORTION = 1000  # pictures whose features are in memory at a time
_SUBSETS, _SUBSET = 100, 1000
_SIGMA, _SCALE = 10.0, 1000.0
_Z = 1.959963984540054  # of the normal distribution, 95 % on both sides


@dataclass(frozen=True)
class SetFigure:
    """`enough`: pictures below which the figure is said to be shaky; `least`: below which there is none."""

    name: str
    distance: Callable[[Features, Features], Score]
    enough: int
    least: int = 2

    def warning(self, score: Score) -> str | None:
        if score.n >= self.enough:
            return None
        return (
            f"{self.name} over {score.n} pictures, fewer than {self.enough}: compare it only with one over as many, "
            "of the same rows"
        )


def frechet(made: Features, real: Features) -> Score:
    one, other = (_moments(each) for each in (made, real))
    return Score(frechet_distance(one, other), None, None, len(made))


def kernel(made: Features, real: Features) -> Score:
    """The two subsets never hold a picture and the real one that it was painted after, which would be no chance
    meeting. Subsets of m out of n pictures vary as the whole does, but for the factor of the jackknife that leaves
    n - m out: m / (n - m) (Shao and Wu, 1989)."""
    n = len(made)
    if n != len(real) or n < KERNEL_LEAST:
        raise ValueError(f"expected as many pictures as real ones, at least {KERNEL_LEAST}; got {n} and {len(real)}")
    size, random, draws = min(_SUBSET, n // 2), np.random.default_rng(0), []
    for _ in range(_SUBSETS):
        order = random.permutation(n)
        draws.append(_unbiased(made[np.sort(order[:size])], real[np.sort(order[size : 2 * size])]))
    half = _Z * float(np.std(draws, ddof=1)) * (size / (n - size)) ** 0.5
    mean = float(np.mean(draws))
    return Score(mean, mean - half, mean + half, n)


def cmmd(made: Features, real: Features) -> Score:
    inside = _gaussian(made, made) + _gaussian(real, real)
    return Score(_SCALE * (inside - 2 * _gaussian(made, real)), None, None, len(made))


class FeatureFiles:
    """The features of a run, of every process in files of its own, one for each judge, row of the report and picture
    of a row."""

    def __init__(self, judges: Sequence[ContentJudge], out: Path, processes: Processes) -> None:
        self.judges, self.folder, self.processes = judges, out / FOLDER, processes
        for left in self.folder.glob(f"*.{processes.rank:04d}"):  # by a run that was killed
            left.unlink()

    def add(self, looks: Mapping[str, Look]) -> None:
        for place, judge in enumerate(self.judges):
            for row, look in looks.items() if judge.features else ():
                for take, read in enumerate(look.contents[place]):
                    self._append(f"{place}.{row}.{take}", judge.features(read) if judge.features else None)

    def _append(self, name: str, features: Any) -> None:
        whole = np.asarray(features, np.float32)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.{whole.size}.{self.processes.rank:04d}"
        with path.open("ab") as file:
            file.write(whole.tobytes())

    def figures(self, rows: Sequence[str]) -> dict[str, dict[str, Score]]:
        """Figure -> row -> score, of rows that all processes have added. Several pictures of a row are as many sets,
        and the figure is their mean."""
        found: dict[str, dict[str, Score]] = {}
        if self.processes.first:
            for place, judge in enumerate(self.judges):
                real = self._whole(f"{place}.{REFERENCE}.0") if judge.figures else None
                if real is None:
                    continue
                for row in rows:
                    sets = self._sets(f"{place}.{row}")
                    for figure in judge.figures if sets else ():
                        found.setdefault(figure.name, {})[row] = _together([figure.distance(s, real) for s in sets])
            shutil.rmtree(self.folder, ignore_errors=True)
        return self.processes.gather([found] if self.processes.first else [])[0]

    def _sets(self, name: str) -> list[Features]:
        sets: list[Features] = []
        while (features := self._whole(f"{name}.{len(sets)}")) is not None:
            sets.append(features)
        return sets

    def _whole(self, name: str) -> Features | None:
        """The parts of all processes as one file, in the memory only where it is looked at."""
        parts = [
            path for path in sorted(self.folder.glob(f"{name}.*.*")) if int(path.suffix[1:]) < self.processes.count
        ]
        if not parts:
            return None
        width = int(parts[0].name.split(".")[-2])
        target = self.folder / f"{name}.whole"
        with target.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
        return np.memmap(target, np.float32, "r").reshape(-1, width)


def _together(scores: list[Score]) -> Score:
    if len(scores) == 1:
        return scores[0]
    return Score(float(np.mean([score.mean for score in scores])), None, None, scores[0].n)


def _moments(features: Features) -> Moments:
    moments = Moments(features.shape[1])
    for start in range(0, len(features), _PORTION):
        moments.add(features[start : start + _PORTION])
    return moments


def _unbiased(one: Features, other: Features) -> float:
    x, y = (each.astype(np.float64) for each in (one, other))

    def k(a: Any, b: Any) -> Any:
        return (a @ b.T / a.shape[1] + 1) ** 3

    inside = sum((k(each, each).sum() - np.trace(k(each, each))) / (len(each) * (len(each) - 1)) for each in (x, y))
    return float(inside - 2 * k(x, y).mean())


def _gaussian(one: Features, other: Features) -> float:
    """The mean of the kernel over all pairs of unit vectors."""
    total = 0.0
    for start in range(0, len(one), _PORTION):
        x = _unit(one[start : start + _PORTION])
        for begin in range(0, len(other), _PORTION):
            squared = 2 - 2 * x @ _unit(other[begin : begin + _PORTION]).T
            total += float(np.exp(-squared / (2 * _SIGMA**2)).sum())
    return total / (len(one) * len(other))


def _unit(features: Features) -> NDArray[np.float64]:
    whole = features.astype(np.float64)
    length: NDArray[np.float64] = np.linalg.norm(whole, axis=1, keepdims=True)
    return whole / length
