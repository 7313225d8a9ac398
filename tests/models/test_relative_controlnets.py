"""Control-LoRAs and difference files: what a file adds to a base becomes the ControlNet that its definition says."""

import json

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import load_file, save_file

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.models.bases import Base, find_base
from controlkit.models.controlnets import begin_controlnet, find_controlnet, make_controlnet, save_controlnet
from controlkit.models.formats.unet import controlnet_to_ldm
from controlkit.models.random_base import build_random_base
from tests.models.test_names import same

RANK = 2


def moved_net(name, seed=0):
    """A ControlNet of which every weight is its own, and the base's weights it began from."""
    base = find_base(name)
    net = make_controlnet(base.load("unet"), vae_factor=8, latent_channels=4, seed=seed)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net, before


def control_lora(name):
    """(the ControlNet computed by hand, the tensors of its file in the published layout)."""
    net, before = moved_net(name)
    whole, file = net.state_dict(), {}
    generator = torch.Generator().manual_seed(1)
    for key, value in whole.items():
        module, _, kind = key.rpartition(".")
        if key.startswith("controlnet_") or kind == "bias" or value.ndim == 1:
            file[key] = value
            continue
        up, down = (torch.randn(shape, generator=generator) for shape in ((len(value), RANK), (RANK, *value.shape[1:])))
        if value.ndim == 4:
            up = up[:, :, None, None]
            product = torch.einsum("or,rihw->oihw", up[:, :, 0, 0], down)
        else:
            product = up @ down
        whole[key] = before[key] + product
        file |= {f"{module}.up": up, f"{module}.down": down}
    left_out = "mid_block.resnets.0.norm1.weight"  # then it is the base's
    whole[left_out] = before[left_out]
    del file[left_out]
    ldm = controlnet_to_ldm({key: value.contiguous() for key, value in file.items()}, net.config)
    return whole, {"lora_controlnet": torch.zeros(0), **ldm}


def difference(name):
    net, before = moved_net(name)
    whole, file = net.state_dict(), {}
    for key, value in whole.items():
        file[key] = value if key.startswith("controlnet_") else value - before[key]
    left_out = "time_embedding.linear_1.weight"  # too small a difference to be written
    whole[left_out] = before[left_out]
    del file[left_out]
    ldm = controlnet_to_ldm(file, net.config)
    return whole, {"difference": torch.ones(()), **{f"control_model.{key}": value for key, value in ldm.items()}}


KINDS = {"Control-LoRA": control_lora, "difference ControlNet": difference}


def written(kind, name, path):
    whole, file = KINDS[kind](name)
    save_file(file, path, metadata={"modelspec.preprocessor": "canny"})
    return whole


def close(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], atol=1e-5, rtol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("Control-LoRA", name) for name in ("random-sd15", "random-sd21", "random-sdxl")),
        ("difference ControlNet", "random-sd15-9ch"),
        ("difference ControlNet", "random-sdxl"),
    ],
)
def test_the_file_makes_the_net_of_its_definition(kind, name, tmp_path):
    """In float32 whatever it is asked in at the end, with every bias, and what the file leaves out from the base."""
    whole = written(kind, name, tmp_path / "x.safetensors")
    net = find_controlnet(str(tmp_path / "x.safetensors")).on(find_base(name))
    assert net.condition == "canny"
    loaded = net.load(torch_dtype=torch.float32)
    close(whole, loaded.state_dict())
    half = net.load(torch_dtype=torch.float16).state_dict()
    same({key: value.half() for key, value in loaded.state_dict().items()}, half)


