"""Runs that are killed, shared between workers or between processes end with the bytes of an unbroken one: canny, depth
and pose of drawn scenes, by the readers that come with the package."""

import random
import shutil
import time

import pytest

from controlkit.cli.main import main
from tests.forked import Forked, run_two

SMALL, LARGE = pytest.param(24, 2, id="small"), pytest.param(500, 10, id="large", marks=pytest.mark.slow)


def arguments(folder, *more):
    backends = ["--backend", "depth=toybox", "--backend", "pose=toybox", "--device", "cpu"]
    return ["annotate", "--type", "canny,depth,pose", str(folder), *backends, *more]


def draw(folder, count):
    """Scenes of `rooms` without their exact maps."""
    assert main(["toybox", "make", str(folder), "--world", "rooms", "--count", str(count), "--quiet"]) == 0
    shutil.rmtree(folder / "conditions")
    (folder / "metadata.jsonl").unlink()
    return folder


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files(folder):
    return sum(not path.name.startswith(".") for path in (folder / "conditions").rglob("*.*"))


@pytest.mark.parametrize(("count", "kills"), [SMALL, LARGE])
def test_killed_again_and_again_it_ends_as_an_unbroken_run(tmp_path, count, kills):
    """SIGKILL once as many files are there as a random number says."""
    whole, broken = draw(tmp_path / "whole", count), draw(tmp_path / "broken", count)
    assert main(arguments(whole, "--quiet")) == 0
    expected = tree(whole)
    most = files(whole)
    assert most == 4 * count  # pose has keypoints beside its map
    chance = random.Random(0)
    for threshold in sorted(chance.randrange(1, most * 9 // 10) for _ in range(kills)):
        process = Forked(arguments(broken, "--quiet"), 1, tmp_path)
        while files(broken) < threshold:
            assert process.runs
            time.sleep(0.002)
        process.kill()
    assert main(arguments(broken, "--quiet")) == 0
    assert tree(broken) == expected


@pytest.mark.parametrize("count", [pytest.param(24, id="small"), pytest.param(500, id="large", marks=pytest.mark.slow)])
def test_neither_workers_nor_processes_change_a_byte(tmp_path, count):
    whole = draw(tmp_path / "whole", count)
    copies = [shutil.copytree(whole, tmp_path / name) for name in ("two", "four", "shared")]
    assert main(arguments(whole, "--quiet", "--workers", "1")) == 0
    assert main(arguments(copies[0], "--quiet", "--workers", "2")) == 0
    assert main(arguments(copies[1], "--quiet", "--workers", "4")) == 0
    done = run_two(*arguments(copies[2]))
    assert done.returncode == 0, done.stderr
    assert f"annotate: {count // 16 * 8}/{count // 16 * 8} pictures" in done.stderr  # its half, in slices of 8
    assert all(tree(copy) == tree(whole) for copy in copies)
