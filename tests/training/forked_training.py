"""Trainings in processes of their own that are there at once: forked from a server that has imported everything.

The server imports this module when the first of them is started; twenty starts then cost what one import does.
"""

import contextlib
import os
import socket
import sys
from multiprocessing import get_context

import psutil
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline  # noqa: F401 (ready for use)
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import train_controlnet  # noqa: F401
from controlkit.cli.main import main
from tests.launcher import ROOT

SERVER = get_context("forkserver")


class ForkedTraining:
    """`controlkit train ARGUMENTS` in one process, or in several as `accelerate launch` starts them."""

    def __init__(self, arguments, processes, log):
        os.environ["PYTHONPATH"] = str(ROOT)  # the server does not inherit sys.path
        SERVER.set_forkserver_preload([__name__])
        environment = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
        environment |= {"MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
        self.log = log
        self.processes = []
        for rank in range(processes):
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
            self.processes.append(SERVER.Process(target=_run, args=(arguments, own, log)))
            self.processes[-1].start()

    @property
    def runs(self):
        return any(process.is_alive() for process in self.processes)

    def kill(self):
        """Those that train, at once; the workers that read pictures must notice by themselves."""
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
        """Wait for it; it must end well."""
        for process in self.processes:
            process.join(900)
        assert [process.exitcode for process in self.processes] == [0] * len(self.processes), self.log.read_text()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _run(arguments, environment, log):
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(["train", *arguments]))
