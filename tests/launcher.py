"""Command lines in processes of their own, alone or two together under accelerate on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    """`python ARGUMENTS` with the tests' cache and without a network."""
    return subprocess.run([sys.executable, *arguments], text=True, capture_output=True, check=False, **options)


def launch_two(*arguments: str) -> subprocess.CompletedProcess:
    """`accelerate launch` with two processes. The caller asserts that there were two: it can start one, silently."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", *arguments]
    return run(*command, env=environment, cwd=ROOT)
