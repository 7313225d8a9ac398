"""Evaluations that are killed at whatever moment end, begun again, with the report of one that never was."""

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
from multiprocessing import get_context

import pytest

from controlkit.cli.main import main
from tests.painting import strong_net

KILLS = 4


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Six scenes, two pictures each, painted three together: what is missing is part of a batch, too."""
    folder = tmp_path_factory.mktemp("killed")
    rooms = ["--world", "rooms", "--count", "6", "--type", "canny", "-q"]
    assert main(["toybox", "make", str(folder / "rooms"), *rooms]) == 0
    net = strong_net("random-sd15", folder / "net")
    settings = ["--base", "random-sd15", "--steps", "2", "--cfg", "3", "--per-row", "2", "--batch-size", "3", "-q"]
    arguments = ["evaluate", "--controlnet", str(net), "--data", str(folder / "rooms"), *settings]
    assert main([*arguments, "--out", str(folder / "whole")]) == 0
    return arguments, folder / "whole"


def evaluated(arguments, out):
    with contextlib.redirect_stdout(io.StringIO()):
        sys.exit(main([*arguments, "--out", str(out)]))


def test_killed_at_random_moments(asked, tmp_path):
    """SIGKILL once a random number of pictures is there, a random moment later; the reports are the same bytes."""
    arguments, whole = asked
    draw, fork = random.Random(0), get_context("fork")  # what is imported already need not be imported again
    everything = len(list((whole / "pictures").iterdir()))
    assert everything == 6 * 2 * 2
    killed = 0
    for pictures in sorted(draw.randrange(everything) for _ in range(KILLS)):
        process = fork.Process(target=evaluated, args=(arguments, tmp_path / "out"))
        process.start()
        while process.is_alive() and len(list((tmp_path / "out").glob("pictures/*.png"))) < pictures:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= KILLS - 1
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    for name in ("scores.json", "report.json", "index.html"):
        assert (tmp_path / "out" / name).read_bytes() == (whole / name).read_bytes(), name
    names = [sorted(path.name for path in (out / "pictures").iterdir()) for out in (whole, tmp_path / "out")]
    assert names[0] == names[1]
    assert "frechet_scenes" in json.loads((whole / "scores.json").read_text())
