"""RePaint on models of pixels, as in its paper."""

import json

import numpy as np
import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

from controlkit.cli.main import main
from controlkit.diffusion.repaint_walk import network_calls, walk
from controlkit.generation.pixel_repaint import PAPER_JUMP, PAPER_SAMPLES, PAPER_STEPS
from controlkit.generation.settings import read_settings
from tests.conftest import draw_photo


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Models with a fixed and with a learned variance, a picture of their size and a mask."""
    folder = tmp_path_factory.mktemp("pixels")
    for kind, channels, variance in (("ddpm", 3, "fixed_small"), ("iddpm", 6, "learned_range")):
        unet = UNet2DModel(
            sample_size=8, out_channels=channels, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
        )  # fmt: skip
        DDPMPipeline(unet=unet, scheduler=DDPMScheduler(variance_type=variance)).save_pretrained(folder / kind)
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 3:8] = 255
    Image.fromarray(draw_photo(1, 8, 8)).save(folder / "picture.png")
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def sample(files, kind, out, *more, code=0):
    given = ["--base", files / kind, "--image", files / "picture.png", "--mask", files / "mask.png", "--seed", 1]
    assert main(["base", "sample", *map(str, [*given, "--out", out, *more])]) == code
    return [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]


def test_the_papers_walk_is_the_default():
    assert network_calls(walk(PAPER_STEPS, jump=PAPER_JUMP, samples=PAPER_SAMPLES)) == 2410


@pytest.mark.parametrize(("kind", "sampler"), [("ddpm", "ddpm"), ("iddpm", "ddpm"), ("iddpm", "ddim")])
def test_the_hole_is_painted_and_the_rest_is_the_file(files, tmp_path, kind, sampler, capsys, monkeypatch):
    """The published count of (25, 5, 3) is 65 calls; one walk is that of as many steps."""
    asked = []
    forward = UNet2DModel.forward
    monkeypatch.setattr(UNet2DModel, "forward", lambda *args, **options: asked.append(1) or forward(*args, **options))
    more = ["--sampler", sampler, "--steps", 25, "--jump-length", 5]
    one, other = sample(files, kind, tmp_path / "o", *more, "--jump-samples", 3, "--num", 2)
    assert len(asked) == 65
    assert "the network is asked 65 times" in capsys.readouterr().err
    picture, mask = np.asarray(Image.open(files / "picture.png")), np.asarray(Image.open(files / "mask.png")) > 0
    for made in (one, other):
        assert (made[~mask] == picture[~mask]).all()
        assert (made[mask] != picture[mask]).mean() > 0.8
    assert (one[mask] != other[mask]).any()
    settings = read_settings(sorted((tmp_path / "o").iterdir())[0])
    assert (settings["jump"], settings["samples"], settings["steps"]) == (5, 3, 25)
    sample(files, kind, tmp_path / "plain", *more, "--jump-samples", 1)
    assert len(asked) == 65 + 25


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sampler", "dpmpp_2m"], "sampler 'dpmpp_2m' remembers the steps before"),
        (["--steps", "5"], "jump length 10: a walk of 5 steps expects 1 to 5"),
        (["--image", "large.png", "--mask", "large.png"], "--image is 16x16, this base paints 8x8 pixels"),
        (["--mask", "large.png"], "expected one size for both"),
        (["--prompt", "a ball"], "reads no text"),
    ],
)
def test_what_cannot_be_walked_is_one_line(files, tmp_path, more, words, capsys):
    large = np.zeros((16, 16), np.uint8)
    large[4:8] = 255
    Image.fromarray(large).save(files / "large.png")
    more = [files / each if each.endswith(".png") else each for each in more]
    assert sample(files, "ddpm", tmp_path / "o", *more, code=2) == []
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_half_of_what_is_needed_is_refused(files, tmp_path, capsys):
    given = ["base", "sample", "--base", str(files / "ddpm"), "--out", str(tmp_path / "o"), "--seed", "1"]
    for more in (["--mask", str(files / "mask.png")], ["--jump-length", "3"]):
        assert main([*given, *more]) == 2
        assert f"{more[0]}: a part of a picture is painted by --image FILE and --mask FILE" in capsys.readouterr().err
    prompts = tmp_path / "prompts" / "model_index.json"
    (prompts.parent / "unet").mkdir(parents=True)
    prompts.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (prompts.parent / "unet" / "config.json").write_text(json.dumps({"sample_size": 8}))
    both = ["--image", str(files / "picture.png"), "--mask", str(files / "mask.png")]
    assert main(["base", "sample", "--base", str(prompts.parent), *both, "--seed", "1", "--out", str(tmp_path)]) == 2
    assert "reads text; paint with controlkit generate --image --mask" in capsys.readouterr().err
