"""How runs end before their end: signals, time, losses that are none, disks that are full; and that nothing is lost."""

import contextlib
import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import controlkit.files as files
import controlkit.training.checkpoints as checkpoints
from controlkit.cli.main import main
from controlkit.config import build
from controlkit.errors import RequestError
from controlkit.training.base import train_base
from controlkit.training.base_config import BaseConfig
from controlkit.training.checkpoints import (
    State,
    drop_old_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)  # fmt: skip
from controlkit.training.config import TrainConfig
from controlkit.training.guard import Guard
from controlkit.training.launch import make_accelerator
from controlkit.training.run import RunError
from tests.forked import run_two
from tests.launcher import ROOT, run
from tests.training.test_base import TINY
from tests.training.test_train import SETTINGS, metrics, same, steps_of, train, weights

QUICK = SETTINGS


def signalled(number, at, times=1):
    """A loss that sends this process a signal in the middle of step `at`."""
    import train_controlnet

    control_loss, calls = train_controlnet.control_loss, []

    def loss(models, batch):
        calls.append(None)
        for _ in range(times if len(calls) == at else 0):
            os.kill(os.getpid(), number)
        return control_loss(models, batch)

    return loss


# Signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_checkpoint_from_which_the_run_goes_on(name, dataset, whole, tmp_path, monkeypatch, capsys):
    import train_controlnet

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(train_controlnet, "control_loss", signalled(getattr(signal, name), at=3))
    arguments = ["train", f"data.path={dataset}", f"output={tmp_path / 'run'}", *QUICK]
    assert main(arguments) == 130
    said = capsys.readouterr().err
    assert f"{name}: a checkpoint is saved behind this step" in said
    assert f"stopped at step 3 of 4 by {name}; go on with --resume" in said
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert newest_checkpoint(tmp_path / "run/checkpoints").name == "step-000003"
    assert not (tmp_path / "run/controlnet").exists()
    monkeypatch.undo()
    assert main([*arguments, "--resume", "--quiet"]) == 0
    assert metrics(tmp_path / "run") == metrics(whole)
    assert same(weights(tmp_path / "run"), weights(whole))


def test_a_second_interrupt_does_not_wait(dataset, tmp_path, monkeypatch):
    import train_controlnet

    monkeypatch.setattr(train_controlnet, "control_loss", signalled(signal.SIGINT, at=3, times=2))
    assert main(["train", f"data.path={dataset}", f"output={tmp_path / 'run'}", *QUICK, "-q"]) == 130
    assert newest_checkpoint(tmp_path / "run/checkpoints").name == "step-000002"


def test_a_signal_in_the_last_step_is_too_late(dataset, tmp_path, monkeypatch):
    import train_controlnet

    monkeypatch.setattr(train_controlnet, "control_loss", signalled(signal.SIGTERM, at=4))
    train(dataset, tmp_path / "run", "watch.every=0")
    assert (tmp_path / "run/controlnet").exists()


def test_processes_that_read_ahead_outlive_the_signal(dataset, whole, tmp_path, monkeypatch):
    """A terminal sends SIGINT to the whole group; the rows of the step that is begun are still needed."""
    import multiprocessing

    import train_controlnet

    control_loss = train_controlnet.control_loss

    def loss(models, batch):
        if newest_checkpoint(tmp_path / "run/checkpoints"):
            for process in [*multiprocessing.active_children()]:
                os.kill(process.pid, signal.SIGINT)
                os.kill(process.pid, signal.SIGTERM)
        return control_loss(models, batch)

    monkeypatch.setattr(train_controlnet, "control_loss", loss)
    train(dataset, tmp_path / "run", "watch.every=0", "data.workers=1")
    assert metrics(tmp_path / "run") == metrics(whole)


# Time


def test_the_end_of_its_time_hands_over_and_can_be_gone_on_from(dataset, whole, tmp_path, capsys):
    arguments = ["train", f"data.path={dataset}", f"output={tmp_path / 'run'}", *QUICK]
    assert main([*arguments, "max_minutes=0"]) == 0
    assert "stopped at step 1 of 4 after 0 minutes; go on with --resume" in capsys.readouterr().err
    assert (tmp_path / "run/controlnet").exists()
    assert main([*arguments, "--resume", "-q"]) == 0
    assert metrics(tmp_path / "run") == metrics(whole)
    assert same(weights(tmp_path / "run"), weights(whole))


