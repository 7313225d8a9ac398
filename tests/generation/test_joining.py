"""Maps of several types for one ControlNet: joined into one hint, the picture that of diffusers' own pipeline."""

import json
import shutil

import numpy as np
import pytest
import torch

from controlkit.cli.main import main
from controlkit.generation.settings import read_settings
from controlkit.models.controlnets import find_controlnet
from tests.painting import own_pipeline, picture_of, pixels, strong_net

MAPS = ("canny", "grey")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return strong_net("random-sd15", tmp_path_factory.mktemp("net") / "union", condition=list(MAPS))


@pytest.fixture(scope="module")
def maps(two_types):
    return {type: two_types / "conditions" / type / "003.png.png" for type in MAPS}


def generate(net, out, *options, code=0):
    common = ["--base", "random-sd15", "--prompt", "a ball", "--steps", "3", "--cfg", "3", "--seed", "5"]
    assert main(["generate", *common, "--controlnet", str(net), "--out", str(out), *map(str, options), "-q"]) == code


def by_hand(base, net, given, weight=1.0):
    """diffusers' pipeline with the channels stacked as the model card says."""
    channels = [np.asarray(picture_of(given[type])) if type in given else np.zeros((64, 64, 3)) for type in MAPS]
    hint = torch.tensor(np.concatenate(channels, axis=2)).permute(2, 0, 1)[None].float() / 255
    pipeline = own_pipeline(base, [net])
    generator = torch.Generator().manual_seed(5)
    options = {"num_inference_steps": 3, "guidance_scale": 3.0, "controlnet_conditioning_scale": weight}
    return np.asarray(pipeline("a ball", image=hint, generator=generator, **options).images[0])


def test_the_picture_is_diffusers_own_with_stacked_channels(net, maps, tmp_path):
    both = ["--control", f"{maps['canny']}@0.7", "--control", f"{maps['grey']}@0.7"]
    generate(net, tmp_path / "both.png", *both)
    expected = by_hand("random-sd15", net, maps, 0.7)
    assert np.array_equal(pixels(tmp_path / "both.png"), expected)
    generate(net, tmp_path / "turned.png", *both[2:], *both[:2])  # in any order
    assert np.array_equal(pixels(tmp_path / "turned.png"), expected)
    generate(net, tmp_path / "one.png", "--control", maps["grey"])
    assert np.array_equal(pixels(tmp_path / "one.png"), by_hand("random-sd15", net, {"grey": maps["grey"]}))
    assert not np.array_equal(pixels(tmp_path / "one.png"), by_hand("random-sd15", net, maps))


def test_sdxl_takes_one_too(maps, tmp_path):
    net = strong_net("random-sdxl", tmp_path / "net", condition=list(MAPS))
    options = ["--base", "random-sdxl", "--control", f"grey={maps['grey']}", "--control", f"canny={maps['canny']}"]
    generate(net, tmp_path / "xl.png", *options)
    assert np.array_equal(pixels(tmp_path / "xl.png"), by_hand("random-sdxl", net, maps))


def test_beside_another_net_and_replayed(net, maps, two_types, tmp_path, capsys):
    """Two maps joined, a third for a ControlNet of its own."""
    other = strong_net("random-sd15", tmp_path / "other", seed=1)
    third = two_types / "conditions/canny/007.png.png"
    options = [
        "--controlnet",
        f"canny={other}",
        "--control",
        maps["grey"],
        "--control",
        maps["canny"],
        "--control",
        third,
    ]
    generate(net, tmp_path / "three.png", *options)
    controls = read_settings(tmp_path / "three.png")["controls"]
    assert [control["controlnet"]["number"] for control in controls] == [0, 0, 1]
    capsys.readouterr()
    assert main(["generate", "--replay", str(tmp_path / "three.png"), "--out", str(tmp_path / "again.png")]) == 0
    assert "the same picture" in capsys.readouterr().err
    assert np.array_equal(pixels(tmp_path / "again.png"), pixels(tmp_path / "three.png"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--control", "{canny}@0.5", "--control", "{grey}"], "differ in weight (0.5, 1), and ControlNet"),
        (["--control", "{bare}"], "bare.png does not say its type, and ControlNet"),
        (["--control", "depth={bare}"], "is a depth map, and no ControlNet is left that reads one: ControlNet"),
        (["--control", "{canny}", "--control", "canny={bare}"], "is a canny map, and no ControlNet is left that reads"),
    ],
)
def test_what_cannot_be_joined_is_one_line(net, maps, tmp_path, options, words, capsys):
    shutil.copy(maps["canny"], tmp_path / "bare.png")
    picture_of(maps["canny"]).save(tmp_path / "bare.png")
    files = {**maps, "bare": tmp_path / "bare.png"}
    generate(net, tmp_path / "out.png", *(option.format(**files) for option in options), code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_types_are_those_of_the_net(net, maps, tmp_path, capsys):
    generate(f"depth={net}", tmp_path / "out.png", "--control", maps["canny"], code=2)
    assert "reads canny and grey, and is asked for as depth" in capsys.readouterr().err
    folder = shutil.copytree(net, tmp_path / "net")
    notes = json.loads((folder / "controlkit.json").read_text())
    (folder / "controlkit.json").write_text(json.dumps({**notes, "condition": ["canny", "grey", "depth"]}))
    generate(folder, tmp_path / "out.png", "--control", maps["canny"], code=2)
    assert "reads maps of 6 channels; expected one that reads 9 for canny and grey and depth" in capsys.readouterr().err


def test_it_stays_in_diffusers_layout(net, tmp_path, capsys):
    assert main(["convert", str(net), str(tmp_path / "union.safetensors"), "--to", "webui"]) == 2
    assert "reads canny and grey at once, and webuis hand a ControlNet one map" in capsys.readouterr().err
    assert not (tmp_path / "union.safetensors").exists()
    assert find_controlnet(str(net)).condition is None


def test_evaluate_looks_at_one_type_and_leaves_the_others_black(net, maps, two_types, tmp_path, capsys):
    options = ["--data", two_types, "--base", "random-sd15", "--num", "2", "--steps", "3", "--cfg", "3", "--seed", "2"]
    arguments = ["evaluate", *map(str, options), "--out", str(tmp_path / "report"), "-q", "--controlnet"]
    assert main([*arguments, str(net)]) == 2
    assert "each of which is looked at alone; say which: --controlnet canny=" in capsys.readouterr().err
    assert main([*arguments, f"canny={net}"]) == 0
    cases = json.loads((tmp_path / "report/report.json").read_text())["cases"]
    one = two_types / "conditions/canny/001.png.png"
    hint = torch.cat([torch.from_numpy(np.array(picture_of(one))).permute(2, 0, 1) / 255, torch.zeros(3, 64, 64)])[None]
    painted = own_pipeline("random-sd15", [net])(
        cases[1]["prompt"], image=hint, num_inference_steps=3, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "report" / cases[1]["files"]["control"]), np.asarray(painted))
