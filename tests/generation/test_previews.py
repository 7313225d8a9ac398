"""Previews show x_0 as predicted, decoded by the VAE or by a tiny one, and leave the picture as it is."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler
from PIL import Image
from safetensors.torch import save_file

from annotators.canny import Canny
from controlkit.cli.main import main
from controlkit.diffusion.samplers import make_sampler
from controlkit.generation.previews import Previews, predicted_x0
from controlkit.models.bases import find_base
from tests.conftest import draw_photo
from tests.painting import strong_net

CONFIG = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
          "clip_sample": False}  # fmt: skip


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "euler_karras", "euler_a", "lms_karras", "heun"])
def test_x0_is_what_the_sampler_itself_makes_of_the_prediction(sampler, prediction):
    scheduler = make_sampler(sampler, {**CONFIG, "prediction_type": prediction}, steps=6)
    scheduler.set_timesteps(6)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 4, 4, generator=random) * scheduler.init_noise_sigma
    for number, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        output = torch.randn(x.shape, generator=random)
        seen = predicted_x0(scheduler, output, t, x)
        if sampler == "heun":  # keeps its x_0 to itself; its first call of a step is Euler's
            sigma = scheduler.sigmas[scheduler.step_index]
            a = 1 / (sigma**2 + 1)
            expected = x - sigma * output if prediction == "epsilon" else a * x - sigma * a**0.5 * output
            x = scheduler.step(output, t, x).prev_sample
            if number % 2:
                continue
        else:
            done = scheduler.step(output, t, x)
            expected, x = done.pred_original_sample, done.prev_sample
        torch.testing.assert_close(seen, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc", "dpmpp_2s"])
def test_x0_is_what_solvers_convert_the_prediction_to(sampler):
    """Theirs begins at a time that they round, and ours follows the network, which was told the rounded one."""
    scheduler = make_sampler(sampler, {**CONFIG, "prediction_type": "epsilon"}, steps=6)
    scheduler.set_timesteps(6)
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        output = 0.3 * x
        seen = predicted_x0(scheduler, output, t, x)
        x = scheduler.step(output, t, x).prev_sample
        stored = scheduler.model_outputs[-1]
        torch.testing.assert_close(seen, stored, rtol=0.02, atol=0.02)


# The command


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return strong_net("random-sd15", tmp_path_factory.mktemp("nets") / "net")


@pytest.fixture
def generate(net, tmp_path):
    edge = tmp_path / "edge.png"
    Image.fromarray(Canny()(draw_photo(0, 64, 64))).save(edge)

    def run(*arguments, sampler="ddim", out="o.png"):
        common = ["--base", "random-sd15", "--controlnet", net, "--control", edge, "--seed", 1, "--steps", 4]
        where = ["--sampler", sampler, "--quiet", "--out", tmp_path / out]
        return main(["generate", *map(str, [*common, *where, *arguments])])

    return run


def pixels(path):
    return np.asarray(Image.open(path))


def names(folder):
    return {path.name for path in folder.glob("*.png")} - {"edge.png"}


@pytest.fixture
def expected_x0(monkeypatch):
    """What DDIM says of x_0 at each step."""
    seen = []
    step = DDIMScheduler.step

    def watched(self, model_output, timestep, sample, *rest, return_dict=True, **options):
        done = step(self, model_output, timestep, sample, *rest, return_dict=True, **options)
        seen.append(done.pred_original_sample)
        return done if return_dict else (done.prev_sample,)

    monkeypatch.setattr(DDIMScheduler, "step", watched)
    return seen


@torch.no_grad()
def test_previews_lie_beside_the_picture_and_leave_it_alone(generate, tmp_path, expected_x0):
    assert generate("--previews", 1) == 0
    x_0 = list(expected_x0)
    assert names(tmp_path) == {"o.png", "o.step-1.png", "o.step-2.png", "o.step-3.png"}
    assert generate(out="plain.png") == 0
    assert np.array_equal(pixels(tmp_path / "o.png"), pixels(tmp_path / "plain.png"))
    vae = find_base("random-sd15").load("vae")
    for number in (1, 2, 3):
        decoded = vae.decode(x_0[number - 1] / vae.config.scaling_factor).sample[0]
        by_hand = ((decoded.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
        assert np.abs(by_hand - pixels(tmp_path / f"o.step-{number}.png")).max() <= 1


def test_samplers_of_second_order_are_shown_once_a_step(generate, tmp_path):
    assert generate("--previews", 2, "--num", 2, sampler="heun", out="many") == 0
    assert {name for name in names(tmp_path / "many") if "step" in name} == {
        "000001_seed1.step-2.png",
        "000002_seed2.step-2.png",
    }


@torch.no_grad()
def test_a_tiny_vae_decodes_previews_in_every_form(generate, tmp_path, expected_x0):
    torch.manual_seed(0)
    tiny = AutoencoderTiny().eval()
    tiny.save_pretrained(tmp_path / "taesd")
    save_file(tiny.state_dict(), tmp_path / "tiny.safetensors")
    own = {}  # the decoder's file of TAESD: a chain whose first link has no weights
    for name, value in tiny.decoder.state_dict().items():
        _, number, rest = name.split(".", 2)
        own[f"{int(number) + 1}.{rest}"] = value
    save_file(own, tmp_path / "taesd_decoder.safetensors")
    for form in ("taesd", "tiny.safetensors", "taesd_decoder.safetensors"):
        assert generate("--previews", 3, "--preview-vae", tmp_path / form, out=f"{form}.png") == 0
        decoded = tiny.decode(expected_x0[2]).sample[0]
        by_hand = ((decoded.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
        assert np.abs(by_hand - pixels(tmp_path / f"{form}.step-3.png")).max() <= 1


def test_a_vae_that_overflows_in_float16_decodes_previews_in_float32():
    vae = find_base("random-sdxl").load("vae", torch_dtype=torch.float16)
    assert isinstance(vae, AutoencoderKL)
    seen = []
    vae.post_quant_conv.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    scheduler = DDIMScheduler()
    previews = Previews(SimpleNamespace(vae=vae, scheduler=scheduler), every=1, steps=2)
    scheduler.set_timesteps(2)
    noise = torch.randn(2, 4, 8, 8).half()
    scheduler.step(noise, scheduler.timesteps[0], noise)
    assert seen == [torch.float32]
    assert vae.dtype == torch.float16
    assert [list(each) for each in previews.take()] == [["step-1"], ["step-1"]]  # of each picture of the batch
    assert previews.take() == [{}]


# Bad input


def tiny_of(folder, **options):
    AutoencoderTiny(**options).save_pretrained(folder)


def foreign(folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (None, ["--previews", -1], "--previews -1: expected 1 to 3"),
        (None, ["--previews", 4], "--previews 4: expected 1 to 3, so that one falls before the last of 4 steps"),
        (None, ["--preview-vae", "{vae}"], "--preview-vae decodes previews, and none are asked for; add --previews N"),
        (None, ["--previews", 1, "--preview-vae", "{vae}"], "no such file or folder"),
        (foreign, ["--previews", 1, "--preview-vae", "{vae}"], "is of a AutoencoderKL, expected an AutoencoderTiny"),
        (
            lambda path: tiny_of(path, latent_channels=16),
            ["--previews", 1, "--preview-vae", "{vae}"],
            "reads latents of 16 channels and enlarges them by 8, base 'random-sd15' has 4 and 8",
        ),
        (
            lambda path: save_file({"weight": torch.zeros(2)}, path),
            ["--previews", 1, "--preview-vae", "{vae}"],
            "tensors of a DecoderTiny, e.g. 'layers.0.bias'",
        ),
    ],
)
def test_wrong_requests_are_one_line_and_leave_nothing(generate, tmp_path, capsys, make, arguments, words):
    path = tmp_path / "vae"
    if make:
        make(path)
    assert generate(*[str(each).format(vae=path) for each in arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert names(tmp_path) == set()
