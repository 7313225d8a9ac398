"""`controlkit pack`: half the bytes, the same pictures within the rounding of halves."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from safetensors import safe_open

from controlkit.cli.main import main
from controlkit.models.bases import find_base
from controlkit.training.base_further import widen
from tests.painting import strong_net


def test_a_packed_base_is_half_as_large_and_loads_as_it_is(tmp_path):
    source = find_base("random-sd15").folder
    assert main(["pack", str(source), str(tmp_path / "packed")]) == 0
    whole, packed = (
        {file.relative_to(folder): file for folder in (root,) for file in folder.rglob("*.safetensors")}
        for root in (source, tmp_path / "packed")
    )
    assert set(whole) == set(packed)
    for name, file in packed.items():
        assert file.stat().st_size < 0.55 * whole[name].stat().st_size
        with safe_open(file, "pt") as tensors, safe_open(whole[name], "pt") as before:
            for key in tensors.keys():  # noqa: SIM118  (no mapping)
                value = tensors.get_tensor(key)
                assert value.dtype == (torch.float16 if value.is_floating_point() else before.get_tensor(key).dtype)

    # Plainly, as anybody would load it: all in float32.
    pipelines = [StableDiffusionPipeline.from_pretrained(each) for each in (source, tmp_path / "packed")]
    for part in ("unet", "vae", "text_encoder"):
        assert {value.dtype for value in getattr(pipelines[1], part).parameters()} == {torch.float32}
    made = []
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        made.append(pipeline("a", num_inference_steps=2, generator=generator, output_type="np").images[0])
    assert np.abs(made[0] - made[1]).mean() < 0.02


def test_what_cannot_be_packed(tmp_path, capsys):
    assert main(["pack", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "model_index.json is missing" in capsys.readouterr().err
    source = find_base("random-sd15").folder
    assert main(["pack", str(source), str(tmp_path)]) == 2
    assert "exists; choose another folder" in capsys.readouterr().err
    assert main(["pack", str(find_base("random-sdxl").folder), str(tmp_path / "out")]) == 2
    assert "expected a StableDiffusionPipeline" in capsys.readouterr().err


def test_where_the_source_lay_is_not_told(tmp_path):
    source = tmp_path / "secret-place"
    shutil.copytree(find_base("random-sd15").folder, source)
    main(["pack", str(source), str(tmp_path / "packed"), "-q"])
    texts = [path.read_text(encoding="utf-8") for path in (tmp_path / "packed").rglob("*.json")]
    assert len(texts) > 5
    assert not any("secret-place" in text for text in texts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_packed_base_loads_in_the_precision_asked_for(tmp_path, dtype):
    main(["pack", str(find_base("random-sd15").folder), str(tmp_path / "packed"), "-q"])
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "packed", torch_dtype=dtype)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {dtype}


def test_a_base_made_of_another_one_is_its_unet_alone(tmp_path, capsys):
    """What it left out is that of the other base, whatever asks for it."""
    base = find_base("random-sd15")
    parts = {name: base.load(name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    widen(parts["unet"], 9)
    extra = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionInpaintPipeline(**parts, **extra).save_pretrained(tmp_path / "wide")
    assert main(["pack", str(tmp_path / "wide"), str(tmp_path / "packed"), "--beside", "random-sd15"]) == 0
    assert sorted(path.name for path in (tmp_path / "packed").iterdir()) == [
        *("controlkit.json", "model_index.json", "scheduler", "unet")
    ]
    packed = find_base(str(tmp_path / "packed"))
    assert (packed.inpaints, packed.vae_factor, packed.latent_channels) == (True, base.vae_factor, 4)
    assert packed.load("tokenizer")("a ball") == base.load("tokenizer")("a ball")
    for name in ("vae", "text_encoder"):
        before = base.load(name).state_dict()
        assert all(torch.equal(value, before[key]) for key, value in packed.load(name).state_dict().items())
    assert packed.load("unet").config.in_channels == 9
    assert main(["pack", str(tmp_path / "wide"), str(tmp_path / "other"), "--beside", "random-sdxl"]) == 2
    assert "its vae is another one" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_controlnet_packed_with_a_weight_does_at_1_what_it_did_at_that(tmp_path, capsys):
    strong_net("random-sd15", tmp_path / "net")
    assert main(["pack", str(tmp_path / "net"), str(tmp_path / "packed"), "--weight", "1.5"]) == 0
    before, packed = (ControlNetModel.from_pretrained(tmp_path / name).eval() for name in ("net", "packed"))
    asked = {
        "sample": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "timestep": 500,
        "encoder_hidden_states": torch.zeros(1, 77, before.config.cross_attention_dim),
        "controlnet_cond": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)),
    }
    with torch.no_grad():
        wanted, got = before(**asked, conditioning_scale=1.5), packed(**asked)
    assert wanted.mid_block_res_sample.abs().max() > 0.01
    for one, other in zip(wanted.down_block_res_samples, got.down_block_res_samples, strict=True):
        torch.testing.assert_close(one, other, rtol=0.01, atol=0.01 * float(one.abs().max()))  # rounding of halves
    assert main(["pack", str(find_base("random-sd15").folder), str(tmp_path / "out"), "--weight", "2"]) == 2
    assert "is no ControlNet" in capsys.readouterr().err
