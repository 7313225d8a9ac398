"""Killed without warning, at any moment, and gone on with: nothing tells the run from an unbroken one."""

import os
import random
import subprocess
import sys
import time

import psutil
import pytest

from controlkit.training.checkpoints import newest_checkpoint
from tests.launcher import ROOT, launch_two
from tests.launcher import run as run_alone
from tests.training.test_train import metrics

SETTINGS = [
    "base=random-sd15",
    *("batch_size=2", "gradient_accumulation=2", "lr=1e-3", "log_every=2", "checkpoint_every=3", "watch.every=4"),
    *("samples.every=5", "samples.count=2", "samples.steps=1", "data.held_out=0.3"),
]


def arguments_of(dataset, run, steps, workers):
    return [f"data.path={dataset}", f"output={run}", f"steps={steps}", f"data.workers={workers}", *SETTINGS, "--quiet"]


def start(arguments, processes):
    """The training in processes of their own."""
    script = str(ROOT / "train_controlnet.py")
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"] if processes == 2 else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, script, *arguments],
        env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def kill(process):
    """All of it at once: a launcher's processes are in sessions of their own."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=60)
    process.wait()


def wait_for(process, condition):
    """Whether it came before the process ended."""
    deadline = time.monotonic() + 600
    while process.poll() is None:
        assert time.monotonic() < deadline
        if condition():
            return True
        time.sleep(0.002)
    return False


def kill_at_a_moment(process, run, chance, number):
    """Each third time while a checkpoint is written, else a random while behind a step; whether it was in time."""
    unfinished, log = run / "checkpoints", run / "metrics.jsonl"
    before = log.read_bytes() if log.exists() else b""
    moved = wait_for(process, lambda: log.exists() and log.read_bytes() not in (b"", before))
    if number % 3 == 0:
        moved = moved and wait_for(process, lambda: any(unfinished.glob(".unfinished-*")))
    else:
        limit = time.monotonic() + chance.uniform(0, 4)
        moved = moved and wait_for(process, lambda: time.monotonic() > limit)
    if moved:
        kill(process)
    return moved


def everything(run):
    """All that a run determines: its logs, the result, and what the last checkpoint holds."""
    last = newest_checkpoint(run / "checkpoints")
    tensors = {path.relative_to(run): path.read_bytes() for path in [*run.rglob("*.safetensors"), last / "state.json"]}
    return metrics(run), {
        name: data for name, data in tensors.items() if "controlnet" in name.parts or last.name in name.parts
    }


def unbroken_and_killed(dataset, tmp_path, *, processes, workers, steps, kills):
    chance = random.Random(f"{processes} {workers}")
    run = tmp_path / "killed"
    done = 0
    while done < kills:
        process = start([*arguments_of(dataset, run, steps, workers), "--resume"], processes)
        assert kill_at_a_moment(process, run, chance, done), f"the run ended behind {done} kills; give it more steps"
        done += 1
    for name, resume in (("killed", ["--resume"]), ("whole", [])):
        arguments = [
            str(ROOT / "train_controlnet.py"),
            *arguments_of(dataset, tmp_path / name, steps, workers),
            *resume,
        ]
        ended = launch_two(*arguments) if processes == 2 else run_alone(*arguments, cwd=ROOT)
        assert ended.returncode == 0, ended.stderr
    ours, theirs = everything(run), everything(tmp_path / "whole")
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert ours[1] == theirs[1]


def test_killed_while_it_writes_a_checkpoint(dataset, tmp_path):
    unbroken_and_killed(dataset, tmp_path, processes=1, workers=0, steps=8, kills=1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_twice(dataset, tmp_path, processes, workers):
    unbroken_and_killed(dataset, tmp_path, processes=processes, workers=workers, steps=40, kills=2)


@pytest.mark.slow
def test_killed_at_twenty_moments(dataset, tmp_path):
    unbroken_and_killed(dataset, tmp_path, processes=2, workers=2, steps=200, kills=20)
