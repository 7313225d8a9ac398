"""RePaint through diffusers' own pipelines: any family, any number of ControlNets, nothing changed outside."""

import cv2
import numpy as np
import pytest
import torch

from controlkit.diffusion.repaint import network_calls, walk
from controlkit.diffusion.samplers import make_sampler
from controlkit.generation.inpainting import Canvas, Walk, encode, repaint
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from tests.conftest import draw_photo

WALK = Walk(jump=2, samples=2, window=(0.0, 1.0))


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


def disc(width, height, radius=12):
    mask = np.zeros((height, width), np.float32)
    cv2.circle(mask, (width // 2, height // 2), radius, 1.0, -1)
    return mask


def arguments(canvas, picture, nets=1):
    from PIL import Image

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
        return repaint(pipeline, canvas, WALK, given, steps=4, generator=generator)

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
    repaint(pipeline, canvas, WALK, given, steps=4, generator=torch.Generator().manual_seed(0))
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

    def change(strength):
        generator = torch.Generator().manual_seed(0)
        done = repaint(
            pipeline, canvas, Walk(samples=1, jump=1), arguments(canvas, picture), steps=10, strength=strength,
            generator=generator,
        )  # fmt: skip
        through = repaint(
            pipeline, canvas, Walk(samples=1, jump=1), arguments(canvas, picture), steps=10, strength=0.1,
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
        pipeline, canvas, WALK, arguments(canvas, picture), steps=4, generator=torch.Generator().manual_seed(0)
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
