"""Distances between sets: closed forms, populations that can be counted out, and files that lose nothing."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from controlkit.errors import RequestError
from controlkit.evaluation import sets
from controlkit.evaluation.contents import ContentJudge
from controlkit.evaluation.evaluate import need_enough
from controlkit.evaluation.frechet import Moments, frechet_distance
from controlkit.evaluation.obedience import Judge, Look
from controlkit.evaluation.sets import FeatureFiles, SetFigure, cmmd, frechet, kernel
from controlkit.processes import Processes


def gaussian(random, count, mean=0.0, spread=1.0, width=8):
    return random.normal(mean, spread, (count, width)).astype(np.float32)


def test_frechet_of_samples_is_the_closed_form_and_its_bias():
    """E[FD] of two samples of N(0, 1) is 2d/N + d(d + 1)/(2N); apart, |m|^2 + sum (s_a - s_b)^2 come on top."""
    random, d, count = np.random.default_rng(0), 8, 400
    bias = 2 * d / count + d * (d + 1) / (2 * count)
    alike = [frechet(gaussian(random, count), gaussian(random, count)).mean for _ in range(40)]
    assert np.mean(alike) == pytest.approx(bias, rel=0.1)
    apart = [frechet(gaussian(random, count, 0.5, 2.0), gaussian(random, count)).mean for _ in range(10)]
    assert np.mean(apart) == pytest.approx(d * 0.5**2 + d * (2 - 1) ** 2, rel=0.1)


def test_frechet_in_portions_is_that_of_the_whole_and_needs_no_more_memory(monkeypatch):
    random = np.random.default_rng(1)
    made, real = gaussian(random, 20_000), gaussian(random, 20_000, 0.1)
    whole = frechet_distance(*(Moments(8).add(each) for each in (made, real)))
    peaks = []
    for count in (2000, 20_000):
        tracemalloc.start()
        found = frechet(made[:count], real[:count])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert found.mean == pytest.approx(whole, rel=1e-9)
    assert peaks[1] < 1.5 * peaks[0]


@pytest.fixture(scope="module")
def populations():
    """Two small sets of vectors that are drawn from, and the squared MMD between drawing from one and the other."""
    random = np.random.default_rng(2)
    one, other = gaussian(random, 6, width=3), gaussian(random, 6, 0.4, width=3)

    def mean_kernel(a, b):
        return ((a.astype(float) @ b.T.astype(float) / 3 + 1) ** 3).mean()

    return one, other, mean_kernel(one, one) + mean_kernel(other, other) - 2 * mean_kernel(one, other)


def test_kid_has_no_bias(populations):
    """The mean over many small samples is that of the populations; also where each picture is bound to a real one."""
    one, other, distance = populations
    random = np.random.default_rng(3)
    bound, free = [], []
    for _ in range(60):
        mine, theirs = random.integers(6, size=(2, 12))
        free.append(kernel(one[mine], other[theirs]).mean)
        bound.append(kernel(one[mine], one[mine]).mean)
    assert distance > 0.5
    for estimates, expected in ((free, distance), (bound, 0)):
        assert abs(np.mean(estimates) - expected) < 4 * np.std(estimates) / len(estimates) ** 0.5


def test_the_interval_of_kid_holds_the_population(populations):
    one, other, distance = populations
    random, inside = np.random.default_rng(4), 0
    for _ in range(40):
        mine, theirs = random.integers(6, size=(2, 80))
        found = kernel(one[mine], other[theirs])
        inside += found.low <= distance <= found.high
    assert 34 <= inside <= 40
    with pytest.raises(ValueError, match="at least 4; got 3 and 3"):
        kernel(one[:3], other[:3])


def test_cmmd_is_its_definition(monkeypatch):
    monkeypatch.setattr(sets, "_PORTION", 3)
    random = np.random.default_rng(5)
    made, real = gaussian(random, 7), gaussian(random, 8, 1.0)
    x, y = (each.astype(float) / np.linalg.norm(each.astype(float), axis=1)[:, None] for each in (made, real))

    def k(a, b):
        return np.mean([np.exp(-np.square(p - q).sum() / 200) for p in a for q in b])

    assert cmmd(made, real).mean == pytest.approx(1000 * (k(x, x) + k(y, y) - 2 * k(x, y)), rel=1e-9)
    assert cmmd(real, 3 * real).mean == pytest.approx(0, abs=1e-9)


class Gathered(Processes):
    def gather(self, items):
        return items


def test_files_of_all_processes_are_one_set(tmp_path):
    """In the order of the rows; several pictures of a row are sets apart; what a killed run left does not count."""
    random = np.random.default_rng(6)
    made, real = [gaussian(random, 9, 0.3), gaussian(random, 9)], gaussian(random, 9)
    judge = ContentJudge(read=lambda picture: picture, features=lambda read: read, figures=(
        SetFigure("distance", frechet, 10), SetFigure("mmd", kernel, 1)))  # fmt: skip
    folder = tmp_path / sets.FOLDER
    folder.mkdir()
    (folder / "0.real.0.8.0000").write_bytes(b"left")
    (folder / "0.control.2.8.0001").write_bytes(gaussian(random, 9).tobytes())  # of more pictures a row
    (folder / "0.real.0.8.0007").write_bytes(b"of a process that there is no longer")
    shares = [FeatureFiles([judge], tmp_path, Gathered(rank, 2)) for rank in range(2)]
    for number in range(9):
        looks = {"control": [each[number] for each in made], "real": [real[number]]}
        shares[number > 3].add({row: Look([], [], [read]) for row, read in looks.items()})
    found = shares[0].figures(("control", "vae"))
    assert found["distance"]["control"].mean == np.mean([frechet(each, real).mean for each in made])
    assert found["mmd"]["control"].mean == np.mean([kernel(each, real).mean for each in made])
    assert set(found["distance"]) == {"control"}
    assert not folder.exists()


def test_too_few_pictures_are_refused_before_they_are_painted():
    judge = Judge(None, (ContentJudge(read=len, figures=(SetFigure("kid", kernel, 1000, least=4),)),))
    need_enough(judge, 4)
    with pytest.raises(RequestError, match="--also kid: of 3 rows; expected at least 4"):
        need_enough(judge, 3)


def test_few_pictures_are_said():
    figure = SetFigure("fid", frechet, enough=10)
    score = frechet(gaussian(np.random.default_rng(7), 9), gaussian(np.random.default_rng(8), 9))
    assert "fid over 9 pictures, fewer than 10" in figure.warning(score)
    assert figure.warning(replace(score, n=10)) is None
