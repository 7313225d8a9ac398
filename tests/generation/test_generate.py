"""`controlkit generate`: diffusers' own pixels, settings in the file, and wrong requests answered in one line."""

import hashlib
import json

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.generation.request import Control, Net, Request, parse_size
from controlkit.generation.settings import read_settings, weights_sha256
from controlkit.models.bases import find_base
from tests.conftest import draw_photo
from tests.painting import edges_of, pixels, reference

FAST = ["--steps", "3", "--quiet"]


def generate(*arguments, code=0):
    assert main(["generate", *FAST, *map(str, arguments)]) == code


def test_other_samplers_and_no_guidance(nets, edge, tmp_path):
    net = nets["random-sd15"]
    generate("--base", "random-sd15", "--controlnet", net, "--control", edge, "--seed", 2, "--sampler", "euler",
             "--cfg", 1, "--out", tmp_path / "o.png")  # fmt: skip
    expected = reference(
        "random-sd15", [net], [edge], scheduler=EulerDiscreteScheduler, options={}, prompt="", guidance_scale=1.0,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "o.png"), expected)


def test_picture_i_starts_from_seed_plus_i(nets, edge, tmp_path, capsys):
    common = ["--base", "random-sd15", "--controlnet", nets["random-sd15"], "--control", edge]
    generate(*common, "--seed", 7, "--num", 3, "--out", tmp_path / "three")
    paths = capsys.readouterr().out.split()
    assert [path.split("_")[-1] for path in paths] == ["seed7.png", "seed8.png", "seed9.png"]
    generate(*common, "--seed", 9, "--out", tmp_path / "one.png")
    assert np.array_equal(pixels(paths[2]), pixels(tmp_path / "one.png"))
    assert not np.array_equal(pixels(paths[1]), pixels(paths[2]))


def test_the_control_counts(nets, edge, tmp_path):
    common = ["--base", "random-sd15", "--controlnet", nets["random-sd15"], "--seed", 1]
    for weight in (0, 1):
        generate(*common, "--control", f"{edge}@{weight}", "--out", tmp_path / f"{weight}.png")
    assert not np.array_equal(pixels(tmp_path / "0.png"), pixels(tmp_path / "1.png"))


def test_the_png_holds_every_setting(nets, edge, tmp_path):
    out = tmp_path / "o.png"
    net = nets["random-sd15"]
    generate("--base", "random-sd15", "--controlnet", net, "--control", f"canny={edge}@0.9:0.1:0.8", "--prompt", "ü",
             "--negative", "n", "--seed", 4, "--cfg", 3.5, "--sampler", "ddim", "--size", "64x48",
             "--out", out)  # fmt: skip
    settings = read_settings(out)
    versions = settings.pop("versions")
    fitted = settings["controls"][0].pop("pixels_sha256")
    assert len(fitted) == 64
    assert settings == {
        "format": 1, "kind": "picture", "prompt": "ü", "negative": "n", "plain_prompt": False,
        "sampler": "ddim", "steps": 3, "cfg": 3.5,
        "eta": 0.0, "cfg_interval": [0.0, 1.0], "cfg_rescale": 0.0, "clip_skip": 1, "resize": "crop",
        "control_half": False, "control_every": 1, "vae_tiling": False,
        "seed": 4, "batch": {"size": 1, "place": 0, "mixed": False},
        "width": 64, "height": 48, "annotate": False, "image": None, "mask": None,
        "inpaint_controlnet": None, "hires": None, "upscale": None, "compile": None, "device": "cpu",
        "dtype": "float32",
        "base": {
            "name": "random-sd15", "sha256": weights_sha256(find_base("random-sd15").folder),
            "prediction": "epsilon", "tokenizer": None,
        },
        "vae": None, "loras": [], "hypernetworks": [], "embeddings": [],
        "controls": [{
            "file": str(edge), "type": "canny", "weight": 0.9, "start": 0.1, "end": 0.8, "mode": "balanced",
            "mask": None, "layers": None, "keypoints": None,
            "sha256": hashlib.sha256(edge.read_bytes()).hexdigest(),
            "controlnet": {"name": str(net), "sha256": weights_sha256(net), "number": 0},
        }],
    }  # fmt: skip
    assert set(versions) == {"controlkit", "torch", "diffusers", "transformers"}
    assert pixels(out).shape == (48, 64, 3)


