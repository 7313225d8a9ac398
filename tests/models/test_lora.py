"""A LoRA of any tool changes each weight by what its formula says, layer by layer, each with its own rank and alpha."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.generation.settings import read_settings
from controlkit.models.bases import find_base
from controlkit.models.formats.lora import Lora, apply_loras, plan_loras
from controlkit.models.formats.lora_deltas import weight_delta
from controlkit.models.formats.names import renamed
from controlkit.models.formats.unet import unet_table


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def close(one, other):
    torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=1e-5)


def test_lora_and_locon_are_two_layers_in_a_row():
    x, image = rand(2, 6), rand(1, 6, 5, 5)
    up, down, alpha = rand(4, 3), rand(3, 6), torch.tensor(1.5)
    delta = weight_delta({"up": up, "down": down, "alpha": alpha}, torch.zeros(4, 6))
    close(F.linear(x, delta.double()), 0.5 * F.linear(F.linear(x, down), up))

    up, down = rand(4, 3, 1, 1), rand(3, 6, 3, 3)
    delta = weight_delta({"up": up, "down": down}, torch.zeros(4, 6, 3, 3))
    close(F.conv2d(image, delta.double()), F.conv2d(F.conv2d(image, down), up))

    mid, down = rand(3, 3, 3, 3), rand(3, 6, 1, 1)
    delta = weight_delta({"up": up, "mid": mid, "down": down, "alpha": torch.tensor(6.0)}, torch.zeros(4, 6, 3, 3))
    close(F.conv2d(image, delta.double()), 2 * F.conv2d(F.conv2d(F.conv2d(image, down), mid), up))


def test_loha_is_a_product_entry_by_entry():
    factors = {"w1_a": rand(4, 2), "w1_b": rand(2, 54), "w2_a": rand(4, 2), "w2_b": rand(2, 54)}
    delta = weight_delta({**{f"loha_{k}": v for k, v in factors.items()}, "alpha": torch.tensor(3.0)},
                         torch.zeros(4, 6, 3, 3))  # fmt: skip
    for o, entry in np.ndindex(4, 54):
        halves = [sum(factors[f"w{h}_a"][o, r] * factors[f"w{h}_b"][r, entry] for r in range(2)) for h in (1, 2)]
        close(delta.reshape(4, 54)[o, entry], 1.5 * halves[0] * halves[1])

    core = {"t1": rand(2, 2, 3, 3), "t2": rand(2, 2, 3, 3)}
    factors = {"w1_a": rand(2, 4), "w1_b": rand(2, 6), "w2_a": rand(2, 4), "w2_b": rand(2, 6), **core}
    delta = weight_delta({f"loha_{k}": v for k, v in factors.items()}, torch.zeros(4, 6, 3, 3))
    for o, i in np.ndindex(4, 6):
        halves = [
            sum(core[f"t{h}"][p, q] * factors[f"w{h}_b"][q, i] * factors[f"w{h}_a"][p, o]
                for p in range(2) for q in range(2))
            for h in (1, 2)
        ]  # fmt: skip
        close(delta[o, i], halves[0] * halves[1])


@pytest.mark.parametrize("low", ["", "w1", "w2", "w1 w2", "t2"])
def test_lokr_is_blocks_of_the_second_factor(low):
    """Entry (o1·O2 + o2, i1·I2 + i2) is w1[o1, i1] · w2[o2, i2]; whole factors know no alpha."""
    w1, w2 = rand(2, 3), rand(4, 5, 3, 3)
    factors = {"lokr_w1": w1, "lokr_w2": w2}
    if "w1" in low:
        a, b = rand(2, 2), rand(2, 3)
        w1, factors = a @ b, {"lokr_w1_a": a, "lokr_w1_b": b, "lokr_w2": w2}
    if "w2" in low:
        a, b = rand(4, 2), rand(2, 45)
        w2 = (a @ b).reshape(4, 5, 3, 3)
        factors = {**factors, "lokr_w2_a": a, "lokr_w2_b": b}
        factors.pop("lokr_w2")
    if low == "t2":
        t, a, b = rand(2, 2, 3, 3), rand(2, 4), rand(2, 5)
        w2 = torch.stack([torch.stack([sum(t[p, q] * b[q, i] * a[p, o] for p in range(2) for q in range(2))
                                       for i in range(5)]) for o in range(4)])  # fmt: skip
        factors = {"lokr_w1": w1, "lokr_t2": t, "lokr_w2_a": a, "lokr_w2_b": b}
    delta = weight_delta({**factors, "alpha": torch.tensor(3.0)}, torch.zeros(8, 15, 3, 3))
    scale = 1.5 if low else 1.0
    for o1, o2, i1, i2 in np.ndindex(2, 4, 3, 5):
        close(delta[o1 * 4 + o2, i1 * 5 + i2], scale * w1[o1, i1] * w2[o2, i2])


@pytest.mark.parametrize("axis", [0, 1])
def test_dora_sets_the_length_of_each_row_or_column(axis):
    weight, up, down = rand(4, 6), rand(4, 2), rand(2, 6)
    lengths = torch.rand(4 if axis == 0 else 6) + 0.5
    dora = lengths.reshape(-1, 1) if axis == 0 else lengths.reshape(1, -1)
    delta = weight_delta({"up": up, "down": down, "dora": dora}, weight)
    changed = weight + delta.double()
    close(changed.norm(dim=1 - axis), lengths)
    close(F.normalize(changed, dim=1 - axis), F.normalize(weight + up @ down, dim=1 - axis))


def test_a_lora_of_a_text_to_image_base_fits_the_inpainting_one():
    delta = weight_delta({"up": rand(4, 2, 1, 1), "down": rand(2, 4, 3, 3)}, torch.zeros(4, 9, 3, 3))
    assert delta[:, :4].abs().min() > 0
    assert not delta[:, 4:].any()


def load(base):
    return {name: base.load(name) for name in ("unet", *(f"text_encoder{each}" for each in base.text_parts()))}


def weights(parts):
    return {
        (component, name.removeprefix("text_model.")): module.weight.detach().clone()
        for component, part in parts.items()
        for name, module in part.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.ndim > 1
    }


def key_parts(vocabulary, base, component, module):
    """The part of a key before the factor, as the tool of that name writes it."""
    text = component != "unet"
    full = f"text_model.{module}" if text and module != "text_projection" else module
    if vocabulary == "dots":
        return f"{component}.{full}"
    if text:
        prefix = {"text_encoder": "lora_te1_" if base.is_xl else "lora_te_", "text_encoder_2": "lora_te2_"}[component]
        return prefix + full.replace(".", "_")
    original = renamed(f"{module}.weight", unet_table(base.unet)).removesuffix(".weight")
    return "lora_unet_" + (original if vocabulary == "original" else module).replace(".", "_")


@pytest.mark.parametrize(("name", "vocabulary"), [("random-sd15", "kohya"), ("random-sdxl", "original"),
                                                  ("random-sdxl", "dots"), ("random-sd15-9ch", "kohya")])  # fmt: skip
def test_every_layer_gets_its_own_rank_and_alpha(name, vocabulary, tmp_path):
    """All linear and convolutional layers, each with another rank and alpha; two files with weights add up."""
    base = find_base(name)
    parts = load(base)
    before, expected = weights(parts), {}
    files = [{}, {}]
    for number, ((component, module), weight) in enumerate(before.items()):
        if "embedding" in module and component != "unet":
            continue
        expected[component, module] = weight.double()
        for file, share in zip(files, (0.7, -0.5), strict=True):
            rank, alpha = 1 + number % 3, 0.5 + number % 5
            up, down = rand(weight.shape[0], rank).float(), rand(rank, weight[0].numel()).float()
            expected[component, module] += share * alpha / rank * (up @ down).reshape(weight.shape).double()
            if weight.ndim == 4:
                up, down = up[..., None, None], down.reshape(rank, *weight.shape[1:])
            key = key_parts(vocabulary, base, component, module)
            names = (
                ("lora_B.weight", "lora_A.weight") if vocabulary == "dots" else ("lora_up.weight", "lora_down.weight")
            )
            file |= {f"{key}.{names[0]}": up, f"{key}.{names[1]}": down, f"{key}.alpha": torch.tensor(alpha)}
    for number, file in enumerate(files):
        save_file({key: value.contiguous() for key, value in file.items()}, tmp_path / f"{number}.safetensors")
    said = []
    loras = (Lora(tmp_path / "0.safetensors", 0.7), Lora(tmp_path / "1.safetensors", -0.5))
    apply_loras(parts, plan_loras(base, loras, said.append))
    assert not said
    after = weights(parts)
    assert len(expected) > 100
    for layer, value in expected.items():
        torch.testing.assert_close(after[layer].double(), value, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("names", ["kohya", "processor", "peft"])
def test_it_is_what_diffusers_loads(names, tmp_path):
    """Another implementation, where it is right: one alpha for all layers."""
    base = find_base("random-sd15")
    pipeline = StableDiffusionPipeline.from_pretrained(base.folder, safety_checker=None)
    file, metadata = {}, {"format": "pt"}
    for module, layer in pipeline.unet.named_modules():
        if module.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            # Small, since attention that has saturated turns a rounding into another picture.
            up, down = 0.1 * torch.randn(layer.out_features, 4), 0.1 * torch.randn(4, layer.in_features)
            if names == "kohya":
                key = "lora_unet_" + module.replace(".", "_")
                file |= {
                    f"{key}.lora_up.weight": up,
                    f"{key}.lora_down.weight": down,
                    f"{key}.alpha": torch.tensor(2.0),
                }
            elif names == "peft":
                file |= {f"unet.{module}.lora_B.weight": up, f"unet.{module}.lora_A.weight": down}
            else:
                parent, _, last = module.removesuffix(".0").rpartition(".")
                key = f"unet.{parent}.processor.{last}_lora"
                file |= {f"{key}.up.weight": up, f"{key}.down.weight": down}
    if names == "peft":
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": targets, "unet.peft_type": "LORA"}
        metadata["lora_adapter_metadata"] = json.dumps(config)
    save_file(file, tmp_path / "x.safetensors", metadata=metadata)
    inputs = (torch.randn(1, 4, 8, 8), 300, torch.randn(1, 7, 32))
    plain = pipeline.unet(*inputs).sample
    parts = load(base)
    apply_loras(parts, plan_loras(base, (Lora(tmp_path / "x.safetensors"),), print))
    ours = parts["unet"](*inputs).sample
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    theirs = pipeline.unet(*inputs).sample
    assert (theirs - plain).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def refused(base, tensors, words, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(RequestError, match=words) as reason:
        plan_loras(find_base(base), (Lora(path),), print)
    assert "\n" not in str(reason.value)


def test_another_family_and_other_kinds_are_refused(tmp_path):
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    one = {f"{key}.lora_down.weight": torch.ones(4, 768), f"{key}.lora_up.weight": torch.ones(320, 4)}
    refused("random-sd15", one, r"was made for SD 1\.x, base 'random-sd15' is .* a weight of \(320, 768\)", tmp_path)
    xl = {name.replace("down_blocks_0_attentions_0", "input_blocks_7_1"): value.clone() for name, value in one.items()}
    refused(
        "random-sd15", {**xl, "lora_te2_x.alpha": torch.ones(1)}, "was made for SDXL, base 'random-sd15' is", tmp_path
    )
    refused("random-sd15", {f"{key}.lora_up.weight": torch.ones(16, 4)}, "lacks 'down'", tmp_path)
    refused("random-sd15", {f"{key}.on_input": torch.ones(1), **one}, "is of the kind", tmp_path)
    refused("random-sd15", {"emb_params": torch.ones(1, 768)}, "is: textual inversion; expected a LoRA", tmp_path)
    half = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3), "bundle_emb.x.clip_l": torch.ones(1, 8),
            "lora_unet_conv_in.lora_up.weight": torch.ones(16, 2, 1, 1)}  # fmt: skip
    save_file(half, tmp_path / "x.safetensors")
    said = []
    plan_loras(find_base("random-sd15"), (Lora(tmp_path / "x.safetensors"),), said.append)
    assert "1 of 3 tensors have no place in base 'random-sd15' and are left out, e.g. bundle_emb" in said[0]


def test_generate_paints_with_it(trained, dataset, tmp_path):
    key = "lora_unet_conv_in"
    torch.save({f"{key}.lora_down.weight": torch.randn(4, 4, 3, 3), f"{key}.lora_up.weight": torch.randn(16, 4, 1, 1)},
               tmp_path / "x.pt")  # fmt: skip
    control = next((dataset / "conditions" / "canny").glob("*.png"))
    common = ["generate", "--control", str(control), "--controlnet", str(trained / "controlnet"), "--steps", "2",
              "--seed", "3", "--device", "cpu", "-q", "--base", "random-sd15"]  # fmt: skip
    pictures = {}
    for name, more in {
        "plain": [],
        "none": ["--lora", f"{tmp_path / 'x.pt'}@0"],
        "full": ["--lora", f"{tmp_path / 'x.pt'}"],
    }.items():
        assert main([*common, *more, "--out", str(tmp_path / f"{name}.png")]) == 0
        pictures[name] = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int)
    assert np.abs(pictures["plain"] - pictures["none"]).max() <= 1
    assert np.abs(pictures["plain"] - pictures["full"]).max() > 10
    settings = read_settings(tmp_path / "full.png")
    assert settings["loras"][0]["weight"] == 1.0


@pytest.mark.parametrize(("text", "file", "weight"), [("a@0.5", "a", 0.5), ("a@b", "a@b", 1), ("a@-1", "a", -1)])
def test_the_weight_stands_behind_the_name(text, file, weight):
    lora = Lora.parse(text)
    assert (str(lora.file), lora.weight) == (file, weight)
