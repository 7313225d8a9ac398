"""Guidance in a part of the steps: the pixels of a direct computation, and half the work outside."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from controlkit.cli.main import main
from controlkit.generation.generate import load_models, paint
from controlkit.generation.plan import make_plan
from controlkit.generation.request import Request
from controlkit.models.bases import find_base
from tests.conftest import draw_photo
from tests.painting import pixels, reference

COMMON = {"base": "random-sd15", "prompt": "a red ball", "negative": "blurry", "sampler": "ddim", "cfg": 5.0}


def generate(*arguments, code=0):
    assert main(["generate", "--quiet", *map(str, arguments)]) == code


def one():
    return torch.Generator().manual_seed(1)


def painted(request, seen=None, models=None):
    """Its pictures; the batches that each network was asked for go into `seen`."""
    plan = make_plan(request, lambda text: None)
    models = models or load_models(plan, device="cpu", dtype=torch.float32)
    networks = {"unet": models.parts["unet"], **{f"net{number}": net for number, net in enumerate(models.nets)}}
    hooks = [
        network.conv_in.register_forward_hook(lambda _, args, __, name=name: seen[name].append(len(args[0])))
        for name, network in networks.items()
        if seen is not None and seen.setdefault(name, []) == []
    ]
    images = [picture.image for picture in paint(plan, models)]
    for hook in hooks:
        hook.remove()
    return images


def by_hand(guided, steps):
    """DDIM's loop over the UNet, guided in these steps."""
    base = find_base("random-sd15")
    unet, vae, encoder, tokenizer = (base.load(name) for name in ("unet", "vae", "text_encoder", "tokenizer"))
    scheduler = DDIMScheduler.from_config(base.scheduler)
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 4, 6, generator=one())
    with torch.no_grad():
        without, text = (
            encoder(tokenizer(each, padding="max_length", return_tensors="pt").input_ids)[0]
            for each in ("blurry", "a red ball")
        )
        for number, t in enumerate(scheduler.timesteps):
            predicted = unet(x, t, text).sample
            if number in guided:
                plain = unet(x, t, without).sample
                predicted = plain + 5.0 * (predicted - plain)
            x = scheduler.step(predicted, t, x).prev_sample
        image = vae.decode(x / vae.config.scaling_factor).sample
    return ((image[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def test_it_is_a_loop_that_guides_in_these_steps():
    seen = {}
    request = Request(**COMMON, steps=5, size=(48, 32), seed=1, cfg_interval=(0.2, 0.8))
    (made,) = painted(request, seen)
    assert seen["unet"] == [1, 2, 2, 2, 1]
    expected = by_hand((1, 2, 3), 5)
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert np.abs(by_hand(range(5), 5).astype(int) - expected).max() > 1


def unguided_from(step, *names):
    """diffusers' documentation: guidance ends when a callback sets it to 0 and halves what was doubled."""

    def callback(pipeline, number, timestep, tensors):
        if number + 1 == step:
            pipeline._guidance_scale = 0.0
            tensors = {name: value.chunk(2)[1] for name, value in tensors.items()}
        return tensors

    return {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": list(names)}


def test_with_a_picture_and_a_control_it_is_diffusers_dynamic_guidance(nets, edge, tmp_path):
    """SDXL, whose UNet takes more than the prompt; the ControlNet too is asked for a half."""
    net = nets["random-sdxl"]
    Image.fromarray(draw_photo(3, 96, 64)).save(tmp_path / "picture.png")
    generate("--base", "random-sdxl", "--prompt", "a red ball", "--image", tmp_path / "picture.png", "--strength", 0.9,
             "--control", edge, "--controlnet", net, "--steps", 5, "--seed", 1, "--cfg-interval", "0:0.5",
             "--out", tmp_path / "o.png")  # fmt: skip
    halved = unguided_from(2, "prompt_embeds", "add_text_embeds", "add_time_ids", "control_image")
    made = reference(
        "random-sdxl", [net], [edge], picture=tmp_path / "picture.png", strength=0.9, prompt="a red ball",
        controlnet_conditioning_scale=1.0, num_inference_steps=5, guidance_scale=7.5, generator=one(), **halved,
    )  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "o.png"), made)


def test_control_and_mask_walk_alike_and_nothing_stays_behind(nets, edge, tmp_path):
    """RePaint asks more often than there are steps; afterwards the models guide as before."""
    from controlkit.generation.options import request_of

    Image.fromarray(draw_photo(3, 96, 64)).save(tmp_path / "picture.png")
    Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), ((20, 24), (30, 46)))).save(tmp_path / "mask.png")
    options = {
        "base": "random-sd15", "prompt": "a red ball", "seed": 1, "steps": 4, "control": str(edge),
        "controlnet": str(nets["random-sd15"]), "image": str(tmp_path / "picture.png"),
        "mask": str(tmp_path / "mask.png"), "jump-length": 1, "jump-samples": 2,
    }  # fmt: skip
    plain = request_of(options)
    models = load_models(make_plan(plain, lambda text: None), device="cpu", dtype=torch.float32)
    (before,) = painted(plain, models=models)
    seen = {}
    (inside,) = painted(request_of({**options, "cfg-interval": "0.3:1"}), seen, models)
    steps = plain.walked_steps
    walked = [1 if number / steps < 0.3 else 2 for number in range(steps)]
    assert seen["unet"][2:] == seen["net0"][2:] == walked  # behind the two that tell how long it will take
    assert not np.array_equal(inside, before)
    assert np.array_equal(painted(plain, models=models)[0], before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cfg-interval", "0.5"], "--cfg-interval '0.5': expected two shares of the steps, e.g. 0.2:0.8"),
        (["--cfg-interval", "0.8:0.2"], "cfg_interval=0.8:0.2: expected 0 <= FROM < TO <= 1"),
        (["--cfg-interval", "0.3:0.5", "--steps", 4], "cfg_interval=0.3:0.5: no step of 4 lies in it"),
        (["--cfg-interval", "0:0.5", "--cfg", 1], "cfg_interval=0:0.5: without guidance (cfg=1) there is nothing to"),
    ],
)
def test_a_wrong_interval_is_one_line(arguments, words, tmp_path, capsys):
    generate("--base", "random-sd15", "--prompt", "x", "--seed", 1, *arguments, "--out", tmp_path / "o.png", code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
