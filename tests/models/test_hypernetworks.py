"""Hypernetworks: every way webuis write them, and what they do to keys and values, by a direct computation."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.models.bases import find_base
from controlkit.models.formats.hypernetworks import (
    Hypernetwork,
    add_hypernetworks,
    find_hypernetworks,
    read_hypernetwork,
)
from controlkit.models.formats.reading import read_tensors
from tests.painting import pixels


def chain(width, structure, activation=None, *, norm=False, dropout=False, activate_output=True):
    """What a webui builds of such settings; dropout, which is nothing after the training, takes a number too."""
    parts = []
    for number, (reads, writes) in enumerate(itertools.pairwise(structure)):
        last = number == len(structure) - 2
        parts.append(nn.Linear(width * reads, width * writes))
        if activation and (activate_output or not last):
            parts.append(activation())
        if norm:
            parts.append(nn.LayerNorm(width * writes))
        if dropout and not last:
            parts.append(nn.Dropout(0.3))
    return nn.Sequential(*parts).eval()


def write(path, nets, **facts):
    """`nets`: width -> (of the keys, of the values)."""
    named = {
        width: tuple({f"linear.{name}": value for name, value in net.state_dict().items()} for net in both)
        for width, both in nets.items()
    }
    torch.save({**named, "step": 100, "name": "thing", **facts}, path)
    return path


def reader(width):
    """A layer that hands on what it was given, as the projection for keys of something that reads that width."""
    layer = nn.Module()
    layer.to_k = nn.Linear(width, width, bias=False)
    layer.to_k.weight.data = torch.eye(width)
    return layer


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("activate_output", [False, True, None])
@pytest.mark.parametrize(
    ("name", "activation"),
    [("linear", None), (None, None), ("relu", nn.ReLU), ("swish", nn.Hardswish), ("elu", nn.ELU)],
)
@torch.no_grad()
def test_it_adds_its_network_to_what_keys_are_made_of(name, activation, norm, dropout, activate_output, tmp_path):
    torch.manual_seed(0)
    how = {"norm": norm, "dropout": dropout, "activate_output": activate_output is not False}
    net, other = (chain(6, [1, 2, 2, 1], activation, **how) for _ in range(2))
    facts = {} if activate_output is None else {"activate_output": activate_output}
    path = write(tmp_path / "x.pt", {6: (net, other)}, layer_structure=[1, 2, 2, 1], activation_func=name, **facts)
    layer, c = reader(6), torch.randn(2, 5, 6)
    add_hypernetworks(layer, [read_hypernetwork(read_tensors(path), "x", 0.7)])
    torch.testing.assert_close(layer.to_k(c), c + 0.7 * net(c))


@torch.no_grad()
def test_the_first_files_called_their_layers_otherwise(tmp_path):
    """Without a word on structure or activation."""
    net = chain(6, [1, 2, 1])
    old = {
        f"linear{number}.{role}": net[number - 1].state_dict()[role] for number in (1, 2) for role in ("weight", "bias")
    }
    torch.save({6: (old, old), "step": 1}, tmp_path / "x.pt")
    layer, c = reader(6), torch.randn(2, 5, 6)
    add_hypernetworks(layer, [read_hypernetwork(read_tensors(tmp_path / "x.pt"), "x")])
    torch.testing.assert_close(layer.to_k(c), c + net(c))


@torch.no_grad()
def test_a_unet_paints_as_with_other_projections(tmp_path):
    """Linear ones without bias fold into the weights: W (1 + m B A), of two files one after the other."""
    torch.manual_seed(0)
    base = find_base("random-sd15")
    widths = sorted({base.unet["cross_attention_dim"], *base.unet["block_out_channels"]})
    asked, folded, ours = [], base.load("unet"), base.load("unet")
    for number, weight in enumerate((0.8, -0.5)):
        nets = {width: (chain(width, [1, 2, 1]), chain(width, [1, 2, 1])) for width in widths}
        for net in itertools.chain(*nets.values()):
            for linear in net:
                linear.bias.data.zero_()
        asked.append(Hypernetwork(write(tmp_path / f"{number}.pt", nets, layer_structure=[1, 2, 1]), weight))
        for name, module in folded.named_modules():
            if name.endswith(("to_k", "to_v")):
                first, second = nets[module.in_features][name.endswith("to_v")]
                folding = torch.eye(module.in_features) + weight * second.weight @ first.weight
                # The first file changes what the second reads: it stands on the right.
                module.inner = folding @ getattr(module, "inner", torch.eye(module.in_features))
    for _, module in folded.named_modules():
        if hasattr(module, "inner"):
            module.weight.data = module.weight @ module.inner
    add_hypernetworks(ours, find_hypernetworks(base, tuple(asked)))
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, base.unet["cross_attention_dim"])
    before, expected = base.load("unet")(sample, 5, text).sample, folded(sample, 5, text).sample
    made = ours(sample, 5, text).sample
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    assert (made - before).abs().max() > 1e-2


def test_a_picture_is_painted_with_it_and_inspect_names_it(tmp_path, capsys):
    net = chain(32, [1, 2, 1], nn.ReLU)
    path = write(tmp_path / "thing.pt", {32: (net, net)}, layer_structure=[1, 2, 1], activation_func="relu")
    common = [
        "generate",
        "-q",
        "--base",
        "random-sd15",
        "--prompt",
        "x",
        "--size",
        "32x32",
        "--steps",
        "1",
        "--seed",
        "1",
    ]
    for weight in (0, 2):
        assert main([*common, "--hypernetwork", f"{path}@{weight}", "--out", str(tmp_path / f"{weight}.png")]) == 0
    assert (pixels(tmp_path / "0.png") != pixels(tmp_path / "2.png")).any()
    capsys.readouterr()
    write(tmp_path / "wide.pt", {width: (net, net) for width in (320, 768)})
    assert main(["inspect", str(tmp_path / "wide.pt"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["kind"], about["family"], about["facts"]["name"]) == ("hypernetwork", "SD 1.x", "thing")


def test_what_cannot_be_used_is_one_line(tmp_path):
    base, good, wide = find_base("random-sd15"), chain(32, [1, 2, 1]), chain(768, [1, 1])

    def refused(words, nets, **facts):
        with pytest.raises(RequestError, match=words) as refusal:
            find_hypernetworks(base, (Hypernetwork(write(tmp_path / "x.pt", nets, **facts)),))
        assert "\n" not in str(refusal.value)

    refused(r"was made for SD 1\.x \(it reads 768 values\), base 'random-sd15' is", {768: (wide, wide)})
    refused("its activation 'bogus' is none that torch has", {32: (good, good)}, activation_func="bogus")
    refused("its networks for width 32 are not whole", {32: (good,)})
    refused("its network for to_k of width 32 is not whole", {32: (good[1:], good)})
    torch.save({"linear.weight": torch.ones(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(RequestError, match="is: unknown; expected a hypernetwork"):
        find_hypernetworks(base, (Hypernetwork(tmp_path / "x.pt"),))
    assert Hypernetwork.parse("a@b.pt@0.5") == Hypernetwork(Path("a@b.pt"), 0.5)
