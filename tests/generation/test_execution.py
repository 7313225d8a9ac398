"""How a picture is computed: in tiles, with networks that wait elsewhere, in low precision, or not at all for want of
memory."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image

from annotators.canny import Canny
from controlkit.cli.main import main
from controlkit.generation.execution import OFFLOADS, Execution, set_tiling
from controlkit.generation.limits import is_out_of_memory, what_to_lower
from controlkit.generation.settings import read_settings
from controlkit.generation.silent import silenced
from controlkit.models.bases import find_base
from tests.conftest import draw_photo
from tests.painting import strong_net

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    return {base: strong_net(base, folder / base) for base in ("random-sd15", "random-sdxl")}


@pytest.fixture
def generate(nets, tmp_path):
    """The command over a map of twice the base's size; answers with its exit code."""
    edge = tmp_path / "edge.png"
    Image.fromarray(Canny()(draw_photo(0, 128, 96))).save(edge)

    def run(*arguments, base="random-sd15", out="o.png"):
        common = ["--base", base, "--controlnet", nets[base], "--control", edge, "--size", "128x96", "--seed", 1]
        where = ["--steps", 2, "--quiet", "--out", tmp_path / out]
        return main(["generate", *map(str, [*common, *where, *arguments])])

    return run


def pixels(path):
    return np.asarray(Image.open(path))


def diffusers_pipeline(folder, controlnet=None):
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        find_base("random-sd15").folder,
        controlnet=controlnet or ControlNetModel.from_pretrained(folder),
        safety_checker=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# Tiles


