"""Eta, CFG rescale, clip skip, control modes and the resize of maps: diffusers' own answer, or a closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from controlkit.cli.main import main
from controlkit.diffusion.guidance import guide
from controlkit.errors import RequestError
from controlkit.generation.controls import Map, fit_map
from controlkit.generation.modes import MODES, control_modes
from controlkit.generation.request import Control, parse_controls
from controlkit.models.bases import find_base
from controlkit.models.controlnets import find_controlnet
from tests.conftest import draw_photo
from tests.painting import edges_of, pixels, reference

SIZE = {"width": 48, "height": 32}
ASKED = ["--size", "48x32", "--prompt", "a red ball", "--seed", 1, "--steps", 2]
EXPECTED = {"prompt": "a red ball", "num_inference_steps": 2, "guidance_scale": 7.5}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "edge.png"
    Image.fromarray(edges_of(draw_photo(0, 48, 32))).save(path)
    return path


def generate(*arguments, code=0):
    assert main(["generate", "--quiet", *map(str, arguments)]) == code


def one():
    return torch.Generator().manual_seed(1)


def test_eta_is_the_samplers(tmp_path):
    generate("--base", "random-sd15", *ASKED, "--sampler", "ddim", "--eta", 0.7, "--out", tmp_path / "o.png")
    made = {}
    for eta in (0.0, 0.7):
        made[eta] = reference("random-sd15", scheduler=DDIMScheduler, options={}, eta=eta, generator=one(), **SIZE,
                              **EXPECTED)  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "o.png"), made[0.7])
    assert not np.array_equal(made[0.0], made[0.7])


def test_clip_skip_of_sdxl_is_diffusers_counted_as_webuis_do(tmp_path):
    """2 is diffusers' 1, and 1 is diffusers' None: the layer that the family reads."""
    generate("--base", "random-sdxl", *ASKED, "--clip-skip", 2, "--out", tmp_path / "o.png")
    made = [reference("random-sdxl", clip_skip=skip, generator=one(), **SIZE, **EXPECTED) for skip in (None, 1)]
    assert np.array_equal(pixels(tmp_path / "o.png"), made[1])
    assert not np.array_equal(*made)


@pytest.mark.parametrize("base", ["random-sd15", "random-sd21"])
def test_clip_skip_is_a_text_encoder_without_its_last_layer(base, tmp_path):
    """For the prompt; the negative prompt is read by the whole encoder."""
    generate("--base", base, *ASKED, "--clip-skip", 2, "--negative", "blurry", "--out", tmp_path / "o.png")
    found = find_base(base)
    shorter, tokenizer = found.load("text_encoder"), found.load("tokenizer")
    layers = next(module for name, module in shorter.named_modules() if name.endswith("encoder.layers"))
    del layers[-1]
    ids = tokenizer("a red ball", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        read = shorter(ids).last_hidden_state
    expected = {**EXPECTED, "prompt": None, "prompt_embeds": read, "negative_prompt": "blurry"}
    made = reference(base, generator=one(), **SIZE, **expected)
    assert np.array_equal(pixels(tmp_path / "o.png"), made)
    usual = reference(base, generator=one(), **SIZE, **EXPECTED, negative_prompt="blurry")
    assert not np.array_equal(made, usual)


def test_rescale_is_diffusers_own_where_it_has_it(tmp_path):
    generate("--base", "random-sdxl", *ASKED, "--cfg-rescale", 0.7, "--out", tmp_path / "o.png")
    made = [reference("random-sdxl", guidance_rescale=phi, generator=one(), **SIZE, **EXPECTED) for phi in (0.0, 0.7)]
    assert np.array_equal(pixels(tmp_path / "o.png"), made[1])
    assert not np.array_equal(*made)


def test_rescale_under_a_control_is_that_of_the_formula(nets, small, tmp_path):
    """At weight 0 the ControlNet adds nothing, so the picture is that of the pipeline that rescales by itself."""
    common = ["--base", "random-sd15", "--controlnet", nets["random-sd15"], *ASKED]
    for phi in (0, 0.7):
        generate(*common, "--control", f"{small}@0", "--cfg-rescale", phi, "--out", tmp_path / f"{phi}.png")
    plain = reference("random-sd15", guidance_rescale=0.7, generator=one(), **SIZE, **EXPECTED)
    assert np.abs(pixels(tmp_path / "0.7.png").astype(int) - plain).max() <= 1
    assert np.abs(pixels(tmp_path / "0.png").astype(int) - plain).max() > 1


def test_rescaling_leaves_no_hook_behind(nets):
    from controlkit.generation.rescale import rescaled_guidance

    unet = find_base("random-sd15").load("unet")
    sample, text = torch.randn(2, 4, 4, 6, generator=one()), torch.randn(2, 7, 32, generator=one())
    with torch.no_grad():
        before = unet(sample, 5, text, return_dict=False)[0]
        with rescaled_guidance(unet, cfg=5.0, rescale=0.7):
            inside = unet(sample, 5, text, return_dict=False)[0]
        after = unet(sample, 5, text, return_dict=False)[0]
    assert torch.equal(before, after)
    expected = guide(before[:1], before[1:], 5.0, rescale=0.7)
    assert torch.allclose(inside[:1] + 5.0 * (inside[1:] - inside[:1]), expected)


# Control modes


def test_control_first_is_diffusers_guess_mode(nets, small, tmp_path):
    net = nets["random-sd15"]
    generate("--base", "random-sd15", "--controlnet", net, "--control", small, *ASKED, "--control-mode", "control",
             "--out", tmp_path / "o.png")  # fmt: skip
    made = [reference("random-sd15", [net], [small], guess_mode=guess, generator=one(), **EXPECTED)
            for guess in (False, True)]  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "o.png"), made[1])
    assert not np.array_equal(*made)


def residuals(net, mode, *, guided=True):
    sample, text = torch.randn(2, 4, 4, 6, generator=one()), torch.randn(2, 7, 32, generator=one())
    hint = torch.rand(2, 3, 32, 48, generator=one())
    # A second net in another mode, so that diffusers' own switch cannot serve.
    with torch.no_grad(), control_modes([net, torch.nn.Identity()], [mode, "balanced"], guided=guided):
        down, middle = net(sample=sample, timestep=5, encoder_hidden_states=text, controlnet_cond=hint,
                           conditioning_scale=1.0, guess_mode=False, return_dict=False)  # fmt: skip
    return [*down, middle]


def test_each_mode_weighs_as_it_says(nets):
    """Prompt first: layer i of n times 10**(i / (n - 1) - 1), in both halves; control first: and none in the first."""
    net = find_controlnet(str(nets["random-sd15"])).load()
    balanced, prompt, control = (residuals(net, mode) for mode in MODES)
    count = len(balanced)
    for number, (plain, weighed, half) in enumerate(zip(balanced, prompt, control, strict=True)):
        expected = plain * 10 ** (number / (count - 1) - 1)
        assert plain.abs().max() > 0
        assert torch.allclose(weighed, expected, atol=1e-6)
        assert torch.allclose(half[1:], expected[1:], atol=1e-6)
        assert not half[:1].any()
    assert all(map(torch.equal, residuals(net, "control", guided=False), prompt))
    assert all(map(torch.equal, residuals(net, "balanced"), balanced))  # nothing stayed behind


def test_the_weights_are_those_of_the_paper_for_thirteen_layers():
    """0.825**(12 - i), of which the origin is the reference demo."""
    assert np.allclose([10 ** (i / 12 - 1) for i in range(13)], [0.825 ** (12 - i) for i in range(13)], atol=3e-3)


def test_modes_are_for_each_control(nets, small, tmp_path):
    """Two nets, of which one has weight 0: the other's mode alone decides."""
    common = ["--base", "random-sd15", "--controlnet", nets["random-sd15"], "--controlnet", nets["second"], *ASKED]
    made = {}
    for modes in [("balanced", "balanced"), ("prompt", "balanced"), ("balanced", "prompt"), ("control", "balanced"),
                  ("control", "control")]:  # fmt: skip
        out = tmp_path / f"{'-'.join(modes)}.png"
        generate(*common, "--control", small, "--control", f"{small}@0", "--control-mode", modes[0], "--control-mode",
                 modes[1], "--out", out)  # fmt: skip
        made[modes] = pixels(out).astype(int)
    assert np.array_equal(made["balanced", "prompt"], made["balanced", "balanced"])
    assert not np.array_equal(made["prompt", "balanced"], made["balanced", "balanced"])
    assert not np.array_equal(made["prompt", "balanced"], made["control", "balanced"])
    # Our hooks against diffusers' guess mode, which computes the conditional half in a batch of its own.
    assert np.abs(made["control", "balanced"] - made["control", "control"]).max() <= 1


