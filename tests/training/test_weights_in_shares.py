"""FSDP: two processes, each with its share of every weight, train as one process does, and go on where they were.

accelerate keeps FSDP for GPUs. Put in its place here is that choice alone: plugin, wrapping, collectives and optimizer
are those of any run under FSDP, and gloo carries them.
"""

import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import train_controlnet
from controlkit.cli.main import main
from controlkit.config import build
from controlkit.data.pictures import read_picture
from controlkit.errors import RequestError
from controlkit.training.checkpoints import newest_checkpoint
from controlkit.training.config import TrainConfig
from controlkit.training.launch import make_accelerator
from controlkit.training.sharding import cannot_be_shared
from tests.forked import Forked
from tests.training.descent import descend, take_descent
from tests.training.test_kills_of_trainings import everything
from tests.training.test_train import SETTINGS, steps_of, train, weights

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def share_on_a_cpu():
    """Let accelerate choose FSDP, where it would choose DDP."""
    choose = AcceleratorState.__init__

    def choose_fsdp(self, *arguments, fsdp_plugin=None, **options):
        choose(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = choose_fsdp


@pytest.fixture
def asked(monkeypatch):
    for name, value in FSDP.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def train_in_shares(asked, dataset, tmp_path):
    def train(output, *settings, before=(), resume=False):
        arguments = ["train", f"data.path={dataset}", f"output={output}", *SETTINGS, *settings]
        run = Forked([*arguments, *(["--resume"] if resume else [])], 2, tmp_path, (share_on_a_cpu, *before))
        code, said = run.end(), run.err.read_text()
        assert code == 0, said
        assert "in shares on 2 processes" in said
        run.err.unlink()

    return train


def looks_of(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "map_gain_share" in row]


def test_shares_train_as_one_process_does(train_in_shares, dataset, tmp_path, monkeypatch):
    """Weights, losses, gradients, looks and samples; and one process goes on from their checkpoint."""
    settings = ["lr=0.1", "gradient_accumulation=2", "watch.every=2", "watch.rows=2", "data.held_out=0.3"]
    settings += ["samples.every=2", "samples.steps=1", "samples.count=2"]
    one, two, further = (tmp_path / name for name in ("one", "two", "further"))
    train_in_shares(two, *settings, "steps=2", "batch_size=1", before=[take_descent])
    shutil.copytree(two, further)
    for name in FSDP:
        monkeypatch.delenv(name)
    monkeypatch.setattr(train_controlnet, "make_optimizer", descend)
    train(dataset, one, *settings)
    arguments = [f"data.path={dataset}", f"output={further}", *SETTINGS, *settings, "--resume", "--quiet"]
    assert main(["train", *arguments]) == 0
    assert len(steps_of(two)) == 2
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in steps_of(further)] == pytest.approx([row[name] for row in steps_of(one)], rel=1e-5)
    (ours, *_), (theirs, *_) = looks_of(two), looks_of(one)
    for name in ("control_gain_share", "map_gain_share", "zero_convolutions"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-6)
    assert ours["held_out_loss"] == pytest.approx(theirs["held_out_loss"], rel=1e-5)
    ours, theirs = weights(further), weights(one)
    assert max((ours[key] - theirs[key]).abs().max() for key in ours) < 1e-6
    assert max((ours[key] - weights(two)[key]).abs().max() for key in ours) > 1e-4
    sheets = [read_picture(run / "samples/step-000002.png").astype(int) for run in (one, two)]
    assert abs(sheets[0] - sheets[1]).max() <= 1


LORA = pytest.param(["control_lora=4", "ema=0.5"], marks=pytest.mark.slow)


@pytest.mark.parametrize("settings", [["ema=0.9", "mixed_precision=bf16"], LORA])
def test_a_run_in_shares_goes_on_exactly(train_in_shares, tmp_path, settings):
    settings = [*settings, "watch.every=2", "watch.rows=2", "gradient_checkpointing=true"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_in_shares(whole, *settings)
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step-000004")
    shutil.rmtree(broken / "controlnet")
    train_in_shares(broken, *settings, resume=True)
    assert newest_checkpoint(broken / "checkpoints").name == "step-000004"
    assert everything(broken) == everything(whole)


# Refused


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FSDP_VERSION": "1"}, "version 1 of FSDP, and this trainer runs under version 2: launch with --use_fsdp"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "leave it out, and set gradient_checkpointing=true"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "leave --fsdp_offload_params out"),
        ({}, "accelerate gives it to several GPUs alone; here it made 'no' of it"),
    ],
)
def test_a_launch_that_cannot_be_followed_is_refused(asked, monkeypatch, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RequestError, match=words):
        make_accelerator("no", may_share=True)


@pytest.mark.parametrize(
    "setting", ["decoder=true", "channels_last=true", "optimizer=adafactor", "mixed_precision=fp16"]
)
def test_a_setting_that_cannot_be_shared_is_named(setting):
    (problem,) = cannot_be_shared(build(TrainConfig, None, [setting]))
    assert problem.startswith(f"{setting}: ")
    assert list(cannot_be_shared(TrainConfig())) == []


def test_a_tensor_without_shares_is_whole_as_it_is():
    from controlkit.training.sharding import local, share_of, whole_tensor

    tensor = torch.ones(3)
    assert whole_tensor(tensor) is local(tensor) is share_of(tensor, torch.zeros(3)) is tensor
