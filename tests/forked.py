"""Command lines in processes of their own, alone or together: forked from a server that has imported everything.

The server imports this module when the first of them is started; twenty starts then cost what one import does. The
launcher itself, and how an interpreter ends, are the matter of `launcher.py`.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path

import diffusers
import psutil
import torch
import transformers

from controlkit.cli.main import main
from tests.launcher import ROOT

# What the commands import when they are called, imported before anybody is forked.
for name in ("train_controlnet", "controlkit.training.base", "controlkit.generation.generate",
             "controlkit.evaluation.evaluate", "controlkit.data.annotate"):  # fmt: skip
    import_module(name)
READY = (
    *(diffusers.ControlNetModel, diffusers.DDIMScheduler, diffusers.DDPMPipeline, diffusers.StableDiffusionPipeline),
    *(diffusers.StableDiffusionControlNetPipeline, transformers.CLIPTextModel, transformers.CLIPTokenizer),
)

SERVER = get_context("forkserver")
STILL_CONNECTED = 70


class Forked:
    """`controlkit ARGUMENTS` in one process, or in several as `accelerate launch` starts them; what they print goes to
    `out` and `err` below `folder`. Each calls `before`, functions of modules, ahead of the command."""

    def __init__(self, arguments, processes, folder, before=()):
        os.environ["PYTHONPATH"] = str(ROOT)  # the server does not inherit sys.path
        SERVER.set_forkserver_preload([__name__])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        self.out, self.err = folder / "out", folder / "err"
        self.processes = []
        for rank in range(processes):
            own = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
            self.processes.append(
                SERVER.Process(target=_run, args=([*map(str, arguments)], own, self.out, self.err, before))
            )
            self.processes[-1].start()

    @property
    def runs(self):
        return any(process.is_alive() for process in self.processes)

    def kill(self):
        """Those that work, at once; the workers that read pictures must notice by themselves."""
        workers = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                workers += psutil.Process(process.pid).children(recursive=True)
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(60)
        _, left = psutil.wait_procs(workers, timeout=120)
        assert not left

    def end(self):
        """The exit code when all have ended, or the first that fails, which ends the others as a launcher does."""
        deadline = time.monotonic() + 900
        while self.runs and not any(process.exitcode for process in self.processes):
            assert time.monotonic() < deadline, self.err.read_text()
            wait([process.sentinel for process in self.processes if process.is_alive()], 1)
        code = next((process.exitcode for process in self.processes if process.exitcode), 0)
        self.kill()
        return code


def run_two(*arguments, before=()):
    """A command line in two processes that share its work. The caller asserts that there were two."""
    with tempfile.TemporaryDirectory() as folder:
        forked = Forked(arguments, 2, Path(folder), before)
        code = forked.end()
        return subprocess.CompletedProcess(arguments, code, forked.out.read_text(), forked.err.read_text())


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _run(arguments, environment, out, err, before):
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    for prepare in before:
        prepare()
    code = main(arguments)
    if code == 0 and torch.distributed.is_initialized():
        # Here nobody would see it: a real interpreter is aborted by the threads that still wait for the others.
        print("what connects the processes was not closed", file=sys.stderr)
        code = STILL_CONNECTED
    sys.exit(code)