def test_a_mode_may_be_said_once_for_all():
    assert [control.mode for control in parse_controls(("a.png", "b.png"), ("prompt",))] == ["prompt", "prompt"]
    assert [control.mode for control in parse_controls(("a.png",), ())] == ["balanced"]
    with pytest.raises(RequestError, match="2 control modes for 3 controls; expected one for all, or one for each"):
        parse_controls(("a", "b", "c"), ("prompt", "control"))


# The resize of maps


def map_of(image, type="canny"):
    return Map(Control(file=Path("m.png")), image, type, "")


@pytest.mark.parametrize("resize", ["crop", "pad", "fit"])
def test_an_edge_map_stays_one_at_any_size(resize):
    source = np.zeros((200, 300, 3), np.uint8)
    source[::10], source[:, ::10] = 255, 255
    for size in [(64, 64), (512, 128), (40, 96)]:
        fitted = fit_map(map_of(source), size, lambda text: None, resize)
        assert fitted.shape == (size[1], size[0], 3)
        assert set(np.unique(fitted)) == {0, 255}


def test_pad_keeps_all_of_the_map_between_black_and_fit_squeezes_it():
    white = np.full((20, 40, 3), 255, np.uint8)
    said = []
    padded = fit_map(map_of(white), (64, 64), said.append, "pad")
    assert np.array_equal(np.flatnonzero(padded[:, 0, 0]), np.arange(16, 48))  # 64 x 32 in the middle
    assert padded[16:48].all()
    assert fit_map(map_of(white), (64, 64), said.append, "fit").all()
    assert said == []
    fit_map(map_of(white), (64, 64), said.append, "crop")
    assert said == ["m.png is 40x20, the picture 64x64: its middle is used, 50% is cut off"]


