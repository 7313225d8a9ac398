"""Tiled upscaling: one walk whose steps are averaged over tiles, by diffusers' own pipelines."""

import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from controlkit.cli.main import main
from controlkit.generation.execution import Execution
from controlkit.generation.generate import load_models, paint
from controlkit.generation.options import request_of
from controlkit.generation.plan import make_plan
from controlkit.generation.settings import read_settings
from controlkit.generation.sweeps import Sweep, cells
from controlkit.generation.tiles import OVERLAP, shares_of, tiles_of
from tests.conftest import draw_photo
from tests.painting import edges_of, own_pipeline, picture_of, pixels, strong_net


def generate(*arguments, code=0):
    assert main(["generate", "--quiet", *map(str, arguments)]) == code


def painted(options, *, models=None, say=lambda text: None, **how):
    """The pictures of these options, and the models that painted them."""
    plan = make_plan(request_of({"prompt": "a red ball", "seed": 1, "cfg": 5.0, **options}), say)
    models = models or load_models(plan, device="cpu", dtype=torch.float32)
    return [picture.image for picture in paint(plan, models, say=say, **how)], models


@pytest.fixture(scope="module")
def tile_nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tile-nets")
    return {base: strong_net(base, folder / base, condition="tile") for base in ("random-sd15", "random-sdxl")}


@pytest.fixture
def picture(tmp_path):
    """Two tiles of a base of 64 pixels wide, one high."""
    path = tmp_path / "picture.png"
    Image.fromarray(draw_photo(3, 96, 64)).save(path)
    return path


@pytest.mark.parametrize(("width", "height", "side"), [(8, 8, 8), (12, 8, 8), (100, 37, 16), (5, 30, 8), (65, 64, 64)])
def test_tiles_cover_the_picture_and_their_shares_sum_to_one(width, height, side):
    tiles = tiles_of(width, height, side)
    total = torch.zeros(height, width)
    for tile, share in zip(tiles, shares_of(tiles), strict=True):
        assert share.shape == (tile.height, tile.width) == (min(side, height), min(side, width))
        tile.view(total).add_(torch.from_numpy(share))
    torch.testing.assert_close(total, torch.ones(height, width), rtol=0, atol=1e-6)
    lefts = sorted({tile.left for tile in tiles})
    assert all(left + side - right >= OVERLAP * side for left, right in pairwise(lefts))


def test_a_border_of_a_tile_counts_for_little_where_another_lies():
    first, second = shares_of(tiles_of(28, 16, 16))
    assert second[:, 0].max() < 0.03 < 0.97 < first[:, 8:12].min()


