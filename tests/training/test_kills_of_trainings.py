"""Killed without warning, at any moment, and gone on with: nothing tells the run from an unbroken one."""

import random
import time

import pytest

from controlkit.training.checkpoints import newest_checkpoint
from tests.data.test_forms import forms, imagefolder
from tests.forked import Forked
from tests.training.test_train import metrics

SETTINGS = [
    "base=random-sd15",
    *("batch_size=2", "gradient_accumulation=2", "lr=1e-3", "log_every=2", "checkpoint_every=3", "watch.every=4"),
    *("samples.every=5", "samples.count=2", "samples.steps=1", "data.held_out=0.3"),
]


def arguments_of(data, run, steps, workers):
    path, condition, maps = data
    named = [f"data.path={path}", f"data.condition={condition}", *([f"data.maps={maps}"] if maps else [])]
    return [*named, f"output={run}", f"steps={steps}", f"data.workers={workers}", *SETTINGS, "--quiet"]


def wait_for(training, condition):
    """Whether it came before the training ended."""
    deadline = time.monotonic() + 600
    while training.runs:
        assert time.monotonic() < deadline
        if condition():
            return True
        time.sleep(0.002)
    return False


def kill_at_a_moment(training, run, chance, number):
    """Each third time while a checkpoint is written, else a random while behind a step; whether it was in time."""
    log = run / "metrics.jsonl"
    before = log.read_bytes() if log.exists() else b""
    moved = wait_for(training, lambda: log.exists() and log.read_bytes() not in (b"", before))
    if number % 3 == 0:
        moved = moved and wait_for(training, lambda: any((run / "checkpoints").glob(".unfinished-*")))
    else:
        limit = time.monotonic() + chance.uniform(0, 4)
        moved = moved and wait_for(training, lambda: time.monotonic() > limit)
    training.kill()
    return moved


def everything(run):
    """All that a run determines: its logs, the result, and what the last checkpoint holds."""
    last = newest_checkpoint(run / "checkpoints")
    tensors = {path.relative_to(run): path.read_bytes() for path in [*run.rglob("*.safetensors"), last / "state.json"]}
    return metrics(run), {
        name: data for name, data in tensors.items() if "controlnet" in name.parts or last.name in name.parts
    }


def unbroken_and_killed(data, tmp_path, *, processes, workers, steps, kills):
    chance = random.Random(f"{processes} {workers}")
    killed, whole = tmp_path / "killed", tmp_path / "whole"

    def begin(run, *options):
        arguments = [*arguments_of(data, run, steps, workers), *options]
        return Forked(["train", *arguments], processes, tmp_path)

    for number in range(kills):
        in_time = kill_at_a_moment(begin(killed, "--resume"), killed, chance, number)
        assert in_time, f"the run ended behind {number} kills: {(tmp_path / 'err').read_text()}"
    for run, options in ((killed, ["--resume"]), (whole, [])):
        last = begin(run, *options)
        assert last.end() == 0, last.err.read_text()
    ours, theirs = everything(killed), everything(whole)
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert ours[1] == theirs[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@forms
def test_killed_twice(make, dataset, tmp_path, processes, workers):
    data = make(dataset, tmp_path / "data")
    unbroken_and_killed(data, tmp_path, processes=processes, workers=workers, steps=40, kills=2)


@pytest.mark.slow
def test_killed_at_twenty_moments(dataset, tmp_path):
    data = imagefolder(dataset, tmp_path)
    unbroken_and_killed(data, tmp_path, processes=2, workers=2, steps=200, kills=20)
