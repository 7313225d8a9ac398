"""`--replay`: the same bytes again from a PNG's own settings, and every file that is not as it was is named."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from controlkit.cli.main import main
from controlkit.generation.request import Request
from controlkit.generation.settings import encode_picture, read_settings
from controlkit.models.bases import find_base
from tests.conftest import draw_photo
from tests.painting import edges_of, pixels

# What a webui reads fields with: a name, a colon, and a quoted value or one without a comma.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def generate(*arguments, code=0):
    assert main(["generate", *map(str, arguments)]) == code


@pytest.fixture
def materials(nets, tmp_path):
    """Everything a picture can be made from, in a folder whose files may be spoilt."""
    folder = tmp_path / "materials"
    folder.mkdir()
    for number in (0, 1):
        Image.fromarray(edges_of(draw_photo(number, 48, 32))).save(folder / f"edge{number}.png")
    Image.fromarray(draw_photo(2, 60, 32)).save(folder / "start.png")
    shutil.copytree(nets["random-sd15"], folder / "net")
    shutil.copytree(nets["second"], folder / "second")
    shutil.copytree(find_base("random-sd15").folder / "vae", folder / "vae")
    layer = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    width = find_base("random-sd15").unet["block_out_channels"][0]
    factors = {"lora_down.weight": torch.ones(2, width), "lora_up.weight": torch.ones(width, 2)}
    save_file({f"lora_unet_{layer}.{name}": value for name, value in factors.items()}, folder / "lora.safetensors")
    layers = {f"linear.{number}.{name}": torch.ones(*shape) for number in (0, 1) for name, shape in
              [("weight", (32, 32)), ("bias", (32,))]}  # fmt: skip
    torch.save({32: (layers, layers), "layer_structure": [1, 1, 1]}, folder / "hyper.pt")
    save_file({"emb_params": torch.ones(2, 32)}, folder / "wiggle.safetensors")
    return folder


def paint_all(materials, out):
    """Every setting away from its default."""
    generate(
        "--quiet", "--base", "random-sd15", "--prompt", "ü, a wiggle", "--negative", "blurry: n", "--size", "40x32",
        "--control", f"canny={materials / 'edge0.png'}@0.8:0.1:0.9", "--controlnet", materials / "net",
        "--control", f"{materials / 'edge1.png'}@0.3", "--controlnet", materials / "second",
        "--control-mode", "prompt", "--control-mode", "control", "--resize", "pad", "--image", materials / "start.png",
        "--strength", 0.7, "--sampler", "ddim", "--eta", 0.4, "--steps", 3, "--cfg", 6.5, "--cfg-rescale", 0.3,
        "--cfg-interval", "0:0.9", "--control-every", 2,
        "--lora", f"{materials / 'lora.safetensors'}@0.4", "--embedding", materials / "wiggle.safetensors",
        "--hypernetwork", f"{materials / 'hyper.pt'}@0.6",
        "--vae", materials / "vae", "--clip-skip", 2, "--plain-prompt", "--seed", 11, "--out", out,
    )  # fmt: skip


def test_the_same_file_comes_out(materials, tmp_path, capsys):
    paint_all(materials, tmp_path / "o.png")
    generate("--replay", tmp_path / "o.png", "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "o.png").read_bytes()
    assert f"the same picture as {tmp_path / 'o.png'}, bit for bit" in capsys.readouterr().err


def test_no_default_stood_in_for_a_setting(materials, tmp_path):
    """The test above tells only of settings that were not left at their defaults: they all were not."""
    from controlkit.generation.replay import open_replay

    paint_all(materials, tmp_path / "o.png")
    request = open_replay(tmp_path / "o.png").request
    plain = Request(prompt="x")
    same = {name for name in Request.__dataclass_fields__ if getattr(request, name) == getattr(plain, name)}
    # A base in a folder has its own; one picture; maps were given; their modes decide on guidance's halves; masks,
    # second passes and upscaled pictures are replayed in their own tests.
    assert same == {"tokenizer", "num", "batch_size", "annotate", "control_half", "mask", "hires", "upscale"}


def test_pictures_of_a_run_of_several_and_of_photographs_are_replayed(materials, tmp_path, capsys):
    generate("--quiet", "--base", "random-sd15", "--control", materials / "start.png", "--annotate", "--controlnet",
             materials / "net", "--steps", 2, "--num", 3, "--batch-size", 2, "--seed", 3,
             "--out", tmp_path / "two")  # fmt: skip
    second = capsys.readouterr().out.split()[1]
    generate("--quiet", "--replay", second, "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "two" / second.split("/")[-1]).read_bytes()
    assert (tmp_path / "again.canny.png").exists()


def test_every_file_that_is_not_as_it_was_has_a_line(materials, tmp_path, capsys):
    out = tmp_path / "o.png"
    paint_all(materials, out)
    (materials / "edge0.png").unlink()
    Image.fromarray(draw_photo(9, 60, 32)).save(materials / "start.png")
    shutil.copy(materials / "second/diffusion_pytorch_model.safetensors", materials / "net")
    shutil.rmtree(materials / "second")
    generate("--replay", out, "--out", tmp_path / "again.png", code=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    for words in (
        f"--control {materials / 'edge0.png'}: {out} was made with it, and it cannot be read (No such file",
        f"--controlnet {materials / 'net'}: has changed since {out} was made: SHA-256 ",
        f"--controlnet {materials / 'second'}: {out} was made with it (ControlNet",
        f"--image {materials / 'start.png'}: has changed since {out} was made: SHA-256 ",
    ):
        assert sum(words in line for line in lines) == 1, words
    assert not (tmp_path / "again.png").exists()


def rewritten(path, change):
    """The same picture with other settings inside."""
    settings = read_settings(path)
    change(settings)
    path.write_bytes(encode_picture(pixels(path), settings))


def test_other_versions_and_other_pixels_are_said(tmp_path, capsys):
    out = tmp_path / "o.png"
    generate("--quiet", "--base", "random-sd15", "--prompt", "x", "--size", "32x32", "--steps", 1, "--seed", 1,
             "--out", out)  # fmt: skip
    rewritten(out, lambda settings: settings["versions"].update(torch="1.0", diffusers="0.1"))
    image = pixels(out).copy()
    image[0, 0, 0] ^= 16
    out.write_bytes(encode_picture(image, read_settings(out)))
    generate("--replay", out, "--out", tmp_path / "again.png")
    said = capsys.readouterr().err
    assert re.search(r"was made with torch 1\.0, here is \S+; diffusers 0\.1, here is \S+: pixels may differ", said)
    assert f"not the picture in {out}: its pixels differ by up to 16 of 255" in said


def test_a_map_that_comes_out_otherwise_is_refused(materials, tmp_path, capsys):
    """Another annotator or decoder, with the same file."""
    out = tmp_path / "o.png"
    generate("--quiet", "--base", "random-sd15", "--control", materials / "start.png", "--annotate", "--controlnet",
             materials / "net", "--steps", 1, "--seed", 3, "--out", out)  # fmt: skip
    rewritten(out, lambda settings: settings["controls"][0].update(pixels_sha256="0" * 64))
    generate("--replay", out, "--out", tmp_path / "again.png", code=2)
    assert "the same file, but what is made of it at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "more", "words"),
    [
        (lambda path: None, [], "there is no such file"),
        (lambda path: Image.fromarray(draw_photo(0)).save(path), [], "holds no settings of controlkit"),
        (lambda path: path.write_bytes(encode_picture(draw_photo(0), {"base": "toybox", "seed": 1})), [],
         "was not made by `controlkit generate`"),
        (lambda path: None, ["--prompt", "x", "--steps", "3"], "leave out --prompt, --steps"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_one_line(make, more, words, tmp_path, capsys):
    path = tmp_path / "p.png"
    make(path)
    generate("--replay", path, *more, "--out", tmp_path / "again.png", code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "again.png").exists()


def test_other_tools_read_the_parameters(materials, tmp_path):
    """Parsed by the grammar of webuis; the quoted ControlNet by the same once more."""
    paint_all(materials, tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as image:
        lines = image.text["parameters"].split("\n")
    assert lines[:2] == ["ü, a wiggle <lora:lora:0.4> <hypernet:hyper:0.6>", "Negative prompt: blurry: n"]
    fields = dict(FIELD.findall(lines[2]))
    assert fields.pop("Version").startswith("controlkit ")
    first = dict(FIELD.findall(json.loads(fields.pop("ControlNet 0"))))
    second = dict(FIELD.findall(json.loads(fields.pop("ControlNet 1"))))
    assert fields == {
        "Steps": "3", "Sampler": "DDIM", "Schedule type": "Automatic", "CFG scale": "6.5", "Seed": "11",
        "Size": "40x32", "Model": "random-sd15", "VAE": "vae",
        "Denoising strength": "0.7", "Eta DDIM": "0.4", "Clip skip": "2",
    }  # fmt: skip
    assert first == {
        "Module": "none", "Model": "net", "Weight": "0.8", "Resize Mode": "Resize and Fill", "Guidance Start": "0.1",
        "Guidance End": "0.9", "Control Mode": "My prompt is more important",
    }  # fmt: skip
    assert second["Control Mode"] == "ControlNet is more important"


def test_every_sampler_has_a_name_there():
    from controlkit.diffusion.samplers import SAMPLERS
    from controlkit.generation.infotext import infotext

    plain = {"prompt": "p", "negative": "", "plain_prompt": False,
             "loras": [{"file": "a/b.safetensors", "weight": 0.5}], "hypernetworks": [], "steps": 1,
             "cfg": 1.0, "seed": 1, "width": 8, "height": 8, "vae": None, "image": None, "mask": None, "hires": None,
             "upscale": None, "eta": 0.0, "clip_skip": 1, "controls": [],
             "base": {"name": "a/m.safetensors", "sha256": "0123456789abcdef"},
             "versions": {"controlkit": "0"}}  # fmt: skip
    texts = [infotext({**plain, "sampler": name}) for name in SAMPLERS]
    assert len(set(texts)) == len(SAMPLERS)
    assert all(text.startswith("p <lora:b:0.5>\nSteps: 1, Sampler: ") for text in texts)
    assert all("Model hash: 0123456789, Model: m" in text for text in texts)
    assert np.all(["Karras" in text for text in texts] == np.array([name.endswith("karras") for name in SAMPLERS]))
