"""Evaluations that are killed at whatever moment end, begun again, with the report of one that never was."""

import json
import random
import signal
import time

import pytest

from controlkit.cli.main import main
from tests.forked import Forked
from tests.painting import strong_net

PROCESSES = (2, 1, 2, 1)  # of the runs that are killed


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


def test_killed_at_random_moments(asked, tmp_path):
    """SIGKILL once a random number of pictures is there, a random moment later, of one process or of two at once; the
    reports are the same bytes."""
    arguments, whole = asked
    out, draw, killed = tmp_path / "report", random.Random(0), 0
    everything = len(list((whole / "pictures").iterdir()))
    assert everything == 6 * 2 * 2
    moments = sorted(draw.randrange(everything) for _ in PROCESSES)
    for processes, pictures in zip(PROCESSES, moments, strict=True):
        run = Forked([*arguments, "--out", out], processes, tmp_path)
        while run.runs and len(list(out.glob("pictures/*.png"))) < pictures:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.3))
        run.kill()
        killed += all(process.exitcode == -signal.SIGKILL for process in run.processes)
    assert killed >= len(PROCESSES) - 1
    assert main([*arguments, "--out", str(out)]) == 0
    for name in ("scores.json", "report.json", "index.html"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    names = [sorted(path.name for path in (folder / "pictures").iterdir()) for folder in (whole, out)]
    assert names[0] == names[1]
    assert "frechet_scenes" in json.loads((whole / "scores.json").read_text())
