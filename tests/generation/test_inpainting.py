"""RePaint through diffusers' own pipelines: any family, any number of ControlNets, nothing changed outside."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.cli.main import main
from controlkit.diffusion.repaint_walk import network_calls, walk
from controlkit.diffusion.samplers import make_sampler
from controlkit.generation.generate import load_models, paint
from controlkit.generation.inpainting import Canvas, encode, repainting
from controlkit.generation.options import request_of
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.generation.plan import make_plan
from controlkit.generation.request import Mask
from controlkit.generation.settings import read_settings
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from tests.conftest import draw_photo
from tests.painting import strong_net

MASK = Mask(file=Path("mask.png"), jump=2, samples=2, window=(0.0, 1.0))


def pipeline_of(name, sampler, nets=1):
    base = find_base(name)
    parts = load_parts(base, dtype=torch.float32, device=torch.device("cpu"))
    controlnets = []
    for seed in range(nets):
        net = make_controlnet(
            parts["unet"], vae_factor=base.vae_factor, latent_channels=base.latent_channels, seed=seed
        )
        with torch.no_grad():
            for key, parameter in net.named_parameters():
                if key.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                    parameter.add_(0.05)
        controlnets.append(net.eval())
    return control_pipeline(base, parts, controlnets, make_sampler(sampler, base.scheduler))


def repaint(pipeline, canvas, mask, arguments, *, steps, generator, strength=1.0):
    walking = repainting(pipeline, [canvas], mask, steps=steps, strength=strength, generators=[generator])
    with walking as latents:
        painted = pipeline(
            **arguments, **latents, width=canvas.window.size[0], height=canvas.window.size[1],
            num_inference_steps=steps, generator=generator, output_type="np",
        ).images[0]  # fmt: skip
    return canvas.finish((painted * 255).round().astype(np.uint8))


def disc(width, height, radius=12):
    mask = np.zeros((height, width), np.float32)
    cv2.circle(mask, (width // 2, height // 2), radius, 1.0, -1)
    return mask


def arguments(canvas, picture, nets=1):
    edges = np.repeat(cv2.Canny(picture, 100, 200)[:, :, None], 3, axis=2)
    control = Image.fromarray(canvas.control(edges, frozenset({0, 255})))
    return {"prompt": "a ball", "image": control if nets == 1 else [control] * nets, "guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("name", "sampler", "nets"),
    [
        ("random-sd15", "ddim", 1), ("random-sd15", "ddpm", 2), ("random-sd21", "euler_a", 1),
        ("random-sdxl", "euler", 1), ("random-sdxl", "ddim", 2),
    ],
)  # fmt: skip
def test_every_family_with_one_and_two_nets(name, sampler, nets):
    picture = draw_photo(0, 72, 64)
    canvas = Canvas.of(picture, disc(72, 64), grow=1, feather=2, multiple=8)
    pipeline = pipeline_of(name, sampler, nets)
    asked = []
    forward = pipeline.unet.forward
    pipeline.unet.forward = lambda *args, **options: asked.append(1) or forward(*args, **options)
    inner = pipeline.scheduler

    def painted(seed, **changed):
        generator = torch.Generator().manual_seed(seed)
        given = {**arguments(canvas, picture, nets), **changed}
        return repaint(pipeline, canvas, MASK, given, steps=4, generator=generator)

    done = painted(0)
    assert len(asked) == network_calls(walk(4, jump=2, samples=2))
    assert pipeline.scheduler is inner
    assert done.shape == picture.shape
    assert (done[canvas.region.weight == 0] == picture[canvas.region.weight == 0]).all()
    hole = canvas.region.weight == 1
    assert (done[hole] != picture[hole]).mean() > 0.5
    assert (painted(0) == done).all()
    assert (painted(1) != done).any()
    assert (painted(0, controlnet_conditioning_scale=[0.0] * nets if nets > 1 else 0.0) != done).any()


def test_the_latents_of_what_is_known_end_as_they_were():
    picture = draw_photo(1, 64, 64)
    canvas = Canvas.of(picture, disc(64, 64, 8), grow=0, feather=0, multiple=8)
    pipeline = pipeline_of("random-sd15", "ddim")
    ended = []

    def remember(_, __, ___, values):
        ended.append(values["latents"])
        return values

    given = {**arguments(canvas, picture), "callback_on_step_end": remember}
    repaint(pipeline, canvas, MASK, given, steps=4, generator=torch.Generator().manual_seed(0))
    known = encode(pipeline.vae, canvas.shown)
    same = (ended[-1] == known).all(dim=1)[0]
    assert same[0].all()
    assert same[:, -1].all()
    assert not same[2:6, 2:6].any()


def test_strength_keeps_more_of_what_was_there():
    picture = draw_photo(2, 64, 64)
    canvas = Canvas.of(picture, disc(64, 64, 20), grow=0, feather=0, multiple=8)
    pipeline = pipeline_of("random-sd15", "ddim")
    hole = canvas.region.weight == 1
    straight = Mask(file=Path("mask.png"), samples=1, jump=1)

    def change(strength):
        generator = torch.Generator().manual_seed(0)
        done = repaint(
            pipeline, canvas, straight, arguments(canvas, picture), steps=10, strength=strength, generator=generator,
        )  # fmt: skip
        through = repaint(
            pipeline, canvas, straight, arguments(canvas, picture), steps=10, strength=0.1,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return np.abs(done[hole].astype(int) - through[hole]).mean()

    assert change(0.2) < change(1.0)


def test_only_the_masked_region_of_a_larger_picture():
    picture = draw_photo(3, 200, 150)
    mask = np.zeros((150, 200), np.float32)
    mask[90:100, 150:165] = 1
    canvas = Canvas.of(picture, mask, grow=0, feather=3, multiple=8, padding=12, area=64 * 64)
    pipeline = pipeline_of("random-sd15", "ddim")
    assert canvas.shown.shape[:2] == canvas.hole.shape == canvas.window.size[::-1]
    done = repaint(
        pipeline, canvas, MASK, arguments(canvas, picture), steps=4, generator=torch.Generator().manual_seed(0)
    )
    assert (done[canvas.region.weight == 0] == picture[canvas.region.weight == 0]).all()
    assert (done[mask == 1] != picture[mask == 1]).any()


def test_the_map_is_cut_as_the_picture_is():
    """A map whose lines are those of the picture still is one in the window."""
    picture = draw_photo(4, 200, 150)
    mask = np.zeros((150, 200), np.float32)
    mask[40:60, 80:100] = 1
    canvas = Canvas.of(picture, mask, grow=0, feather=0, multiple=8, padding=10, area=80 * 80)
    grey = canvas.control(picture, None)
    assert np.abs(grey.astype(int) - canvas.shown).mean() < 6
    edges = np.repeat(cv2.Canny(picture, 100, 200)[:, :, None], 3, axis=2)
    assert set(np.unique(canvas.control(edges, frozenset({0, 255})))) <= {0, 255}


# The command


@pytest.fixture
def files(tmp_path):
    picture, mask = draw_photo(5, 72, 64), disc(72, 64)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    edges = np.repeat(cv2.Canny(picture, 100, 200)[:, :, None], 3, axis=2)
    Image.fromarray(edges).save(tmp_path / "edges.png")
    return tmp_path


def generate(files, *more, code=0):
    given = ["--base", "random-sd15", "--image", files / "picture.png", "--mask", files / "mask.png", "--seed", 3]
    given += ["--steps", 4, "--jump-length", 2, "--jump-samples", 2, "--prompt", "a ball", *more]
    assert main(["generate", *map(str, given)]) == code


def test_the_seconds_are_said_before_it_begins(files):
    """Two more calls of the network tell; what is drawn for them is not missing from the picture."""
    options = {"image": str(files / "picture.png"), "mask": str(files / "mask.png"), "inpaint": "repaint", "num": 2}
    plan = make_plan(request_of({**options, "base": "random-sd15", "steps": 6, "prompt": "a ball"}), lambda text: None)
    models, heard, calls = load_models(plan, device="cpu", dtype=torch.float32), [], []
    models.parts["unet"].register_forward_hook(lambda *_: calls.append(len(heard)))
    list(paint(plan, models, say=heard.append, progress=lambda done, total: heard.append(done)))
    (said,) = [place for place, each in enumerate(heard) if isinstance(each, str)]
    assert re.fullmatch(r"about \d+\.\d seconds in all", heard[said])
    assert [place <= said for place in calls] == [True] * 2 + [False] * 2 * plan.request.walked_steps


def test_the_command_paints_the_hole_and_replays_it(files, capsys):
    picture = np.asarray(Image.open(files / "picture.png"))
    net = strong_net("random-sd15", files / "net")
    more = ["--control", f"{files / 'edges.png'}@0.5", "--controlnet", net, "--feather", 2, "--grow", 1]
    generate(files, *more, "--out", files / "o.png")
    said = capsys.readouterr().err
    calls = network_calls(walk(4, jump=2, samples=2, window=(0.2, 0.8)))
    assert f"the network is asked {calls} times a picture" in said
    done = np.asarray(Image.open(files / "o.png"))
    away = cv2.distanceTransform((disc(72, 64) == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert (done[away > 4] == picture[away > 4]).all()
    assert (done[away == 0] != picture[away == 0]).mean() > 0.5
    settings = read_settings(files / "o.png")
    assert (settings["sampler"], settings["eta"], settings["mask"]["feather"]) == ("ddim", 1.0, 2)
    assert main(["generate", "--replay", str(files / "o.png"), "--out", str(files / "again.png")]) == 0
    assert "bit for bit" in capsys.readouterr().err
    Image.fromarray(255 - np.asarray(Image.open(files / "mask.png"))).save(files / "mask.png")
    assert main(["generate", "--replay", str(files / "o.png"), "--out", str(files / "third.png")]) == 2
    assert "--mask" in capsys.readouterr().err


def test_several_pictures_of_one_hole(files):
    generate(files, "--num", 2, "--batch-size", 2, "--out", files / "both", "-q")
    generate(files, "--num", 2, "--out", files / "single", "-q")
    together, alone = ([np.asarray(Image.open(path)) for path in sorted((files / each).iterdir())]
                       for each in ("both", "single"))  # fmt: skip
    assert (together[0] != together[1]).any()
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sampler", "dpmpp_2m"], "sampler 'dpmpp_2m' remembers the steps before"),
        (["--jump-length", "9"], "jump length 9: a walk of 4 steps expects 1 to 4"),
        (["--jump-window", "0.8"], "expected two shares of the noise, e.g. 0.2:0.8"),
        (["--size", "64x64"], "a masked picture keeps its own"),
        (["--grow", "-1"], "grow=-1: expected 0 or more pixels"),
    ],
)
def test_what_cannot_be_walked_is_one_line(files, more, words, capsys):
    generate(files, *more, "--out", files / "o.png", code=2)
    said = capsys.readouterr().err.splitlines()[-1]
    assert words in said
    assert not (files / "o.png").exists()


def test_masks_without_a_picture_and_settings_without_a_mask(files, capsys):
    common = ["generate", "--base", "random-sd15", "--prompt", "x", "--seed", "1", "--out", str(files / "o.png")]
    assert main([*common, "--mask", str(files / "mask.png")]) == 2
    assert "lies on a picture; give it with --image FILE" in capsys.readouterr().err
    assert main([*common, "--feather", "3"]) == 2
    assert "feather: says how a mask is used" in capsys.readouterr().err
    assert main([*common, "--inpaint", "repaint"]) == 2
    assert "inpaint: says how a mask is used; give --mask FILE" in capsys.readouterr().err