def test_a_request_has_no_setting_that_the_png_lacks():
    """A new field of a request must be written down with the picture."""
    fields = set(Request.__dataclass_fields__) - {"num", "batch_size"}  # these are "batch"
    written = {"prompt", "negative", "plain_prompt", "base", "controls", "sampler", "steps", "cfg", "seed", "annotate"}
    written |= {"vae", "loras", "hypernetworks", "embeddings", "control_half", "control_every"}
    written |= {"image", "mask", "hires", "upscale", "eta", "cfg_interval", "cfg_rescale", "clip_skip", "resize"}
    # Beside their controls; as width and height; beside the base; beside the image.
    assert fields - written == {"controlnets", "size", "prediction", "tokenizer", "strength"}


def test_the_same_weights_have_the_same_hash_under_any_name(nets, tmp_path):
    import shutil

    shutil.copytree(nets["random-sd15"], tmp_path / "elsewhere")
    assert weights_sha256(tmp_path / "elsewhere") == weights_sha256(nets["random-sd15"])
    assert weights_sha256(nets["second"]) != weights_sha256(nets["random-sd15"])


def test_a_photograph_is_annotated_on_request_and_its_map_kept(nets, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(draw_photo(0, 96, 64)).save(photo)
    common = ["--base", "random-sd15", "--controlnet", nets["random-sd15"], "--seed", 1]
    generate(*common, "--control", photo, "--annotate", "--out", tmp_path / "o.png")
    kept = tmp_path / "o.canny.png"
    assert np.array_equal(pixels(kept), edges_of(draw_photo(0, 96, 64))[:, :, 0])
    generate(*common, "--control", kept, "--out", tmp_path / "again.png")
    assert np.array_equal(pixels(tmp_path / "o.png"), pixels(tmp_path / "again.png"))


def test_numbers_go_on_and_nothing_is_written_over(nets, edge, tmp_path):
    folder = tmp_path / "out"
    for _ in range(2):
        generate(
            "--base",
            "random-sd15",
            "--controlnet",
            nets["random-sd15"],
            "--control",
            edge,
            "--seed",
            1,
            "--out",
            folder,
        )
    assert sorted(path.name for path in folder.iterdir()) == ["000001_seed1.png", "000002_seed1.png"]


def test_json_answers_with_one_object(nets, edge, tmp_path, capsys):
    arguments = ["--base", "random-sd15", "--controlnet", nets["random-sd15"], "--control", edge, "--json"]
    assert main(["generate", *map(str, arguments), "--steps", "1", "--out", str(tmp_path / "o.png")]) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert answer["pictures"][0]["path"] == str(tmp_path / "o.png")
    assert f"seed: {answer['pictures'][0]['seed']}" in captured.err  # a seed that was drawn is said


def test_without_a_base_the_one_that_comes_with_the_package_serves_and_says_so(nets, edge, tmp_path, capsys):
    arguments = ["--controlnet", nets["toybox"], "--control", edge, "--seed", 1, "--steps", 1]
    assert main(["generate", *map(str, arguments), "--out", str(tmp_path / "o.png")]) == 0
    assert "a real one: --base FOLDER_FILE_OR_ID" in capsys.readouterr().err


# Sizes


def test_a_map_of_another_size_is_fitted_and_said(nets, edge, tmp_path, capsys):
    def paint(*arguments):
        common = ["--base", "random-sd15", "--controlnet", nets["random-sd15"], "--seed", 1, "--steps", 1]
        assert main(["generate", *map(str, [*common, *arguments])]) == 0

    paint("--control", edge, "--size", "64x64", "--out", tmp_path / "a.png")
    assert "its middle is used, 33% is cut off" in capsys.readouterr().err
    assert pixels(tmp_path / "a.png").shape == (64, 64, 3)
    large = tmp_path / "large.png"
    Image.fromarray(edges_of(draw_photo(0, 900, 601))).save(large)
    paint("--control", large, "--out", tmp_path / "b.png")
    assert "painting at 80x56 for a map of 900x601: random-sd15 paints at about 64x64" in capsys.readouterr().err
    assert pixels(tmp_path / "b.png").shape == (56, 80, 3)


# Bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "70x64"], "--size 70x64: the base's VAE needs multiples of 8; use 72x64"),
        (["--size", "large"], "--size 'large': expected WIDTHxHEIGHT"),
        (["--sampler", "eulr"], "unknown sampler 'eulr': did you mean 'euler"),
        (["--num", "0"], "num=0: expected at least 1"),
        (["--steps", "1001"], "1001 steps: the schedule of this base has 1000; expected 1 to 1000"),
        (["--cfg", "-1"], "cfg=-1: expected 0 or more"),
        (["--seed", "-1"], "seed=-1: expected 0 to"),
        (
            ["--base", "random-sdxl"],
            "was made for Stable Diffusion (cross_attention_dim 32), base 'random-sdxl' is SDXL",
        ),
        (["--base", "random-sd15-9ch"], "is an inpainting base"),
        (["--base", "nothing"], "base 'nothing': no such folder"),
        (["--controlnet", "nothing"], "ControlNet 'nothing': no such folder"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--out", "/proc/x"], "--out '/proc/x' cannot be written"),
        (["--num", "2"], "is one file, --num 2 are several pictures"),
        (["--control", "other.png"], "2 control maps, 1 ControlNets: expected as many"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(nets, edge, tmp_path, capsys, arguments, words):
    request = ["--base", "random-sd15", "--control", str(edge), "--seed", "1", "--out", str(tmp_path / "o.png")]
    if "--controlnet" not in arguments:
        request += ["--controlnet", str(nets["random-sd15"])]
    generate(*request, *arguments, code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"edge.png"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: path.write_text("x"), "no picture"),
        (
            lambda path: Image.fromarray(draw_photo(1)).save(path),
            "this is a photograph, not a canny map; add --annotate",
        ),
        (
            lambda path: Image.fromarray(255 - edges_of(draw_photo(1))).save(path),
            "invert the picture",
        ),
    ],
)
def test_a_bad_control_file_is_refused(nets, tmp_path, capsys, make, words):
    path = tmp_path / "c.png"
    make(path)
    generate(
        "--base",
        "random-sd15",
        "--control",
        path,
        "--controlnet",
        nets["random-sd15"],
        "--out",
        tmp_path / "o.png",
        code=2,
    )
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o.png").exists()


def test_annotating_a_map_again_is_refused(nets, dataset, tmp_path, capsys):
    path = dataset / "conditions/canny/000.png.png"
    generate("--base", "random-sd15", "--control", path, "--annotate", "--controlnet", nets["random-sd15"],
             "--out", tmp_path / "o.png", code=2)  # fmt: skip
    assert "is a canny map already; leave out --annotate" in capsys.readouterr().err


def test_an_untyped_map_is_guessed_and_said(nets, edge, tmp_path, capsys):
    arguments = ["--base", "random-sd15", "--control", edge, "--controlnet", nets["untyped"], "--steps", 1]
    assert main(["generate", *map(str, arguments), "--out", str(tmp_path / "o.png")]) == 0
    assert "edge.png looks like a canny map and is taken for one" in capsys.readouterr().err


# Parsing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("edge.png", Control(file="edge.png")),
        ("canny=edge.png@0.5", Control(file="edge.png", type="canny", weight=0.5)),
        ("a@1:0.2", Control(file="a", weight=1.0, start=0.2)),
        ("a@.5:0:.8", Control(file="a", weight=0.5, end=0.8)),
        ("me@home.png", Control(file="me@home.png")),
        ("me@home.png@2", Control(file="me@home.png", weight=2.0)),
        ("x=y/edge.png", Control(file="x=y/edge.png")),
        ("a@1:2:3:4", Control(file="a@1:2:3:4")),
        ("a@-1", Control(file="a", weight=-1.0)),
    ],
)
def test_a_control_is_parsed(text, expected):
    parsed = Control.parse(text)
    assert (str(parsed.file), parsed.type, parsed.weight, parsed.start, parsed.end) == (
        expected.file, expected.type, expected.weight, expected.start, expected.end,
    )  # fmt: skip


def test_a_window_that_is_none_is_refused():
    with pytest.raises(RequestError, match=r"from 0\.8 to 0\.2: expected 0 <= START < END <= 1"):
        Control.parse("a@1:0.8:0.2")


def test_nets_and_sizes_are_parsed():
    assert Net.parse("canny=a/b") == Net(name="a/b", type="canny")
    assert Net.parse("a=b") == Net(name="a=b")
    assert parse_size("512x768") == (512, 768)