def test_two_processes_stop_behind_the_same_step(dataset, tmp_path):
    """They ask each other where they log."""
    arguments = [f"data.path={dataset}", f"output={tmp_path / 'run'}", *QUICK, "log_every=2", "max_minutes=0"]
    done = run_two("train", *arguments)
    assert done.returncode == 0, done.stderr
    assert "4 a step" in done.stderr  # there were two
    assert "stopped at step 2 of 4 after 0 minutes" in done.stderr
    assert newest_checkpoint(tmp_path / "run/checkpoints").name == "step-000002"


def test_the_training_of_a_base_ends_and_goes_on_the_same_way(tmp_path):
    circles = tmp_path / "circles"
    assert main(["toybox", "make", str(circles), "--world", "circles", "--count", "24", "--size", "16", "-q"]) == 0

    def run(name, at=None, resume=False):
        config = build(BaseConfig, None, [f"data.path={circles}", f"output={tmp_path / name}", *TINY])
        train_base(
            config,
            resume=resume,
            progress=lambda step, of: os.kill(os.getpid(), signal.SIGTERM) if step == at else None,
        )
        return tmp_path / name

    with pytest.raises(KeyboardInterrupt):
        run("broken", at=2)
    assert newest_checkpoint(tmp_path / "broken/checkpoints").name == "step-000002"
    assert not (tmp_path / "broken/pipeline").exists()
    assert metrics(run("broken", resume=True)) == metrics(run("whole"))


# Losses


def test_a_lost_gradient_stops_the_run_before_its_weights_are_saved(dataset, tmp_path, monkeypatch):
    """A finite loss may have a gradient that is none: the weights are lost, and no checkpoint may hold them."""
    import train_controlnet

    calls = []

    def loss(models, batch):
        calls.append(None)
        weight = models.controlnet.controlnet_mid_block.weight
        value = sum((parameter * 0).sum() for parameter in models.controlnet.parameters())
        return value + (weight.sqrt().sum() if len(calls) == 2 else 0.0)  # d sqrt(w) / dw at 0 is infinite

    monkeypatch.setattr(train_controlnet, "control_loss", loss)
    config = build(
        TrainConfig, None, [f"data.path={dataset}", f"output={tmp_path / 'run'}", *QUICK, "checkpoint_every=1"]
    )
    with pytest.raises(RunError, match=r"the gradients are (inf|nan) at step 2, and the weights are lost; .* lower lr"):
        train_controlnet.train(config)
    assert newest_checkpoint(tmp_path / "run/checkpoints").name == "step-000001"
    assert len(steps_of(tmp_path / "run")) == 1


def run_of(losses):
    guard = Guard()
    for step, loss in enumerate(losses, start=1):
        guard.see(step, loss, 1.0)
    return guard


def test_an_exploding_loss_stops_the_run():
    noisy = [0.02, 0.3, 0.1, 0.05] * 50  # batches of one: the noise level decides
    assert run_of(noisy).calm
    with pytest.raises(RunError, match=r"the loss has exploded: about .* at step 20\d, .* lower lr, and go on with"):
        run_of([*noisy, *[5.0] * 10])
    with pytest.raises(RunError, match="has exploded"):
        run_of([*noisy, *[1.6] * 200])
    assert not run_of([*noisy, *[0.8] * 40]).calm


def test_a_single_spike_is_no_explosion():
    assert run_of([*[0.1] * 100, 50.0, *[0.1] * 200]).calm


def test_a_guard_goes_on_where_it_was(tmp_path):
    losses = [0.1] * 80 + [20.0] * 3
    guard = run_of(losses)
    again = Guard(**json.loads(json.dumps(vars(guard))))
    assert again == guard
    again.see(84, 20.0, None)
    with pytest.raises(RunError, match="at step 85"):
        again.see(85, 20.0, None)


class Net(torch.nn.Linear):
    """As small as what can be saved and loaded by its class."""

    def __init__(self, value=0.0):
        super().__init__(3, 3)
        torch.nn.init.constant_(self.weight, value)

    def save_pretrained(self, folder, safe_serialization):
        from safetensors.torch import save_file

        folder.mkdir()
        save_file(self.state_dict(), folder / "net.safetensors")

    @classmethod
    def from_pretrained(cls, folder, local_files_only):
        from safetensors.torch import load_file

        net = cls()
        net.load_state_dict(load_file(folder / "net.safetensors"))
        return net


