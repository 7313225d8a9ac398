"""What learns: the ControlNet, all or through the middle alone; the base's decoder; moving averages of both."""

import shutil

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.training.loop import follow
from tests.forked import run_two
from tests.training.test_train import SETTINGS, metrics, steps_of, train, weights

DECODER = ("up_blocks.", "conv_norm_out.", "conv_out.")


def tensors(folder):
    """Every tensor that was written, by file."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def the_base():
    return find_base("random-sd15").load("unet")


def fresh_controlnet(seed=0):
    return make_controlnet(the_base(), vae_factor=8, latent_channels=4, seed=seed)


def moved(state, before):
    return {key for key, value in state.items() if not torch.equal(value, before[key])}


# Averages


def test_averages_follow_what_learns_and_are_handed_over(dataset, tmp_path):
    train(dataset, tmp_path / "run", "ema=0.9", "steps=3", "checkpoint_every=1", "lr=1e-2")
    average = fresh_controlnet()
    for step in (1, 2, 3):
        folder = tmp_path / "run" / "checkpoints" / f"step-{step:06d}"
        learned = ControlNetModel.from_pretrained(folder / "controlnet")
        follow({"net": average}, {"net": learned}, 0.9, step)
        kept = ControlNetModel.from_pretrained(folder / "controlnet_ema").state_dict()
        assert not moved(average.state_dict(), kept)
        assert moved(kept, learned.state_dict())
    assert not moved(weights(tmp_path / "run"), average.state_dict())


def test_averaging_changes_nothing_of_the_training_but_what_is_shown(dataset, tmp_path):
    shown = ["samples.every=2", "samples.steps=2", "samples.count=1", "steps=2", "lr=1"]
    train(dataset, tmp_path / "plain", *shown)
    train(dataset, tmp_path / "averaged", *shown, "ema=0.999")
    assert steps_of(tmp_path / "plain") == steps_of(tmp_path / "averaged")
    grids = [(tmp_path / name / "samples" / "step-000002.png").read_bytes() for name in ("plain", "averaged")]
    assert grids[0] != grids[1]


# Through the middle alone


def test_control_through_the_middle_alone_leaves_the_skips_at_zero(dataset, tmp_path):
    train(dataset, tmp_path / "run", "only_mid_control=true")
    trained = weights(tmp_path / "run")
    changed = moved(trained, fresh_controlnet().state_dict())
    assert all((value == 0).all() for key, value in trained.items() if key.startswith("controlnet_down_blocks."))
    assert {"controlnet_mid_block.weight", "controlnet_cond_embedding.conv_in.weight", "conv_in.weight"} <= changed


# The decoder


def test_the_decoder_learns_where_it_is_unlocked_and_the_encoder_never(dataset, whole, tmp_path):
    train(dataset, tmp_path / "run", "decoder=true", "steps=1")
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "unet").state_dict()
    changed = moved(unet, the_base().state_dict())
    # Biases may stay: before a normalisation they have no gradient.
    assert not {key for key in changed if not key.startswith(DECODER)}
    assert changed >= {key for key in unet if key.startswith(DECODER) and key.endswith("weight")}
    assert not (whole / "unet").exists()


def test_the_decoder_is_sampled_from_and_used_as_the_card_says(dataset, tmp_path):
    shown = ["samples.every=2", "samples.steps=2", "samples.count=1", "steps=2"]
    train(dataset, tmp_path / "locked", *shown)
    train(dataset, tmp_path / "run", *shown, "decoder=true", "lr=1e-2")
    grids = [(tmp_path / name / "samples" / "step-000002.png").read_bytes() for name in ("locked", "run")]
    assert grids[0] != grids[1]
    assert 'unet=UNet2DConditionModel.from_pretrained("unet")' in (tmp_path / "run" / "README.md").read_text()
    StableDiffusionControlNetPipeline.from_pretrained(
        find_base("random-sd15").folder,
        unet=UNet2DConditionModel.from_pretrained(tmp_path / "run" / "unet"),
        controlnet=ControlNetModel.from_pretrained(tmp_path / "run" / "controlnet"),
        safety_checker=None,
    )


@pytest.mark.slow
def test_in_half_precision_the_decoder_learns_in_float32(dataset, tmp_path):
    """The locked encoder stays in the low precision; what is handed over is all of one."""
    train(dataset, tmp_path / "run", "decoder=true", "mixed_precision=bf16", "steps=1", "samples.every=1",
          "samples.steps=1", "samples.count=1", "ema=0.5")  # fmt: skip
    saved = load_file(tmp_path / "run" / "checkpoints/step-000001/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for key, value in saved.items() if key.startswith(DECODER)} == {torch.float32}
    assert {value.dtype for key, value in saved.items() if not key.startswith(DECODER)} == {torch.bfloat16}
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "unet")
    assert {value.dtype for value in unet.state_dict().values()} == {torch.float32}


# How it goes on


@pytest.mark.parametrize("precision", ["no", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_resumed_run_with_all_of_it_equals_an_unbroken_one(dataset, tmp_path, precision):
    settings = ["decoder=true", "ema=0.9", "only_mid_control=true", "control_dropout=0.5", "objective.timesteps=cubic",
                "objective.input_perturbation=0.1", f"mixed_precision={precision}"]  # fmt: skip
    train(dataset, tmp_path / "whole", *settings)
    train(dataset, tmp_path / "broken", *settings, "steps=3")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-000003")
    train(dataset, tmp_path / "broken", *settings, "--resume")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    whole = tensors(tmp_path / "whole")
    assert tensors(tmp_path / "broken") == whole
    names = {path.parent.name for path in whole}
    assert names >= {"controlnet", "controlnet_ema", "unet", "unet_ema", "step-000004"}


@pytest.mark.parametrize("change", ["decoder=true", "ema=0.9", "only_mid_control=true", "objective.loss=l1"])
def test_a_run_is_not_resumed_with_something_else_to_learn(dataset, whole, capsys, change):
    train(dataset, whole, "--resume", change, code=2)
    assert f"was begun with {change.partition('=')[0]}=" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_all_of_it_as_one_does(dataset, tmp_path):
    settings = ["decoder=true", "ema=0.9", "only_mid_control=true", "control_dropout=0.5", "objective.noise_offset=0.1"]
    train(dataset, tmp_path / "one", *settings, "batch_size=4")
    two = [f"data.path={dataset}", f"output={tmp_path / 'two'}", *SETTINGS, *settings, "batch_size=2"]
    done = run_two("train", *two)
    assert done.returncode == 0, done.stderr
    assert "4 a step" in done.stderr  # two processes with two rows each
    one, both = ([row["loss"] for row in steps_of(tmp_path / name)] for name in ("one", "two"))
    assert both == pytest.approx(one, rel=1e-5)
    ours, theirs = (
        UNet2DConditionModel.from_pretrained(tmp_path / name / "unet").state_dict() for name in ("one", "two")
    )
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in ours)