def by_hand(net, picture):
    """MultiDiffusion over SDXL, DDIM's last two steps of four: the two tiles of 64 pixels of a picture of 96."""
    pipeline = own_pipeline("random-sdxl", [net], picture=True, scheduler=DDIMScheduler, options={"clip_sample": False})
    scheduler, vae, control = pipeline.scheduler, pipeline.vae, pipeline.controlnet
    generator = torch.Generator().manual_seed(1)
    rise = torch.sin(torch.pi * (torch.arange(8) + 0.5) / 8) ** 2
    with torch.no_grad():
        text, plain, pooled, plain_pooled = pipeline.encode_prompt("a red ball", None)
        shown = torch.from_numpy(pixels(picture).copy()).permute(2, 0, 1)[None] / 255
        x = vae.encode(2 * shown - 1).latent_dist.sample(generator) * vae.config.scaling_factor
        scheduler.set_timesteps(4)
        x = scheduler.add_noise(x, torch.randn(x.shape, generator=generator), scheduler.timesteps[2:3])
        for t in scheduler.timesteps[2:]:
            total, weight = torch.zeros_like(x), torch.zeros(12)
            for left in (0, 4):
                # The whole picture's size, where the tile begins in it (top, left), the tile's size.
                ids = torch.tensor([[64.0, 96, 0, 8 * left, 64, 64]] * 2)
                told = {"text_embeds": torch.cat([plain_pooled, pooled]), "time_ids": ids}
                asked = torch.cat([x[..., left : left + 8]] * 2), t, torch.cat([plain, text])
                down, middle = control(
                    *asked, shown[..., 8 * left : 8 * left + 64].repeat(2, 1, 1, 1), 1.0, added_cond_kwargs=told,
                    return_dict=False,
                )  # fmt: skip
                without, guided = pipeline.unet(
                    *asked, added_cond_kwargs=told, down_block_additional_residuals=down,
                    mid_block_additional_residual=middle,
                ).sample.chunk(2)  # fmt: skip
                total[..., left : left + 8] += (without + 5 * (guided - without)) * rise
                weight[left : left + 8] += rise
            x = scheduler.step(total / weight, t, x).prev_sample
        image = vae.decode(x / vae.config.scaling_factor).sample
    return ((image[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy() * 255).round()


def test_it_averages_what_tiles_predict_and_tells_sdxl_where_each_lies(tile_nets, picture):
    """The ControlNet for tiles is shown the picture without being asked. No network sees more than a tile."""
    net = tile_nets["random-sdxl"]
    options = {"base": "random-sdxl", "controlnet": str(net), "image": str(picture), "steps": 4, "sampler": "ddim"}
    plan = make_plan(request_of({**options, "prompt": "a red ball", "seed": 1, "cfg": 5.0, "upscale": "1:0.5"}), print)
    models = load_models(plan, device="cpu", dtype=torch.float32)
    seen = []
    for network in (models.parts["unet"], *models.nets):
        network.conv_in.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    (made,) = paint(plan, models)
    assert seen == [(2, 4, 8, 8)] * 8  # of two tiles in two steps
    assert np.abs(made.image - by_hand(net, picture)).max() <= 1


@pytest.mark.parametrize("mode", ["balanced", "control"])
def test_one_tile_is_img2img_bit_for_bit_with_everything_that_hooks_in(mode, nets, tile_nets, tmp_path):
    Image.fromarray(draw_photo(3, 64, 48)).save(tmp_path / "picture.png")
    Image.fromarray(edges_of(draw_photo(1, 64, 48))).save(tmp_path / "edge.png")
    Image.fromarray(np.arange(64 * 48).reshape(48, 64).astype(np.uint8)).save(tmp_path / "region.png")
    image = str(tmp_path / "picture.png")
    options = {
        "base": "random-sd15", "image": image, "steps": 4, "sampler": "euler_a", "cfg-interval": "0:0.6",
        "controlnet": [str(nets["random-sd15"]), f"tile={tile_nets['random-sd15']}"],
        "control": [f"canny={tmp_path / 'edge.png'}@0.7:0:0.8"], "cfg-rescale": 0.5, "control-mode": mode,
        "control-mask": [str(tmp_path / "region.png")], "control-layers": ["soft:0.8"],
        "control-half": mode == "balanced",
    }  # fmt: skip
    made, models = painted({**options, "upscale": "1:0.75"})
    plain = {**options, "control": [*options["control"], f"tile={image}"], "strength": 0.75}
    assert np.array_equal(made[0], painted(plain, models=models)[0][0])


def test_a_mask_of_a_control_is_cut_as_the_tiles_are(tile_nets, picture, tmp_path):
    """Black where the second tile alone lies: what the first one decides alone stays what it is under no mask, and what
    the second decides alone is that of no control."""
    options = {"base": "random-sd15", "image": str(picture), "steps": 2, "sampler": "ddim", "upscale": "1:0.5"}
    Image.fromarray(np.repeat([255, 0], [64, 32]).astype(np.uint8)[None].repeat(64, 0)).save(tmp_path / "region.png")
    shown = {"controlnet": str(tile_nets["random-sd15"])}
    latents = []
    for each in (shown, {**shown, "control-mask": [str(tmp_path / "region.png")]}, {}):
        plan = make_plan(request_of({**options, **each, "prompt": "x", "seed": 1}), lambda text: None)
        models = load_models(plan, device="cpu", dtype=torch.float32)
        answers = []
        models.parts["unet"].register_forward_hook(lambda _, __, output, kept=answers: kept.append(output[0]))
        list(paint(plan, models))
        latents.append(answers)
    everywhere, masked, nowhere = latents
    assert torch.equal(masked[0], everywhere[0])
    assert not torch.equal(masked[1], everywhere[1])
    assert not torch.equal(masked[1], nowhere[1])  # half of it is white
    assert not torch.equal(everywhere[0], nowhere[0])


def test_pictures_of_a_batch_are_those_alone_and_tiles_are_counted(picture):
    options = {"base": "random-sd15", "image": str(picture), "steps": 4, "upscale": "1:0.5", "num": 2}
    alone, models = painted(options)
    heard, said = [], []
    together, _ = painted(
        {**options, "batch-size": 2}, models=models, say=said.append, execution=Execution(previews=1),
        progress=lambda *counts: heard.append(counts),
    )  # fmt: skip
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    assert np.abs(alone[0].astype(int) - alone[1]).max() > 1
    (offloaded,), _ = painted(
        {**options, "num": 1}, models=models, execution=Execution(offload="model"), device=torch.device("cpu")
    )
    assert np.abs(alone[0].astype(int) - offloaded).max() <= 1
    assert heard == [(0, 8), (2, 8), (4, 8), (6, 8), (8, 8)]  # two steps of two tiles of two pictures
    assert said[0] == (
        "upscale: 96x64 enlarged to 96x64 by Lanczos in pixels, then 2 of 4 steps, each in 2 tiles of 64x64"
    )
    assert re.fullmatch(r"about \d+\.\d seconds in all", said[-1])


def test_it_is_replayed_and_its_control_is_the_enlarged_picture(tile_nets, tmp_path):
    Image.fromarray(draw_photo(3, 32, 24)).save(tmp_path / "small.png")
    out, image = tmp_path / "o.png", tmp_path / "small.png"
    asked = ["--base", "random-sd15", "--image", image, "--upscale", "3:0.5", "--steps", 2, "--prompt", "x"]
    generate(*asked, "--seed", 1, "--controlnet", tile_nets["random-sd15"], "--out", out)
    generate("--replay", out, "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
    settings = read_settings(out)
    assert settings["upscale"] == {"scale": 3.0, "strength": 0.5}
    (control,) = settings["controls"]
    assert (control["file"], control["type"], control["pixels_sha256"]) == (
        str(image), "tile", settings["image"]["pixels_sha256"],
    )  # fmt: skip
    with Image.open(out) as made:
        assert made.size == (96, 72)
        assert "Denoising strength: 0.5, Tiled Diffusion upscaler: Lanczos" in made.text["parameters"]
        assert "Tiled Diffusion scale factor: 3" in made.text["parameters"]
    enlarged = picture_of(image).resize((96, 72), Image.Resampling.LANCZOS)
    assert np.array_equal(
        make_plan(request_of({"image": str(image), "upscale": "3"}), lambda text: None).start.pixels, enlarged
    )


def seam(made, start, borders):
    """How much more what was painted changes over these columns than over others."""
    change = np.abs(np.diff(made.astype(float) - start, axis=1)).mean(axis=(0, 2))
    there = np.isin(np.arange(len(change)) + 1, borders)
    return change[there].mean() / change[~there].mean()


def test_no_seam_shows_where_tiles_meet(tmp_path):
    """By the base that comes along, whose tiles are 64 pixels wide. The same tiles, each painted to the end by itself,
    show where they were cut."""
    Image.fromarray(draw_photo(5, 64, 24)).save(tmp_path / "small.png")
    common = {"steps": 8, "cfg": 2.0, "prompt": "a small red ball on a blue floor"}
    options = {**common, "image": str(tmp_path / "small.png"), "upscale": "2.5:0.5"}
    plan = make_plan(request_of(options), lambda text: None)
    start, lefts = plan.start.pixels, [4 * tile.left for tile in plan.tiles]
    (made,), models = painted(options)
    apart = np.zeros_like(made)
    cuts = [0, *((left + 64 + right) // 2 for left, right in pairwise(lefts)), 160]
    for left, (begin, end) in zip(lefts, pairwise(cuts), strict=True):
        Image.fromarray(start[:, left : left + 64]).save(tmp_path / "tile.png")
        (tile,), _ = painted({**common, "image": str(tmp_path / "tile.png"), "strength": 0.5}, models=models)
        apart[:, begin:end] = tile[:, begin - left : end - left]
    borders = [*lefts[1:], *(left + 64 for left in lefts[:-1])]
    assert (lefts, cuts) == ([0, 48, 96], [0, 56, 104, 160])
    assert max(seam(made, start, borders), seam(made, start, cuts)) < 1.4 < 3 < seam(apart, start, cuts)


def test_a_sweep_of_its_strength(picture):
    request = request_of({"image": str(picture), "upscale": "2", "prompt": "x"})
    row = cells(request, [Sweep.parse("strength=0.2,0.5")])[0]
    assert [cell.noise_share for cell in row] == [0.2, 0.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--upscale", "large"], "--upscale 'large': expected SCALE or SCALE:STRENGTH, e.g. 2 or 2:0.5"),
        (["--upscale", "9"], "upscale=9:0.3: expected a SCALE of 1 to 8"),
        (["--upscale", "0.5"], "upscale=0.5:0.3: expected a SCALE of 1 to 8"),
        (["--upscale", "2:0.1", "--steps", 5], "leaves none to walk; use --steps 10 or more, or --upscale 2:0.2"),
        (["--upscale", "2", "--strength", 0.4], "upscale=2: has a strength of its own; give --upscale 2:0.4"),
        (["--upscale", "2", "--size", "64x64"], "upscale=2: the size is so many times the picture's; leave --size out"),
        (["--upscale", "2", "--outpaint", "0,0,8,0"], "upscale=2: paints all of a picture, and a mask keeps a part"),
        (["--upscale", "2", "--hires", "2"], "hires=2: paints from text, then larger"),
    ],
)
def test_a_wrong_one_is_one_line(arguments, words, picture, tmp_path, capsys):
    out = tmp_path / "o.png"
    common = ["--base", "random-sd15", "--seed", 1, "--prompt", "x", "--image", picture]
    generate(*common, *arguments, "--out", out, code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_without_a_picture_or_with_a_net_that_pools_its_map_it_is_refused(picture, nets, tmp_path, capsys):
    common = ["--base", "random-sd15", "--seed", 1, "--prompt", "x", "--out", tmp_path / "o.png"]
    generate("--upscale", 2, *common, code=2)
    assert "upscale=2: enlarges a picture; give it with --image FILE" in capsys.readouterr().err
    shutil.copytree(nets["second"], tmp_path / "net")
    config = json.loads((tmp_path / "net/config.json").read_text(encoding="utf-8"))
    (tmp_path / "net/config.json").write_text(json.dumps({**config, "global_pool_conditions": True}), encoding="utf-8")
    controlled = ["--control", f"shuffle={picture}", "--controlnet", f"shuffle={tmp_path / 'net'}"]
    generate("--upscale", 2, "--image", picture, *controlled, *common, code=2)
    assert "makes one value of its map for the whole picture, and tiles see parts of it" in capsys.readouterr().err
