"""FSDP and DeepSpeed: two processes, each with its share of what learns, train as one does, and go on where they were.

accelerate keeps both for GPUs. Put in its place here is that choice alone: plugin, wrapping, collectives and optimizer
are those of any such run, and gloo carries them.
"""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

import train_controlnet
from controlkit.cli.main import main
from controlkit.config import build
from controlkit.data.pictures import read_picture
from controlkit.errors import RequestError
from controlkit.models.bases import find_base
from controlkit.training.checkpoints import newest_checkpoint, optimizer_state
from controlkit.training.config import TrainConfig
from controlkit.training.forecast import forecast
from controlkit.training.launch import make_sharing_accelerator
from controlkit.training.sharding import cannot_be_shared, local, share_of, whole_tensor
from tests.forked import Forked
from tests.launcher import ROOT, run
from tests.training.descent import descend, take_descent
from tests.training.test_kills_of_trainings import everything
from tests.training.test_train import SETTINGS, steps_of, train, weights

# What a launcher that is asked for them leaves in the environment.
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
WITH_DEEPSPEED = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


def share_on_a_cpu():
    """Let accelerate choose what was asked for, where it would choose DDP."""
    choose = AcceleratorState.__init__

    def choose_shares(self, *arguments, fsdp_plugin=None, deepspeed_plugin=None, **options):
        choose(self, *arguments, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **options)
        if fsdp_plugin:
            self.fsdp_plugin = fsdp_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if deepspeed_plugin:
            deepspeed_plugin.set_mixed_precision("no")
            deepspeed_plugin.select(_from_accelerator_state=True)
            self.deepspeed_plugins = deepspeed_plugin
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED

    AcceleratorState.__init__ = choose_shares


@pytest.fixture
def ask(monkeypatch):
    def ask(environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return ask


@pytest.fixture
def train_in_shares(ask, dataset, tmp_path):
    def train(asked, output, *settings, before=(), resume=False):
        ask(asked)
        arguments = ["train", f"data.path={dataset}", f"output={output}", *SETTINGS, *settings]
        forked = Forked([*arguments, *(["--resume"] if resume else [])], 2, tmp_path, (share_on_a_cpu, *before))
        code, said = forked.end(), forked.err.read_text()
        assert code == 0, said
        assert f"in shares on 2 processes ({'FSDP' if asked is FSDP else 'DeepSpeed'})" in said
        forked.err.unlink()

    return train


def looks_of(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if "map_gain_share" in row]


def test_shares_train_as_one_process_does(train_in_shares, dataset, tmp_path, monkeypatch):
    """Weights, losses, gradients, looks and samples; and one process goes on from their checkpoint. By gradient
    descent, since Adam makes whole steps of what rounding leaves."""
    settings = ["lr=0.1", "gradient_accumulation=2", "watch.every=2", "watch.rows=2", "data.held_out=0.3"]
    settings += ["samples.every=2", "samples.steps=1", "samples.count=2"]
    one, two, further = (tmp_path / name for name in ("one", "two", "further"))
    train_in_shares(FSDP, two, *settings, "steps=2", "batch_size=1", before=[take_descent])
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


@WITH_DEEPSPEED
@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [("1", "no"), ("2", "bf16")])
def test_zero_shares_what_ddp_has_twice(train_in_shares, dataset, tmp_path, monkeypatch, stage, precision):
    """Weights, losses, gradients and the optimizer's state of two processes under DDP, in the same files."""
    settings = [f"mixed_precision={precision}", "gradient_accumulation=2", "batch_size=1", "max_grad_norm=0.1"]
    settings += ["watch.every=2", "watch.rows=2", "warmup_steps=3"]
    zero, ddp = tmp_path / "zero", tmp_path / "ddp"
    train_in_shares({**DEEPSPEED, "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}, zero, *settings)
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    arguments = ["train", f"data.path={dataset}", f"output={ddp}", *SETTINGS, *settings]
    assert Forked(arguments, 2, tmp_path).end() == 0
    for name in ("loss", "grad_norm", "lr"):
        assert [row[name] for row in steps_of(zero)] == pytest.approx([row[name] for row in steps_of(ddp)], rel=1e-4)
    assert looks_of(zero)[0]["held_out_loss"] == pytest.approx(looks_of(ddp)[0]["held_out_loss"], rel=1e-4)
    ours, theirs = (optimizer_state(newest_checkpoint(run / "checkpoints")) for run in (zero, ddp))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, values in ours["state"].items():
        assert values["step"] == theirs["state"][index]["step"] == 4
        torch.testing.assert_close(values["exp_avg"], theirs["state"][index]["exp_avg"], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        pytest.param(FSDP, ["ema=0.9", "mixed_precision=bf16"], id="fsdp"),
        pytest.param(FSDP, ["ema=0.5", "control_lora=4"], id="fsdp-lora", marks=pytest.mark.slow),
        pytest.param(
            DEEPSPEED, ["ema=0.9", "mixed_precision=bf16"], id="deepspeed", marks=[WITH_DEEPSPEED, pytest.mark.slow]
        ),
    ],
)
def test_a_run_in_shares_goes_on_exactly(train_in_shares, tmp_path, asked, settings):
    settings = [*settings, "watch.every=2", "watch.rows=2", "gradient_checkpointing=true"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_in_shares(asked, whole, *settings)
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step-000004")
    shutil.rmtree(broken / "controlnet")
    train_in_shares(asked, broken, *settings, resume=True)
    assert newest_checkpoint(broken / "checkpoints").name == "step-000004"
    assert everything(broken) == everything(whole)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize(
    ("launch", "name"),
    [
        (["--use_fsdp", "--fsdp_version", "2"], "FSDP"),
        pytest.param(["--use_deepspeed", "--zero_stage", "2"], "DeepSpeed", marks=WITH_DEEPSPEED),
    ],
)
def test_two_gpus_share_as_people_launch_them(dataset, tmp_path, launch, name):
    """The losses are those of DDP; it looks, paints, saves, and goes on from what it saved."""
    settings = [*SETTINGS, f"data.path={dataset}", "mixed_precision=bf16", "watch.every=2", "watch.rows=2"]
    settings += ["samples.every=2", "samples.count=2", "samples.steps=1"]

    def launched(how, output, *more):
        command = ["-m", "accelerate.commands.launch", "--num_processes", "2", *how, "train_controlnet.py"]
        done = run(*command, *settings, f"output={tmp_path / output}", *more, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stderr

    launched(["--multi_gpu"], "ddp", "steps=6")
    assert f"in shares on 2 processes ({name})" in launched(launch, "shared", "steps=4")
    assert "resumed at step 4" in launched(launch, "shared", "steps=6", "--resume")
    ours, theirs = ([row["loss"] for row in steps_of(tmp_path / name)] for name in ("shared", "ddp"))
    assert ours == pytest.approx(theirs, rel=0.02)


# Refused


def refusal(*settings):
    with pytest.raises(RequestError) as refused:
        make_sharing_accelerator(build(TrainConfig, None, settings))
    return str(refused.value)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"FSDP_VERSION": "1"}, "version 1 of FSDP, and this trainer runs under version 2: launch with --use_fsdp"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "leave it out, and set gradient_checkpointing=true"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "leave --fsdp_offload_params out"),
        ({}, "asks for FSDP, which accelerate gives to GPUs alone; here it made 'no' of it"),
    ],
)
def test_a_launch_with_fsdp_that_cannot_be_followed_is_refused(ask, environment, words):
    ask({**FSDP, **environment})
    assert words in refusal()


