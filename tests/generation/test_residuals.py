"""Where a control holds and in which layers: closed forms on residuals, and the old bits where nothing is weighed."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.generation.generate import load_models, paint
from controlkit.generation.options import request_of
from controlkit.generation.plan import make_plan
from controlkit.generation.request import parse_controls
from controlkit.generation.residuals import layer_weights, residual_count, weighed_residuals
from controlkit.generation.settings import read_settings
from controlkit.models.controlnets import find_controlnet
from tests.conftest import draw_photo
from tests.painting import edges_of, strong_net


def generate(*arguments, code=0):
    assert main(["generate", "--quiet", *map(str, arguments)]) == code


def one():
    return torch.Generator().manual_seed(1)


def residuals(net, weights=None, region=None):
    sample, text = torch.randn(2, 4, 8, 8, generator=one()), torch.randn(2, 7, 32, generator=one())
    with torch.no_grad(), weighed_residuals([net], [weights], [region], factor=8):
        down, middle = net(sample, 5, text, torch.rand(2, 3, 64, 64, generator=one()), return_dict=False)
    return [*down, middle]


def test_each_residual_is_weighed_by_its_layer_and_by_the_white_in_its_cells(nets):
    net = find_controlnet(str(nets["random-sd15"])).load()
    plain = residuals(net)
    weights = [0.1 * number for number in range(len(plain))]
    region = draw_photo(2, 64, 64)
    for number, (before, after) in enumerate(zip(plain, residuals(net, weights, region), strict=True)):
        side = before.shape[-1]
        cells = region.mean(axis=2).reshape(side, 64 // side, side, 64 // side).mean(axis=(1, 3)) / 255
        expected = before * weights[number] * torch.from_numpy(cells).float()
        assert before.abs().max() > 0
        torch.testing.assert_close(after, expected)
    assert all(map(torch.equal, residuals(net), plain))  # nothing stayed behind


@pytest.mark.parametrize("name", ["random-sd15", "random-sdxl", "toybox"])
def test_there_are_as_many_residuals_as_the_config_says(name, nets):
    net = find_controlnet(str(nets[name]))
    count = residual_count(net.config)
    assert count == len(net.load().controlnet_down_blocks) + 1
    assert count == {"random-sd15": 13, "random-sdxl": 10}.get(name, count)


def test_soft_weights_fall_towards_the_fine_layers():
    assert layer_weights("soft", 13) == [0.825 ** (12 - i) for i in range(13)]
    assert layer_weights("soft:0.5", 3) == [0.25, 0.5, 1]
    assert layer_weights("1, .5,-2", 3) == [1, 0.5, -2]


@pytest.fixture
def picture(tmp_path):
    """What two controls of SDXL are given, and masks of their size."""
    for number in range(2):
        Image.fromarray(edges_of(draw_photo(number, 64, 48))).save(tmp_path / f"{number}.png")
    for name, grey in [("white", 255), ("black", 0)]:
        Image.fromarray(np.full((48, 64), grey, np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_white_masks_and_weights_of_one_change_no_bit_and_a_black_mask_is_weight_0(nets, picture, tmp_path):
    """Two controls of SDXL, one of them in a window; each map is still encoded once, and nothing computed in vain."""
    folders = [nets["random-sdxl"], strong_net("random-sdxl", tmp_path / "net", seed=1)]
    common = {"base": "random-sdxl", "prompt": "a red ball", "steps": 2, "controlnet": [*map(str, folders)]}
    first, second, white, black = (str(picture / f"{name}.png") for name in ("0", "1", "white", "black"))
    window = {"control": [first, f"{second}@1:0:0.5"]}
    ways = {
        "plain": window,
        "white": {**window, "control-mask": white, "control-layers": ",".join(["1"] * 10)},
        "alone": {"control": [first, f"{second}@0"]},
        "black": {"control": [first, second], "control-mask": ["none", black]},
    }
    made, models = {}, None
    for name, more in ways.items():
        plan = make_plan(request_of({**common, **more}), lambda text: None)
        models = models or load_models(plan, device="cpu", dtype=torch.float32)
        encoded = []
        hooks = [
            net.controlnet_cond_embedding.conv_in.register_forward_hook(lambda *_, seen=encoded: seen.append(1))
            for net in models.nets
        ]
        (made[name],) = (each.image for each in paint(plan, models))
        assert len(encoded) == (1 if name == "alone" else 2), name
        for hook in hooks:
            hook.remove()
    assert np.array_equal(made["white"], made["plain"])
    assert np.array_equal(made["black"], made["alone"])
    assert not np.array_equal(made["plain"], made["alone"])


def test_requests_and_replays_keep_them(nets, picture, tmp_path, capsys):
    """Also where the mask has another shape than the picture; and a mask that has changed is named."""
    Image.fromarray(draw_photo(5, 90, 48)).save(tmp_path / "wide.png")
    line = {"prompt": "x", "control": f"canny={picture / '0.png'}", "controlnet": str(nets["random-sd15"]),
            "control-mask": f"canny={tmp_path / 'wide.png'}", "control-layers": "soft:0.7"}  # fmt: skip
    (tmp_path / "requests.jsonl").write_text(json.dumps(line), encoding="utf-8")
    generate("--base", "random-sd15", "--steps", 2, "--requests", tmp_path / "requests.jsonl", "--out", tmp_path / "o")
    (made,) = (tmp_path / "o").iterdir()
    (control,) = read_settings(made)["controls"]
    assert (control["mask"]["file"], control["layers"]) == (str(tmp_path / "wide.png"), "soft:0.7")
    generate("--replay", made, "--out", tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == made.read_bytes()
    shutil.copy(picture / "white.png", tmp_path / "wide.png")
    generate("--replay", made, "--out", tmp_path / "again.png", code=2)
    assert f"--control-mask {tmp_path / 'wide.png'}: has changed since" in capsys.readouterr().err


# What is said of each control


def test_masks_and_layers_pair_by_order_or_type():
    def paired(*masks):
        controls = parse_controls(("canny=a.png", "depth=b.png"), masks=masks)
        return [str(control.mask) if control.mask else None for control in controls]

    assert paired() == [None, None]
    assert paired("m.png") == ["m.png", "m.png"]
    assert paired("none", "m.png") == [None, "m.png"]
    assert paired("depth=m.png") == [None, "m.png"]
    assert paired("depth=m.png", "canny=n.png") == ["n.png", "m.png"]
    (control,) = parse_controls(("a.png",), ("prompt",), layers=("1,0",))
    assert (control.mode, control.layers) == ("prompt", "1,0")
    with pytest.raises(RequestError, match=r"control mask pose=…: no control has that type; say --control pose=FILE"):
        paired("pose=m.png")
    with pytest.raises(RequestError, match="2 control layers for 3 controls; expected one for all, or one for each"):
        parse_controls(("a", "b", "c"), layers=("1", "2"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--control-mask", "nothing.png"], "nothing.png: there is no such file"),
        (["--control-layers", "hard"], "control layers 'hard': expected a number for each residual, fine ones first"),
        (["--control-layers", "1,0.5"], "control layers '1,0.5': 2 weights; expected 13, a weight a residual"),
    ],
)
def test_a_wrong_one_is_one_line(nets, edge, arguments, words, tmp_path, capsys):
    generate("--base", "random-sd15", "--control", edge, "--controlnet", nets["random-sd15"], "--seed", 1, *arguments,
             "--out", tmp_path / "o.png", code=2)  # fmt: skip
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.png").exists()