def test_in_tiles_the_picture_is_what_diffusers_decodes_in_tiles(generate, nets, tmp_path):
    assert generate("--vae-tiling", "--sampler", "ddim", out="tiled.png") == 0
    assert generate("--sampler", "ddim", out="whole.png") == 0
    pipeline = diffusers_pipeline(nets["random-sd15"])
    pipeline.vae.enable_tiling()
    expected = pipeline(
        "",
        image=Image.open(tmp_path / "edge.png").convert("RGB"),
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    tiled, whole = pixels(tmp_path / "tiled.png"), pixels(tmp_path / "whole.png")
    assert np.array_equal(tiled, np.asarray(expected))
    difference = np.abs(tiled.astype(int) - whole).mean()
    assert 0 < difference < np.abs(whole.astype(int) - whole.mean()).mean()
    assert [read_settings(tmp_path / name)["vae_tiling"] for name in ("tiled.png", "whole.png")] == [True, False]


def test_large_pictures_are_tiled_by_themselves_and_that_is_said():
    said = []
    assert Execution().tiles((2048, 1024), said.append)
    assert said == ["2048x1024 is decoded in tiles, to save memory; --no-vae-tiling decodes it whole"]
    assert not Execution().tiles((2040, 1024), said.append)
    assert not Execution(vae_tiling=False).tiles((4096, 4096), said.append)
    assert Execution(vae_tiling=True).tiles((64, 64), said.append)
    assert len(said) == 1


@torch.no_grad()
def test_tiled_pictures_are_decoded_one_at_a_time(nets):
    pipeline = diffusers_pipeline(nets["random-sd15"])
    set_tiling(pipeline.vae, True)
    batches = []
    pipeline.vae.post_quant_conv.register_forward_hook(lambda layer, inputs, output: batches.append(len(inputs[0])))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = pipeline.vae.decode(latents).sample
    assert batches == [1, 1]
    torch.testing.assert_close(both[1:], pipeline.vae.decode(latents[1:]).sample)


# Networks that wait elsewhere


@pytest.mark.parametrize("kind", OFFLOADS)
def test_offloading_without_a_gpu_is_refused(generate, tmp_path, capsys, kind):
    assert generate("--offload", kind, "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert f"--offload {kind} keeps networks off the GPU while they wait, and here they compute on the CPU" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.png").exists()


def test_networks_that_come_and_go_paint_the_same(nets):
    """The machinery also moves from CPU to CPU; our ControlNets have to live with its hooks. Within rounding: moved
    weights are aligned otherwise."""

    def paint(**execution):
        net = silenced([ControlNetModel.from_pretrained(nets["random-sd15"])])
        pipeline = diffusers_pipeline(None, net)
        Execution(**execution).apply(pipeline, CPU, say=print)
        image = Image.fromarray(Canny()(draw_photo(0, 64, 64)))
        how = {"num_inference_steps": 3, "control_guidance_end": 0.7, "output_type": "latent"}
        return pipeline("", image=image, generator=torch.Generator().manual_seed(0), **how).images, pipeline

    expected, _ = paint()
    got, pipeline = paint(offload="model")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert all(hasattr(part, "_hf_hook") for part in (pipeline.unet, pipeline.vae, pipeline.controlnet))


def test_layers_that_come_and_go_are_hooked_one_by_one(nets):
    """What they paint, only a machine with two memories can tell."""
    net = silenced([ControlNetModel.from_pretrained(nets["random-sd15"])])
    pipeline = diffusers_pipeline(None, net)
    Execution(offload="sequential").apply(pipeline, CPU, say=print)
    assert {parameter.device.type for parameter in pipeline.unet.parameters()} == {"meta"}
    assert net.conv_in._hf_hook.offload


@pytest.mark.gpu
@pytest.mark.parametrize("kind", OFFLOADS)
def test_offloading_paints_the_same_and_leaves_the_gpu_empty(generate, tmp_path, kind):
    assert generate("--device", "cuda", "--dtype", "float32", out="there.png") == 0
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    assert generate("--device", "cuda", "--dtype", "float32", "--offload", kind, out="away.png") == 0
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before
    there, away = pixels(tmp_path / "there.png").astype(int), pixels(tmp_path / "away.png").astype(int)
    assert np.abs(there - away).max() <= 1


# Low precision


@pytest.mark.parametrize(
    ("base", "dtype", "decoded_in"),
    [
        ("random-sdxl", "float16", torch.float32),  # its VAE overflows in float16, says its config
        ("random-sdxl", "bfloat16", torch.bfloat16),
        ("random-sd15", "float16", torch.float16),
    ],
)
def test_the_vae_decodes_in_the_precision_that_it_can_stand(generate, tmp_path, monkeypatch, base, dtype, decoded_in):
    seen = []
    decode = AutoencoderKL.decode

    def watched(self, z, *arguments, **options):
        seen.append((z.dtype, self.dtype))
        return decode(self, z, *arguments, **options)

    monkeypatch.setattr(AutoencoderKL, "decode", watched)
    assert find_base("random-sdxl").vae["force_upcast"]
    assert generate("--dtype", dtype, "--device", "cpu", base=base) == 0
    assert seen == [(decoded_in, decoded_in)]
    assert read_settings(tmp_path / "o.png")["dtype"] == dtype


# No memory


def test_out_of_memory_is_one_line_that_says_what_to_lower(generate, tmp_path, capsys, monkeypatch):
    def too_much(*arguments, **options):
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(AutoencoderKL, "decode", too_much)
    assert generate("--device", "cpu") == 2
    said = capsys.readouterr().err
    expected = "error: out of memory on cpu in float32; try a smaller --size, --dtype bfloat16, --vae-tiling\n"
    assert said == expected
    assert not (tmp_path / "o.png").exists()


def test_only_what_is_not_done_yet_is_advised():
    assert what_to_lower(CUDA, torch.float32, None) == (
        "out of memory on cuda in float32; try a smaller --size, --dtype float16, --vae-tiling, --offload model"
    )
    assert "try a smaller SCALE of --upscale, --dtype" in what_to_lower(CUDA, torch.float32, None, upscaled=True)
    done = Execution(vae_tiling=True, offload="model")
    assert what_to_lower(CUDA, torch.float16, done).endswith("try a smaller --size, --offload sequential")
    assert what_to_lower(CUDA, torch.float16, Execution(vae_tiling=True, offload="sequential")).endswith("--size")


def test_what_is_out_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_other_errors_stay_what_they_are(generate, capsys, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(AutoencoderKL, "decode", broken)
    assert generate("--device", "cpu") == 1
    assert "RuntimeError: a bug" in capsys.readouterr().err