@WITH_DEEPSPEED
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO stage 3, and this trainer runs under stages 1 and 2"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "leave its offloading out"),
        ({}, "asks for DeepSpeed, which accelerate gives to GPUs alone; here it made 'no' of it"),
    ],
)
def test_a_launch_with_deepspeed_that_cannot_be_followed_is_refused(ask, environment, words):
    ask({**DEEPSPEED, "ACCELERATE_USE_CPU": "true", **environment})
    assert words in refusal()


@WITH_DEEPSPEED
def test_a_config_file_of_deepspeed_decides_what_is_not_the_runs(ask, tmp_path, monkeypatch):
    file = tmp_path / "zero.json"
    config = {"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 7}
    file.write_text(json.dumps(config))
    ask({**DEEPSPEED, "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)})
    monkeypatch.setattr(AcceleratorState, "__init__", AcceleratorState.__init__)  # restored
    share_on_a_cpu()
    made = make_sharing_accelerator(build(TrainConfig, None, ["batch_size=2", "max_grad_norm=0.5"]))
    config = made.deepspeed_plugin.deepspeed_config
    AcceleratorState._reset_state(reset_partial_state=True)
    assert config["zero_optimization"]["stage"] == 1
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_clipping"]) == (2, 0.5)
    assert not config["bf16"]["enabled"]
    file.write_text(json.dumps({**config, "optimizer": {"type": "Adam"}}))
    assert "DeepSpeed's config names an optimizer; leave it out" in refusal()


@pytest.mark.parametrize("how", ["FSDP", "DeepSpeed"])
@pytest.mark.parametrize(
    "setting", ["decoder=true", "channels_last=true", "optimizer=adafactor", "mixed_precision=fp16", "compile=true"]
)
def test_a_setting_that_cannot_be_shared_is_named(setting, how):
    (problem,) = cannot_be_shared(build(TrainConfig, None, [setting]), how)
    assert problem.startswith(f"{setting}: ")
    assert how in problem
    assert list(cannot_be_shared(TrainConfig(), how)) == []


def test_a_dry_run_tells_what_a_share_takes(ask, dataset, capsys):
    """Of the processes of a launch; here there is one, which has all of it."""
    base = find_base("random-sd15")
    alone = forecast(TrainConfig(base="random-sd15"), base)
    fsdp, zero = (alone.in_shares(how, 4) for how in ("FSDP", "DeepSpeed"))
    assert fsdp.learned * 4 == pytest.approx(alone.learned, abs=4)
    assert zero.learned == alone.learned
    assert fsdp.optimizer * 4 == pytest.approx(alone.optimizer, abs=4)
    assert zero.optimizer * 4 == pytest.approx(alone.optimizer + alone.gradients, abs=4)  # its weights are float32 too
    assert {each.gradients for each in (fsdp, zero)} == {-(-alone.gradients // 4)}
    assert {(each.base, each.activations) for each in (fsdp, zero)} == {(alone.base, alone.activations)}
    ask(FSDP)
    arguments = ["train", f"data.path={dataset}", "base=random-sd15", "--dry-run"]
    assert main(arguments) == 0
    assert f"learned {alone.learned / 1e9:.2f}" in capsys.readouterr().out
    assert main([*arguments, "decoder=true"]) == 2
    assert "decoder=true: FSDP shares out one network" in capsys.readouterr().err


def test_what_cannot_be_shared_is_refused(ask):
    ask(FSDP)
    assert refusal("decoder=true").startswith("decoder=true: FSDP")


def test_a_tensor_without_shares_is_whole_as_it_is():
    tensor = torch.ones(3)
    assert whole_tensor(tensor) is local(tensor) is share_of(tensor, torch.zeros(3)) is tensor