def saved(folder, step, value, **state):
    net = Net(value)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_checkpoint(folder, State(step, step, **state), {"net": net}, optimizer.state_dict())
    return net


def test_one_goes_on_from_before_the_rise(tmp_path):
    """Checkpoints from while the loss rises are kept, the last calm one is never dropped, and a resume takes it."""
    for step, calm in ((1, True), (2, True), (3, False), (4, False)):
        saved(tmp_path, step, 0.1, calm=calm)
        drop_old_checkpoints(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000002", "step-000004"]
    assert newest_checkpoint(tmp_path).name == "step-000002"
    saved(tmp_path, 5, 0.1)
    drop_old_checkpoints(tmp_path, 1)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000005"]


# Killed


def test_a_worker_ends_with_a_training_that_is_killed_while_it_starts(tmp_path):
    """Left alone it would hold its memory for ever; and this pipe, on whose end `run` waits."""
    script = tmp_path / "killed.py"
    script.write_text("""
import multiprocessing, os, pathlib, time

def read_ahead():
    from controlkit.training.stopping import live_with_the_parent
    pathlib.Path("started").touch()
    live_with_the_parent(0)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=read_ahead).start()
    os._exit(0)
""")
    assert run(str(script), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300).stderr == ""
    assert (tmp_path / "started").exists()


# Full disks

WRITES = [
    *((checkpoints, "save_file"), (files, "_flush"), (Net, "save_pretrained")),
    *((Path, "write_text"), (Path, "replace"), (Path, "chmod"), (Path, "mkdir")),
]


def test_a_disk_that_is_full_at_any_write_leaves_the_last_checkpoint_sound(tmp_path, monkeypatch):
    """An error at the first write of a checkpoint, at the second, … until one is written whole."""
    first = saved(tmp_path, 1, 0.5)
    written: list[str] = []
    spared = 0

    def failing(owner, name):
        original = getattr(owner, name)

        def write(*args, **options):
            written.append(name)
            if len(written) > spared:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*args, **options)

        monkeypatch.setattr(owner, name, write)

    for owner, name in WRITES:
        failing(owner, name)
    while True:
        written.clear()
        with contextlib.suppress(RunError):
            saved(tmp_path, 2, 0.7)
        if (tmp_path / "step-000002").exists():  # whole, or whole and all but the last flush
            break
        assert newest_checkpoint(tmp_path).name == "step-000001"
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["step-000001"]
        net = Net()
        assert load_checkpoint(tmp_path / "step-000001", {"net": net}).step == 1
        assert torch.equal(net.weight, first.weight)
        spared += 1
    monkeypatch.undo()
    assert set(written) == {name for _, name in WRITES}
    assert spared > 10
    assert newest_checkpoint(tmp_path).name == "step-000002"


def test_a_run_on_a_full_disk_ends_in_one_line_and_goes_on_later(dataset, whole, tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    arguments = ["train", f"data.path={dataset}", f"output={tmp_path / 'run'}", *QUICK]
    import train_controlnet

    save, calls = train_controlnet.save_checkpoint, []

    def second_fails(*args):
        calls.append(None)
        if len(calls) == 2:
            monkeypatch.setattr(checkpoints, "save_file", full)
        return save(*args)

    monkeypatch.setattr(train_controlnet, "save_checkpoint", second_fails)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "the checkpoint of step 4 could not be written (No space left on device); that of step 2 is sound" in said
    monkeypatch.undo()
    assert main([*arguments, "--resume", "-q"]) == 0
    assert metrics(tmp_path / "run") == metrics(whole)


# Launches


@pytest.mark.parametrize(("flag", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_a_launch_that_would_become_another_is_refused(flag, name, dataset, tmp_path, monkeypatch):
    """On a CPU accelerate gives DDP to who asks for these, and says nothing."""
    monkeypatch.setenv(flag, "true")
    with pytest.raises(RequestError, match=f"the launcher asks for {name}, and this trainer runs under DDP"):
        make_accelerator("no")
    monkeypatch.setenv(flag, "false")
    assert make_accelerator("no").num_processes == 1


def test_a_killed_write_leaves_a_hidden_folder_that_is_never_resumed_from(tmp_path):
    saved(tmp_path, 1, 0.5)
    shutil.copytree(tmp_path / "step-000001", tmp_path / ".unfinished-x")
    (tmp_path / ".unfinished-x/state.json").write_text("{")
    assert newest_checkpoint(tmp_path).name == "step-000001"