def test_the_option_reaches_the_map(nets, small, tmp_path):
    common = ["--base", "random-sd15", "--controlnet", nets["random-sd15"], "--control", small, "--seed", 1]
    made = []
    for resize in ("crop", "pad", "fit"):
        generate(*common, "--size", "32x32", "--steps", 1, "--resize", resize, "--out", tmp_path / f"{resize}.png")
        made.append(pixels(tmp_path / f"{resize}.png").tobytes())
    assert len(set(made)) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eta", "0.5"], "eta=0.5: sampler 'dpmpp_2m_karras' has no eta; leave it at 0, or use ddim or tcd"),
        (["--eta", "2", "--sampler", "ddim"], "eta=2: expected 0 (deterministic) to 1"),
        (["--cfg-rescale", "1.5"], "cfg_rescale=1.5: expected 0 (off) to 1; 0.7 is usual"),
        (["--cfg-rescale", "0.7", "--cfg", "1"], "cfg_rescale=0.7: without guidance (cfg=1) nothing is rescaled"),
        (["--clip-skip", "0"], "clip_skip=0: expected 1 (the usual layer), 2 (the one before) or more"),
        (["--clip-skip", "99"], "clip_skip=99: the text encoder of base 'random-sd15' has"),
        (["--control-mode", "prompt"], "control mode 'prompt' without a control; give it with --control FILE"),
        (["--control-mode", "promt", "--control", "c.png", "--controlnet", "n"], "unknown control mode 'promt'"),
        (["--resize", "stretch"], "Invalid value for '--resize'"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line(arguments, words, tmp_path, capsys):
    generate("--base", "random-sd15", "--prompt", "x", "--seed", 1, *arguments, "--out", tmp_path / "o.png", code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.png").exists()
