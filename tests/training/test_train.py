"""A whole run: `controlkit train`, `accelerate launch train_controlnet.py`, resumed, in two processes, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image

import train_controlnet
from controlkit.cli.main import main
from controlkit.config import build, shipped_configs
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.models.random_base import build_random_base
from controlkit.training.checkpoints import newest_checkpoint
from controlkit.training.config import TrainConfig
from controlkit.training.run import RunError
from tests.launcher import launch_two
from tests.training.descent import descend

SETTINGS = [
    "base=random-sd15",
    "steps=4",
    "batch_size=2",
    "lr=1e-3",
    "checkpoint_every=2",
    "samples.every=0",
    "watch.every=0",
]


def train(dataset, output, *settings, code=0):
    arguments = ["train", f"data.path={dataset}", f"output={output}", *SETTINGS, *settings]
    assert main([*arguments, "--quiet"]) == code


def weights(run_folder):
    return ControlNetModel.from_pretrained(run_folder / "controlnet").state_dict()


def same(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items())


def metrics(run_folder):
    return (run_folder / "metrics.jsonl").read_text()


def steps_of(run_folder):
    """The rows of the steps, without looks and events."""
    return [row for row in map(json.loads, metrics(run_folder).splitlines()) if "loss" in row]


def test_the_run_folder(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith("tensorboard/")}  # where it is installed
    assert names == {
        "config.yaml", "metrics.jsonl", "timing.jsonl", "README.md", "curves.png",
        "samples/step-000004.png",
        "controlnet/config.json", "controlnet/controlkit.json", "controlnet/diffusion_pytorch_model.safetensors",
        *(f"checkpoints/step-{step:06d}/{name}" for step in (2, 4) for name in (
            "state.json", "optimizer.safetensors", "controlnet/config.json",
            "controlnet/diffusion_pytorch_model.safetensors")),
    }  # fmt: skip
    assert build(TrainConfig, trained / "config.yaml").steps == 4
    rows = steps_of(trained)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["loss"]) and row["grad_norm"] > 0 and row["lr"] == 1e-3 for row in rows)
    with Image.open(trained / "samples" / "step-000004.png") as grid:
        assert grid.size == (3 * 64 + 2 * 2, 2 * 64 + 2)
    card = (trained / "README.md").read_text()
    assert "samples/step-000004.png" in card
    assert "random-sd15" in card


def test_the_result_loads_in_diffusers_and_has_learned(trained):
    net = ControlNetModel.from_pretrained(trained / "controlnet")
    assert any((weight != 0).any() for weight in net.controlnet_mid_block.parameters())
    assert json.loads((trained / "controlnet" / "controlkit.json").read_text())["condition"] == "canny"


@pytest.mark.parametrize("base", ["random-sd21", "random-sdxl"])
def test_other_families_train(dataset, tmp_path, base):
    train(dataset, tmp_path / "run", f"base={base}", "steps=1", "samples.every=1", "samples.steps=2", "samples.count=1")
    assert weights(tmp_path / "run")["controlnet_mid_block.weight"].abs().max() > 0


def test_a_base_with_another_vae_factor_trains(dataset, tmp_path):
    build_random_base("random-sd15", tmp_path / "base", vae_factor=4)
    train(dataset, tmp_path / "run", f"base={tmp_path / 'base'}", "steps=1", "data.resolution=36", "samples.every=1",
          "samples.steps=2")  # fmt: skip
    assert len(ControlNetModel.load_config(tmp_path / "run" / "controlnet")["conditioning_embedding_out_channels"]) == 3


def test_bfloat16_trains_with_float32_weights(dataset, tmp_path):
    train(dataset, tmp_path / "run", "mixed_precision=bf16", "steps=2", "samples.every=2", "samples.steps=2")
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}


def test_accumulated_batches_equal_a_large_one(dataset, tmp_path):
    train(dataset, tmp_path / "large", "batch_size=4", "steps=2")
    train(dataset, tmp_path / "small", "batch_size=2", "gradient_accumulation=2", "steps=2")
    large, small = (steps_of(tmp_path / name) for name in ("large", "small"))
    for one, other in zip(large, small, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)


def test_warmup_raises_the_learning_rate(dataset, tmp_path):
    train(dataset, tmp_path / "run", "warmup_steps=4")
    rates = [row["lr"] for row in steps_of(tmp_path / "run")]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])


def test_the_same_settings_give_the_same_run(dataset, whole, tmp_path):
    train(dataset, tmp_path / "again")
    assert metrics(tmp_path / "again") == metrics(whole)
    assert same(weights(tmp_path / "again"), weights(whole))
    train(dataset, tmp_path / "other", "seed=1")
    assert metrics(tmp_path / "other") != metrics(whole)


def test_samples_change_nothing_of_the_training(dataset, whole, tmp_path):
    train(dataset, tmp_path / "with", "samples.every=1", "samples.steps=1", "samples.count=1", "steps=2")
    assert steps_of(tmp_path / "with") == steps_of(whole)[:2]


def test_a_resumed_run_equals_an_unbroken_one(dataset, whole, tmp_path):
    """Stopped behind step 3: step 3 is lost, and made again from the checkpoint of step 2."""
    train(dataset, tmp_path / "broken", "steps=3")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-000003")
    train(dataset, tmp_path / "broken", "--resume")
    assert metrics(tmp_path / "broken") == metrics(whole)
    assert same(weights(tmp_path / "broken"), weights(whole))


def test_a_damaged_checkpoint_is_passed_over(dataset, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "step-000004" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-000002"
    arguments = ["train", f"data.path={dataset}", f"output={tmp_path / 'run'}", *SETTINGS, "steps=5", "--resume"]
    assert main(arguments) == 0
    assert "resumed at step 2" in capsys.readouterr().err
    assert len(steps_of(tmp_path / "run")) == 5


def test_resume_begins_anew_where_there_is_nothing(dataset, tmp_path):
    train(dataset, tmp_path / "run", "--resume", "steps=1")
    assert len(steps_of(tmp_path / "run")) == 1


def test_old_checkpoints_go_when_a_newer_is_safe(dataset, tmp_path):
    train(dataset, tmp_path / "run", "checkpoint_every=1", "keep_checkpoints=2")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(dataset, tmp_path, monkeypatch):
    import train_controlnet

    calls = []

    def loss(models, batch):
        calls.append(None)
        value = sum((parameter * 0).sum() for parameter in models.controlnet.parameters())
        return value + (float("nan") if len(calls) > 3 else 0.0)

    monkeypatch.setattr(train_controlnet, "control_loss", loss)
    config = build(TrainConfig, None, [f"data.path={dataset}", f"output={tmp_path / 'run'}", *SETTINGS])
    with pytest.raises(RunError, match=r"the loss is nan at step 4; .* lower lr"):
        train_controlnet.train(config)
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-000002"
    assert len(steps_of(tmp_path / "run")) == 2


# As people start it


def test_two_processes_train_as_one_does(dataset, tmp_path, monkeypatch):
    """Each sees half of every batch, and averaged gradients make of it the same run: twenty steps later the weights
    differ by less than a millionth. By gradient descent, since Adam makes whole steps of what rounding leaves."""
    settings = ["steps=20", "lr=0.1", "checkpoint_every=20", "watch.every=20"]
    monkeypatch.setattr(train_controlnet, "make_optimizer", descend)
    train(dataset, tmp_path / "one", *settings, "batch_size=4")
    two = [f"data.path={dataset}", f"output={tmp_path / 'two'}", *SETTINGS, *settings]
    two += ["samples.every=20", "samples.steps=1"]
    done = launch_two("tests/training/descent.py", *two, "batch_size=2")
    assert done.returncode == 0, done.stderr
    assert "4 a step" in done.stderr  # two processes with two rows each
    assert done.stdout.count("is ready") == 1
    one, both = (steps_of(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in both] == pytest.approx([row[name] for row in one], rel=1e-5)
    looks = [[row for row in map(json.loads, metrics(tmp_path / name).splitlines()) if "map_gain_share" in row]
             for name in ("one", "two")]  # fmt: skip
    assert [len(each) for each in looks] == [1, 1]
    assert looks[0][0]["held_out_loss"] == pytest.approx(looks[1][0]["held_out_loss"], rel=1e-4)
    assert looks[0][0]["by_timestep"].keys() == looks[1][0]["by_timestep"].keys()
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    base = find_base("random-sd15")
    fresh = make_controlnet(base.load("unet"), vae_factor=8, latent_channels=4, seed=0).state_dict()
    assert max((ours[key] - fresh[key]).abs().max() for key in ours) > 1e-2
    assert max((ours[key] - theirs[key]).abs().max() for key in ours) < 1e-6
    assert (tmp_path / "two" / "samples" / "step-000020.png").exists()


def test_a_run_needs_neither_base_nor_config(tmp_path, monkeypatch):
    """With the base and by the config that come with the package, on fewer scenes and cut short; the whole of it is in
    test_control_is_acquired.py."""
    short = ["data.path=rooms:64", "steps=2", "batch_size=4", "checkpoint_every=2", "watch.rows=2"]
    short += ["samples.every=2", "samples.steps=2", "samples.count=1"]
    monkeypatch.chdir(tmp_path)
    assert main(["train", *short, "-q"]) == 0
    folder = tmp_path / "runs" / "toybox-canny"
    ControlNetModel.from_pretrained(folder / "controlnet")
    config = build(TrainConfig, folder / "config.yaml")
    assert config == build(TrainConfig, shipped_configs()["toybox-canny"], short)
    assert config.base == "toybox"
    assert len(steps_of(folder)) == config.steps
    assert (folder / "samples" / f"step-{config.steps:06d}.png").exists()


def test_dry_run_prints_the_resolved_config_and_trains_nothing(dataset, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", f"data.path={dataset}", f"output={output}", "lr=2e-5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(printed)
    given = [f"data.path={dataset}", f"output={output}", "lr=2e-5"]
    assert build(TrainConfig, tmp_path / "c.yaml") == build(TrainConfig, shipped_configs()["toybox-canny"], given)
    assert not output.exists()
    assert main(["train", f"data.path={dataset}", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 24


# Bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["lrr=1"], "unknown setting 'lrr': did you mean 'lr'?"),
        (["lr=high"], "lr=high: expected a number"),
        (
            ["base=random-sd15", "data.resolution=70"],
            "data.resolution=70 is not a multiple of 8 (this base's VAE divides by it); use 64 or 72",
        ),
        (["base=random-sd15-9ch"], "is an inpainting base"),
        (["samples.every=1", "samples.steps=2000"], "2000 steps: the schedule of this base has 1000"),
        (["data.condition=cany"], "no cany maps: did you mean 'canny'? known: canny; make them: controlkit annotate"),
        (["data.path=circels"], "no such folder, and no world of that name: did you mean 'circles'?"),
        (["data.path=/nowhere"], "there is no such folder"),
        (["base=nothing"], "base 'nothing': no such folder"),
        (["--config", "circels"], "neither a file nor a config of ours: did you mean 'circles'?"),
        (["output=/proc/x"], "output '/proc/x' cannot be written"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(dataset, tmp_path, capsys, settings, words):
    assert main(["train", f"data.path={dataset}", f"output={tmp_path / 'run'}", *settings]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_maps_are_answered_with_the_command(pictures, capsys):
    assert main(["train", f"data.path={pictures}"]) == 2
    assert f"make them: controlkit annotate --type canny {pictures}" in capsys.readouterr().err


def test_a_map_that_went_missing_is_named(dataset, tmp_path, capsys):
    shutil.copytree(dataset, tmp_path / "d")
    (tmp_path / "d/conditions/canny/003.png.png").unlink()
    assert main(["train", f"data.path={tmp_path / 'd'}", f"output={tmp_path / 'run'}"]) == 2
    assert "conditions/canny/003.png.png: named in metadata.jsonl but missing" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_written_into(trained, dataset, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    train(dataset, trained, code=2)
    assert "is not empty; pass --resume to go on with it, or choose another output=" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_another_run_is_not_resumed(trained, dataset, capsys):
    train(dataset, trained, "--resume", "seed=7", code=2)
    assert "was begun with seed=0 there, 7 now; change it back" in capsys.readouterr().err


def test_a_base_is_a_folder_like_any_other(dataset, tmp_path):
    """What a name resolves to can be given as a path: nothing asks for the name."""
    train(dataset, tmp_path / "named", "steps=1")
    train(dataset, tmp_path / "path", "steps=1", f"base={find_base('random-sd15').folder}")
    assert metrics(tmp_path / "named") == metrics(tmp_path / "path")
    assert Path(tmp_path / "path" / "controlnet").is_dir()
