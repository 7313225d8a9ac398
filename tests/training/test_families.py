"""Families, and where a run begins: SD 1.x, 2.x, SDXL; from nothing or from another ControlNet; configs for them."""

import re

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionXLPipeline

from controlkit.cli.main import main
from controlkit.config import build, shipped_configs
from controlkit.models.bases import find_base
from controlkit.models.controlnets import begin_controlnet, make_controlnet, save_controlnet
from controlkit.training.config import TrainConfig
from controlkit.training.forecast import forecast
from controlkit.training.objective import encode_texts
from tests.training.test_objective import set_up
from tests.training.test_train import metrics, train, weights
from tests.true_shapes import TRUE_SHAPES, true_shape

FOR_REAL_BASES = [name for name in shipped_configs() if name.partition("-")[0] in TRUE_SHAPES]


# From another ControlNet


def test_a_run_goes_on_from_another_controlnet(dataset, trained, tmp_path):
    """A step too small to move anything leaves the net that was named, and not a fresh one."""
    train(dataset, tmp_path / "run", f"controlnet={trained / 'controlnet'}", "steps=1", "lr=1e-12")
    before, after = weights(trained), weights(tmp_path / "run")
    assert all(torch.allclose(after[key], value, atol=1e-9) for key, value in before.items())
    assert after["controlnet_mid_block.weight"].abs().max() > 0


def test_through_the_middle_alone_it_forgets_the_skips_of_the_other(dataset, trained, tmp_path):
    assert any(value.any() for key, value in weights(trained).items() if key.startswith("controlnet_down_blocks."))
    train(dataset, tmp_path / "run", f"controlnet={trained / 'controlnet'}", "steps=1", "only_mid_control=true")
    after = weights(tmp_path / "run")
    assert not any(value.any() for key, value in after.items() if key.startswith("controlnet_down_blocks."))


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_controlnet_of_another_family_is_refused_naming_both(dataset, trained, tmp_path, capsys, dry):
    train(dataset, tmp_path / "run", f"controlnet={trained / 'controlnet'}", "base=random-sdxl", *dry, code=2)
    said = capsys.readouterr().err
    assert re.search(r"was made for Stable Diffusion .*, base 'random-sdxl' is SDXL .*; choose a base of", said)
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_no_controlnet_is_refused(dataset, tmp_path, capsys):
    train(dataset, tmp_path / "run", "controlnet=nothing", code=2)
    assert "controlnet=nothing: ControlNet 'nothing': no such folder" in capsys.readouterr().err


def test_a_controlnet_that_reads_other_channels_is_refused(dataset, trained, tmp_path, capsys):
    net = ControlNetModel.from_config(
        {**ControlNetModel.load_config(trained / "controlnet"), "conditioning_channels": 1}
    )
    save_controlnet(net, tmp_path / "net", {})
    train(dataset, tmp_path / "run", f"controlnet={tmp_path / 'net'}", code=2)
    assert "reads maps of 1 channels; expected one that reads 3" in capsys.readouterr().err


def test_what_is_saved_in_half_learns_in_float32(trained, tmp_path):
    ControlNetModel.from_pretrained(trained / "controlnet", torch_dtype=torch.float16).save_pretrained(
        tmp_path / "half"
    )
    net = begin_controlnet(find_base("random-sd15"), None, str(tmp_path / "half"), seed=0)
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}


# SDXL


def test_sdxl_is_told_the_sizes_as_its_pipeline_tells_them(dataset):
    models, _, batch = set_up("random-sdxl", dataset)
    batch.sizes[:] = torch.tensor([96, 128, 3, 5, 64, 72])
    pipeline: StableDiffusionXLPipeline = models.pipeline
    pooled = models.base.load("text_encoder_2").config.projection_dim
    told = pipeline._get_add_time_ids((96, 128), (3, 5), (64, 72), torch.float32, pooled)
    given = encode_texts(models, batch)["added_cond_kwargs"]["time_ids"]
    assert torch.equal(given.float(), told.expand(8, -1))


@pytest.mark.slow
def test_sdxl_trains_in_bfloat16(dataset, tmp_path):
    train(dataset, tmp_path / "run", "base=random-sdxl", "mixed_precision=bf16", "steps=2")
    train(dataset, tmp_path / "exact", "base=random-sdxl", "steps=2")
    low, exact = (float(re.findall(r'"loss": ([\d.]+)', metrics(tmp_path / name))[0]) for name in ("run", "exact"))
    assert low == pytest.approx(exact, rel=0.02)


# Configs for real bases


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    return {name: true_shape(name, folder / name) for name in TRUE_SHAPES}


PUBLISHED = {
    "sd15": {"cross_attention_dim": 768},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        **{"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")},
        **{"block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10)},
        **{"attention_head_dim": (5, 10, 20), "use_linear_projection": True, "cross_attention_dim": 2048},
        **{"addition_embed_type": "text_time", "addition_time_embed_dim": 256},
        **{"projection_class_embeddings_input_dim": 2816},
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_at_true_shapes_the_controlnet_has_the_published_architecture(shapes, name):
    """On the meta device: key for key the ControlNetModel that diffusers builds from the published settings."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(shapes[name].unet)
        ours = make_controlnet(unet, vae_factor=shapes[name].vae_factor, latent_channels=4, seed=0).state_dict()
        theirs = ControlNetModel(**PUBLISHED[name]).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", FOR_REAL_BASES)
def test_a_config_holds_what_its_first_lines_say(shapes, name):
    config, text = build(TrainConfig, shipped_configs()[name]), shipped_configs()[name].read_text()
    gpu, holds = (float(number) for number in re.search(r"GPU of (\d+) GB; a step holds ([\d.]+) GB", text).groups())
    expected = forecast(config, shapes[name.partition("-")[0]]).total / 1e9
    assert expected == pytest.approx(holds, abs=0.06)
    assert expected < gpu - 1
    assert f"controlkit annotate --type {','.join(config.data.condition)} data" in text
    assert "not measured" in text


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    assert main(["toybox", "make", str(folder), "--world", "rooms", "--count", "6", "--size", "64", "-q"]) == 0
    assert main(["annotate", "--type", "canny", str(folder), "-q"]) == 0
    return folder


# Those of one layout differ in the type of their maps.
ALIKE = ("sd15-depth", "sd15-pose")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in FOR_REAL_BASES]
)
def test_a_config_runs_on_a_small_model_of_the_same_layout(scenes, tmp_path, name):
    small = [f"base=random-{name.partition('-')[0]}", "batch_size=2", "gradient_accumulation=1", "data.workers=0"]
    short = ["steps=1", "watch.every=0", "samples.every=1", "samples.steps=1", "samples.count=1"]
    paths = [f"data.path={scenes}", f"output={tmp_path / 'run'}"]
    assert main(["train", "--config", name, *small, *short, *paths, "-q"]) == 0
    ControlNetModel.from_pretrained(tmp_path / "run" / "controlnet")
