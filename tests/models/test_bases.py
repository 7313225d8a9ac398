"""Bases: found by name or folder, read without loading a weight, true to the layout of their family."""

import json
import shutil

import pytest
import torch
import torch.testing._internal.distributed.fake_pg
from diffusers import DiffusionPipeline

from controlkit.errors import RequestError
from controlkit.files import sha256
from controlkit.models.bases import find_base
from controlkit.models.devices import choose_device
from controlkit.models.random_base import RANDOM_BASES, build_random_base


@pytest.mark.parametrize("name", RANDOM_BASES)
def test_a_random_base_is_a_pipeline_of_diffusers(name):
    base = find_base(name)
    options = {} if base.is_xl else {"safety_checker": None}
    pipeline = DiffusionPipeline.from_pretrained(base.folder, local_files_only=True, **options)
    assert type(pipeline).__name__ == base.index["_class_name"]
    assert pipeline.vae_scale_factor == base.vae_factor == 8
    assert base.inpaints == (name == "random-sd15-9ch")


@pytest.mark.parametrize("name", RANDOM_BASES)
def test_every_component_is_loaded_by_the_class_the_base_names(name):
    base = find_base(name)
    components = [key for key, value in base.index.items() if isinstance(value, list) and value[0]]
    for component in components:
        assert type(base.load(component)).__name__ == base.index[component][1]


def test_a_random_base_is_the_same_everywhere(tmp_path):
    build_random_base("random-sd15", tmp_path / "again")
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert sha256(tmp_path / "again" / unet) == sha256(find_base("random-sd15").folder / unet)


def test_any_of_several_processes_builds_all_of_it(tmp_path):
    """transformers saves in the first alone, and whoever comes first into the cache has built it for all."""
    store = torch.testing._internal.distributed.fake_pg.FakeStore()
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=store)
    try:
        build_random_base("random-sdxl", tmp_path / "second")
    finally:
        torch.distributed.destroy_process_group()
    ours, first = ({path.relative_to(folder): sha256(path) for path in folder.rglob("*.safetensors")}
                   for folder in (tmp_path / "second", find_base("random-sdxl").folder))  # fmt: skip
    assert len(ours) == 4
    assert ours == first


def test_building_one_does_not_touch_the_random_state(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_random_base("random-sdxl", tmp_path / "x")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_the_vae_factor_comes_from_the_config(tmp_path, factor):
    build_random_base("random-sd15", tmp_path / "b", vae_factor=factor)
    base = find_base(str(tmp_path / "b"))
    assert base.vae_factor == factor
    assert base.native_size == 64
    latents = base.load("vae").encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean
    assert latents.shape == (1, 4, 64 // factor, 64 // factor)


@pytest.mark.parametrize(
    ("name", "family", "prediction"),
    [("random-sd15", "Stable Diffusion", "epsilon"), ("random-sd21", "Stable Diffusion", "v_prediction"),
     ("random-sdxl", "SDXL", "epsilon")],
)  # fmt: skip
def test_family_and_prediction_are_read_from_the_configs(name, family, prediction):
    base = find_base(name)
    assert base.family.startswith(family)
    assert base.prediction_type == prediction


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random-sd51", "no name of ours: did you mean 'random-sd"),
        ("/nowhere/at/all", "no such folder"),
        ("some/repository", "the hub did not give it"),
    ],
)
def test_an_unknown_base_is_refused_in_one_line(name, words):
    with pytest.raises(RequestError, match=words) as reason:
        find_base(name)
    assert "\n" not in str(reason.value)


def test_a_folder_that_is_no_base_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"has no model_index\.json"):
        find_base(str(tmp_path))
    (tmp_path / "a.ckpt").write_bytes(b"x")
    with pytest.raises(RequestError, match="is no model file"):
        find_base(str(tmp_path / "a.ckpt"))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(RequestError, match="is not JSON"):
        find_base(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(RequestError, match="is a FluxPipeline; expected StableDiffusionPipeline"):
        find_base(str(tmp_path))


def test_an_incomplete_copy_is_refused(tmp_path):
    shutil.copytree(find_base("random-sd15").folder, tmp_path / "b")
    (tmp_path / "b" / "unet" / "config.json").unlink()
    with pytest.raises(RequestError, match="no whole copy of a model"):
        _ = find_base(str(tmp_path / "b")).family


def test_an_unknown_device_is_refused():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(RequestError, match="device 'abacus' cannot be used"):
        choose_device("abacus")