@pytest.mark.parametrize("kind", KINDS)
def test_it_stands_wherever_a_controlnet_is_named(kind, tmp_path, dataset, capsys):
    """Painted with, converted, inspected, trained on: as the whole net."""
    path, out = tmp_path / "x.safetensors", tmp_path / "out"
    whole = written(kind, "random-sd15", path)
    assert main(["convert", str(path), str(out), "--to", "diffusers", "--base", "random-sd15", "-q"]) == 0
    close(whole, ControlNetModel.from_pretrained(out).state_dict())
    webui = tmp_path / "whole.safetensors"
    assert main(["convert", str(path), str(webui), "--to", "webui", "--base", "random-sd15", "-q"]) == 0
    close(whole, find_controlnet(str(webui)).load().state_dict())
    base = find_base("random-sd15")
    close(whole, begin_controlnet(base, None, str(path), seed=0).state_dict())

    control = next((dataset / "conditions" / "canny").glob("*.png"))
    pictures = []
    for number, net in enumerate((path, out)):
        picture = str(tmp_path / f"{number}.png")
        settings = ["--steps", "1", "--seed", "3", "--size", "64x64", "--device", "cpu", "-q"]
        assert main(["generate", "--control", str(control), "--base", "random-sd15", "--controlnet", str(net),
                     "--out", picture, *settings]) == 0  # fmt: skip
        pictures.append(np.asarray(Image.open(picture)).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1

    capsys.readouterr()
    assert main(["inspect", str(path), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["kind"], about["condition"]) == (kind, "canny")
    assert about["family"] == base.family
    assert about.get("ranks", {"2": 0}).keys() == {"2"}


def test_a_base_it_was_not_made_for_is_refused_before_a_weight_is_read(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    monkeypatch.setattr(Base, "tensors", lambda *_: pytest.fail("a weight was read"))
    for kind, name, other, words in [
        ("Control-LoRA", "random-sdxl", "random-sd15", r"is a Control-LoRA for SDXL .*, base 'random-sd15' is Stable"),
        (
            "difference ControlNet",
            "random-sd15",
            "random-sdxl",
            r"is a difference ControlNet for .*'random-sdxl' is SD",
        ),
    ]:
        written(kind, name, path)
        with pytest.raises(RequestError, match=words):
            find_controlnet(str(path)).on(find_base(other))
    build_random_base("random-sd15", tmp_path / "base", vae_factor=4)
    with pytest.raises(RequestError, match=r"reduces its map by 8, the VAE of base .* by 4"):
        find_controlnet(str(path)).on(find_base(str(tmp_path / "base")))


def test_what_is_not_whole_is_refused_in_one_line(tmp_path, capsys):
    path = tmp_path / "x.safetensors"
    _, file = control_lora("random-sd15")

    def refused(words, drop=(), **more):
        save_file({key: value for key, value in {**file, **more}.items() if key not in drop}, path)
        with pytest.raises(RequestError, match=words) as reason:
            find_controlnet(str(path)).on(find_base("random-sd15"))
        assert "\n" not in str(reason.value)

    refused("lacks 1 tensors of a ControlNet, e.g. 'controlnet_mid_block.bias'", drop=["middle_block_out.0.bias"])
    refused("holds half of a low-rank pair, 'time_embedding.linear_1.down'", drop=["time_embed.0.up"])
    refused("have no place in it", **{"input_blocks.99.0.op.bias": torch.ones(1)})
    refused("'conv_in.down' has shape .*, base 'random-sd15' has", **{"input_blocks.0.0.down": torch.ones(2, 9, 3, 3)})
    refused("has no hint encoder", drop=[key for key in file if key.startswith("input_hint_block")])

    save_file(file, path)
    before = sorted(tmp_path.iterdir())
    save_controlnet(moved_net("random-sd15")[0], tmp_path.parent / "whole-net", {})
    for arguments, words in [
        ([str(path), "--to", "diffusers"], "is: Control-LoRA, which holds only what a ControlNet adds to a base"),
        ([str(tmp_path.parent / "whole-net"), "--to", "diffusers", "--base", "random-sd15"], "leave out --base"),
    ]:
        source, *options = arguments
        assert main(["convert", source, str(tmp_path / "y"), *options]) == 2
        assert words in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    assert load_file(path).keys() == file.keys()
