"""Two passes: what comes out is img2img, by diffusers' own pipeline, of the first pass's picture enlarged by hand."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from annotators.contract import resize_map
from controlkit.cli.main import main
from controlkit.generation import execution
from controlkit.generation.execution import Execution
from controlkit.generation.generate import generate as generate_pictures
from controlkit.generation.generate import load_models, paint
from controlkit.generation.hires import Hires
from controlkit.generation.plan import make_plan
from controlkit.generation.request import Control, Net, Request
from controlkit.generation.settings import encode_picture, read_settings
from controlkit.generation.sweeps import Sweep, cells
from tests.conftest import draw_photo
from tests.painting import edges_of, pixels, reference

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
SMALL, LARGE = (48, 32), (72, 48)


def generate(*arguments, code=0):
    assert main(["generate", "--quiet", *map(str, arguments)]) == code


@pytest.fixture
def maps(tmp_path):
    """Edges as large as the second pass, and what the first is shown of them."""
    found = SimpleNamespace(file=tmp_path / "edge.png", small=tmp_path / "small.png")
    edges = edges_of(draw_photo(0, *LARGE))
    Image.fromarray(edges).save(found.file)
    Image.fromarray(resize_map(edges, *SMALL, frozenset({0, 255}))).save(found.small)
    return found


@pytest.mark.parametrize(("base", "count"), [("random-sd15", 0), ("random-sd15", 1), ("random-sdxl", 0)])
def test_both_passes_are_diffusers_own(base, count, nets, maps, tmp_path):
    """The map of the second pass is the file itself, pixel for pixel."""
    asked = ["--base", base, "--prompt", "a red ball", "--cfg", 5, "--seed", 1, "--steps", 4, "--size", "48x32"]
    if count:
        asked += ["--control", f"{maps.file}@0.8", "--controlnet", nets[base]]
    generate(*asked, "--hires", "1.5:0.5", "--out", tmp_path / "o.png")
    common = {"prompt": "a red ball", "guidance_scale": 5.0, "num_inference_steps": 4}
    common |= {"controlnet_conditioning_scale": 0.8} if count else {}
    folders = [nets[base]][:count]
    size = {} if count else {"width": 48, "height": 32}
    first = reference(base, folders, [maps.small][:count], generator=torch.Generator().manual_seed(1), **size, **common)
    Image.fromarray(first).resize(LARGE, Image.Resampling.LANCZOS).save(tmp_path / "enlarged.png")
    second = reference(
        base, folders, [maps.file][:count], picture=tmp_path / "enlarged.png", strength=0.5,
        generator=torch.Generator().manual_seed(1), **common,
    )  # fmt: skip
    assert pixels(tmp_path / "o.png").shape == (48, 72, 3)
    assert np.array_equal(pixels(tmp_path / "o.png"), second)


def test_it_is_two_commands_in_one_with_everything_that_hooks_in(nets, maps, tmp_path):
    """Region, layers, halves, interval and rescale of guidance count in both passes."""
    Image.fromarray(np.arange(72 * 48).reshape(48, 72).astype(np.uint8)).save(tmp_path / "region.png")
    asked = [
        "--base", "random-sd15", "--prompt", "(a red:1.2) ball", "--cfg", 5, "--seed", 3, "--steps", 6,
        "--control", maps.file, "--controlnet", nets["random-sd15"], "--control-mask", tmp_path / "region.png",
        "--control-layers", "soft:0.8", "--control-half", "--cfg-interval", "0:0.7", "--cfg-rescale", 0.5,
        "--sampler", "euler_a",
    ]  # fmt: skip
    generate(*asked, "--size", "48x32", "--hires", "1.5:0.5", "--out", tmp_path / "o.png")
    generate(*asked, "--size", "48x32", "--out", tmp_path / "first.png")
    again = ["--size", "72x48", "--image", tmp_path / "first.png", "--strength", 0.5]
    generate(*asked, *again, "--out", tmp_path / "by-hand.png")
    assert np.array_equal(pixels(tmp_path / "o.png"), pixels(tmp_path / "by-hand.png"))


def test_in_a_batch_each_picture_goes_on_from_its_own(nets, maps):
    common = {
        "base": "random-sd15", "prompt": "x", "steps": 4, "seed": 5, "num": 3, "cfg": 3.0, "size": SMALL,
        "sampler": "euler_a", "controls": (Control(file=maps.file, weight=0.5),),
        "controlnets": (Net(name=str(nets["random-sd15"])),), "hires": Hires(scale=1.5),
    }  # fmt: skip
    plan = make_plan(Request(**common), lambda text: None)
    models = load_models(plan, **CPU)
    alone = list(paint(plan, models))
    heard = []
    together = list(
        paint(
            make_plan(Request(**common, batch_size=2), lambda text: None),
            models,
            execution=Execution(previews=1),
            progress=lambda *counts: heard.append(counts),
        )
    )
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.image.astype(int) - other.image).max() <= 1
    assert np.abs(alone[0].image.astype(int) - alone[1].image).max() > 1
    # Four steps and two, of three pictures; the last of a pass is no preview.
    assert heard[0] == (0, 18)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)
    assert heard[-1] == (18, 18)
    assert all(set(each.previews) == {"step-1", "step-2", "step-3", "hires-step-1"} for each in together)


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        ("model", "cpu"),
        pytest.param("model", "cuda", marks=pytest.mark.gpu),
        pytest.param("sequential", "cuda", marks=pytest.mark.gpu),
    ],
)
def test_two_pipelines_share_networks_that_come_and_go(kind, device, nets, maps):
    """Each pass has hooks of its own for them, and they take turns, batch after batch."""
    request = Request(
        base="random-sd15", prompt="x", steps=2, size=SMALL, hires=Hires(scale=1.5), num=2,
        controls=(Control(file=maps.file),), controlnets=(Net(name=str(nets["random-sd15"])),),
    )  # fmt: skip
    where = torch.device(device)
    made = []
    for way in (Execution(), Execution(offload=kind)):
        plan = make_plan(request, lambda text: None)
        models = load_models(plan, device=way.home(where), dtype=torch.float32)
        made.append(list(paint(plan, models, device=where, execution=way)))
    for there, away in zip(*made, strict=True):
        assert np.abs(there.image.astype(int) - away.image).max() <= 1


def test_a_preview_rarer_than_the_second_pass_is_long_is_of_the_first_alone():
    request = Request(base="random-sd15", prompt="x", steps=4, size=SMALL, hires=Hires(scale=1.5), num=2, batch_size=2)
    made = generate_pictures(request, **CPU, execution=Execution(previews=3))
    assert [set(each.previews) for each in made] == [{"step-3"}] * 2


def test_tiles_of_the_large_pass_do_not_reach_the_next_picture(monkeypatch, tmp_path):
    """The first pass is larger than a tile, and below what is tiled."""
    monkeypatch.setattr(execution, "TILED_FROM_PIXELS", 96 * 96)
    asked = ["--base", "random-sd15", "--prompt", "x", "--steps", 2, "--size", "80x80", "--hires", "1.5"]
    generate(*asked, "--seed", 1, "--num", 2, "--out", tmp_path / "two")
    generate(*asked, "--seed", 2, "--out", tmp_path / "alone.png")
    assert np.array_equal(pixels(tmp_path / "two" / "000002_seed2.png"), pixels(tmp_path / "alone.png"))
    settings = read_settings(tmp_path / "alone.png")
    assert (settings["vae_tiling"], settings["hires"]["vae_tiling"]) == (False, True)
    generate("--replay", tmp_path / "alone.png", "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "alone.png").read_bytes()


def test_it_is_replayed_and_its_maps_are_checked(nets, maps, tmp_path, capsys):
    out = tmp_path / "o.png"
    generate("--base", "random-sd15", "--control", maps.file, "--controlnet", nets["random-sd15"], "--steps", 3,
             "--size", "48x32", "--hires", "1.5:0.7", "--seed", 1, "--out", out)  # fmt: skip
    generate("--replay", out, "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
    with Image.open(out) as image:
        parameters = image.text["parameters"]
    assert re.search("Size: 48x32, .*Denoising strength: 0.7, Hires upscale: 1.5, Hires upscaler: Lanczos", parameters)
    settings = read_settings(out)
    settings["hires"]["controls"] = ["0" * 64]
    out.write_bytes(encode_picture(pixels(out), settings))
    capsys.readouterr()
    generate("--replay", out, "--out", tmp_path / "never.png", code=2)
    said = capsys.readouterr().err
    assert "edge.png: the same file, but what is made of it at 72x48 is not what it was" in said
    assert said.count("\n") == 1


def test_what_the_second_pass_does_is_said(capsys):
    said = []
    make_plan(Request(base="random-sd15", prompt="x", hires=Hires(scale=2, strength=0.25)), said.append)
    assert said[-1] == (
        "second pass: 64x64 enlarged to 128x128 by Lanczos in pixels, then 5 of 20 steps; random-sd15 paints at about "
        "64x64"
    )
    make_plan(Request(base="random-sd15", prompt="x", size=(32, 32), hires=Hires(scale=2)), said.append)
    assert said[-1].endswith("then 10 of 20 steps")


def test_a_sweep_of_its_strength():
    request = Request(prompt="x", hires=Hires(scale=2))
    row = cells(request, [Sweep.parse("hires-strength=0.3,0.6")])[0]
    assert [cell.hires for cell in row] == [Hires(scale=2, strength=0.3), Hires(scale=2, strength=0.6)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hires", "large"], "--hires 'large': expected SCALE or SCALE:STRENGTH, e.g. 2 or 2:0.5"),
        (["--hires", "1"], "hires=1:0.5: expected a SCALE above 1, at most 4"),
        (["--hires", "4.5"], "hires=4.5:0.5: expected a SCALE above 1, at most 4"),
        (["--hires", "2:0"], "hires=2:0: expected above 0 (the picture as it is) to 1 (all of it anew)"),
        (["--hires", "2:0.1", "--steps", "5"], "leaves none to walk; use --steps 10 or more, or --hires 2:0.2"),
        (["--hires", "1.01"], "--hires 1.01: 64x64 stays what it is, since the VAE needs multiples of"),
        (["--hires", "2", "--image", "p.png"], "hires=2: paints from text, then larger; to enlarge a picture of yours"),
        (["--hires", "2", "--image", "p.png", "--mask", "m.png"], "hires=2: paints from text, then larger"),
        (["--hires", "2", "--image", "p.png", "--outpaint", "0,0,8,0"], "hires=2: paints from text, then larger"),
        (["--hires", "2", "--strength", "0.5"], "strength=0.5: says how much of a picture changes"),
        (["--hires", "2:0.1", "--steps", "10", "--cfg-interval", "0:0.5"], "no step of 1 lies in it"),
    ],
)
def test_a_wrong_second_pass_is_one_line(arguments, words, tmp_path, capsys):
    generate("--base", "random-sd15", "--seed", 1, "--prompt", "x", *arguments, "--out", tmp_path / "o.png", code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.png").exists()
