"""Several processes: one may work alone for longer than what connects them would wait for it."""

import time
from datetime import timedelta

import pytest
import torch

import train_controlnet
from tests.forked import Forked
from tests.training.test_train import SETTINGS

PATIENCE = 8
"""Seconds that a collective waits for the others."""


def lose_patience():
    """For a process: collectives give up soon. The default is half an hour on CPUs, ten minutes on GPUs."""
    connect = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda *arguments, **options: connect(
        *arguments, **{**options, "timeout": timedelta(seconds=PATIENCE)}
    )


def save_slowly():
    def slowly(write):
        def written(*arguments, **options):
            time.sleep(1.5 * PATIENCE)
            return write(*arguments, **options)

        return written

    train_controlnet.save_checkpoint = slowly(train_controlnet.save_checkpoint)
    train_controlnet.save_result = slowly(train_controlnet.save_result)


def paint_unevenly():
    """The second process takes long over its share of the samples."""
    paint = train_controlnet.sample_grid

    def painted(*arguments):
        time.sleep(0 if arguments[-1].first else 1.5 * PATIENCE)
        return paint(*arguments)

    train_controlnet.sample_grid = painted


@pytest.mark.slow
@pytest.mark.parametrize("slow", [save_slowly, paint_unevenly])
def test_nobody_is_given_up(dataset, tmp_path, slow):
    settings = ["samples.every=2", "samples.count=2", "samples.steps=1", "watch.every=2", "watch.rows=2"]
    arguments = ["train", f"data.path={dataset}", f"output={tmp_path / 'run'}", *SETTINGS, *settings]
    run = Forked(arguments, 2, tmp_path, (lose_patience, slow))
    assert run.end() == 0, run.err.read_text()
    assert "4 a step" in run.err.read_text()
    assert (tmp_path / "run/controlnet").exists()
