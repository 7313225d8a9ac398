"""Textual inversions become tokens, all vectors of them; a VAE of one's own decodes in the place of the base's."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.files import sha256
from controlkit.generation.settings import read_settings
from controlkit.models.bases import find_base
from controlkit.models.formats.convert import to_webui
from controlkit.models.formats.embeddings import add_embeddings, find_embeddings, rewrite, say_unused
from controlkit.models.formats.vae import vae_to_ldm
from controlkit.models.formats.vae_file import find_vae
from tests.models.test_names import same

VECTORS = torch.arange(96.0).reshape(3, 32) / 96


def parts(base):
    return {f"{name}{each}": base.load(f"{name}{each}") for name in ("text_encoder", "tokenizer")
            for each in base.text_parts()}  # fmt: skip


def write(path, form):
    if form == "webui":
        torch.save({"string_to_param": {"*": torch.nn.Parameter(VECTORS)}, "string_to_token": {"*": 265}}, path)
    elif form == "original":
        data = {"string_to_param": torch.nn.ParameterDict({"star": torch.nn.Parameter(VECTORS)}),
                "string_to_token": {"*": torch.tensor(265)}}  # fmt: skip
        torch.save(data, path)
    elif form == "SDXL":
        save_file({"clip_l": VECTORS, "clip_g": -VECTORS}, path)
    else:
        save_file({"emb_params": VECTORS}, path)
    return path


@pytest.mark.parametrize("form", ["webui", "original", "kohya", "SDXL"])
def test_its_name_becomes_all_of_its_vectors(form, tmp_path):
    """What the encoders look up for the prompt: the file's vectors, in order, where the name stood."""
    base = find_base("random-sdxl" if form == "SDXL" else "random-sd15")
    loaded = parts(base)
    plain = {suffix: loaded[f"tokenizer{suffix}"]("a of b").input_ids for suffix in base.text_parts()}
    found = find_embeddings(base, (write(tmp_path / "My Thing.pt", form),))
    add_embeddings(loaded, found)
    for word in ("My Thing", "my thing", "embedding:my thing"):
        prompt = rewrite(f"a {word} of b", found)
        for suffix, sign in zip(base.text_parts(), (1, -1), strict=False):
            ids = loaded[f"tokenizer{suffix}"](prompt, return_tensors="pt").input_ids
            looked_up = loaded[f"text_encoder{suffix}"].get_input_embeddings()(ids)[0]
            assert torch.equal(looked_up[2:5], sign * VECTORS)
            assert [*ids[0, :2].tolist(), *ids[0, 5:].tolist()] == plain[suffix]
    assert rewrite("a my thingy", found) == "a my thingy"


@torch.no_grad()
def test_the_pooled_text_of_sdxl_is_still_that_of_its_end(tmp_path):
    """A vector that equals a word's changes nothing, though its token is greater than that of the end."""
    base = find_base("random-sdxl")
    loaded = parts(base)
    second = loaded["text_encoder_2"]
    word = loaded["tokenizer_2"]("b").input_ids[1]
    expected = second(loaded["tokenizer_2"]("a b c", return_tensors="pt").input_ids).text_embeds
    vector = second.get_input_embeddings().weight[word].detach().clone()[None]
    save_file({"clip_l": vector.clone(), "clip_g": vector}, tmp_path / "word.safetensors")
    found = find_embeddings(base, (tmp_path / "word.safetensors",))
    for module in second.modules():
        if hasattr(module, "eos_token_id"):
            module.eos_token_id = 2  # as the published configs of SDXL have it
    add_embeddings(loaded, found)
    ids = loaded["tokenizer_2"](rewrite("a word c", found), return_tensors="pt").input_ids
    torch.testing.assert_close(second(ids).text_embeds, expected)


def test_an_embedding_for_another_family_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"emb_params": torch.ones(2, 1024)}, path)
    words = r"was made for SD 2\.x \(vectors of 1024\), base 'random-sd15' is .* \(vectors of 32\)"
    with pytest.raises(RequestError, match=words):
        find_embeddings(find_base("random-sd15"), (path,))
    with pytest.raises(RequestError, match=r"vectors of 32 and 32"):
        find_embeddings(find_base("random-sdxl"), (write(path, "kohya"),))
    with pytest.raises(RequestError, match="was made for SDXL"):
        find_embeddings(find_base("random-sd15"), (write(path, "SDXL"),))
    with pytest.raises(RequestError, match="two files are called 'x'"):
        find_embeddings(find_base("random-sd15"), (write(path, "kohya"), path))
    save_file({"conv.weight": torch.ones(1)}, path)
    with pytest.raises(RequestError, match="is: unknown; expected a textual inversion"):
        find_embeddings(find_base("random-sd15"), (path,))


def test_an_unused_name_is_said(tmp_path):
    found = find_embeddings(find_base("random-sd15"), (write(tmp_path / "thing.pt", "webui"),))
    said = []
    say_unused(found, ("a cat", "blurry"), said.append)
    assert re.search("no prompt holds its name 'thing'", said[0])
    say_unused(found, ("a cat", "Thing"), said.append)
    assert len(said) == 1


@pytest.mark.parametrize("form", ["prefixed", "bare", "diffusers", "checkpoint"])
def test_a_vae_is_read_under_every_name(form, tmp_path):
    base = find_base("random-sd15")
    ours = {name: torch.rand_like(value) for name, value in base.load("vae").state_dict().items()}
    ldm = vae_to_ldm(ours, base.vae)
    path = tmp_path / "x.pt"
    if form == "prefixed":
        save_file({f"first_stage_model.{name}": value for name, value in ldm.items()}, path)
    elif form == "bare":
        torch.save({"state_dict": {**ldm, "loss.logvar": torch.ones(()), "model_ema.decay": torch.ones(())}}, path)
    elif form == "diffusers":
        save_file(ours, path)
    else:
        to_webui(base, tmp_path / "whole.safetensors")
        with pytest.raises(RequestError, match="is: base; expected a VAE"):
            find_vae(str(tmp_path / "whole.safetensors"), base)
        return
    same(ours, find_vae(str(path), base).load(torch_dtype=torch.float32).state_dict())


def test_a_vae_for_another_base_is_refused(tmp_path):
    base, other = find_base("random-sd15"), find_base("random-sdxl")
    with pytest.raises(RequestError, match=r"has scaling_factor 0\.13025, the VAE of base 'random-sd15' has 0\.18215"):
        find_vae(str(other.folder / "vae"), base)
    assert find_vae(str(base.folder / "vae"), base).load().config.scaling_factor == 0.18215
    ldm = vae_to_ldm(base.load("vae").state_dict(), base.vae)
    ldm.pop("quant_conv.weight")
    save_file(ldm, tmp_path / "x.safetensors")
    with pytest.raises(RequestError, match=r"lacks 1 tensors of a AutoencoderKL"):
        find_vae(str(tmp_path / "x.safetensors"), base)
    with pytest.raises(RequestError, match="no such file or folder"):
        find_vae("nowhere", base)


def test_generate_paints_with_them(trained, dataset, tmp_path):
    base = find_base("random-sd15")
    vae = {name: 1.5 * value for name, value in base.load("vae").state_dict().items()}
    save_file(vae_to_ldm(vae, base.vae), tmp_path / "vae.safetensors")
    write(tmp_path / "thing.safetensors", "kohya")
    control = next((dataset / "conditions" / "canny").glob("*.png"))
    common = ["generate", "--control", str(control), "--controlnet", str(trained / "controlnet"), "--steps", "2",
              "--seed", "3", "--device", "cpu", "-q", "--base", "random-sd15", "--prompt", "a thing"]  # fmt: skip
    ways = {
        "plain": [],
        "vae": ["--vae", str(tmp_path / "vae.safetensors")],
        "embedding": ["--embedding", str(tmp_path / "thing.safetensors")],
    }
    pictures = {}
    for name, more in ways.items():
        assert main([*common, *more, "--out", str(tmp_path / f"{name}.png")]) == 0
        pictures[name] = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int)
    assert np.abs(pictures["plain"] - pictures["vae"]).max() > 10
    assert (pictures["plain"] != pictures["embedding"]).any()
    stated = read_settings(tmp_path / "embedding.png")["embeddings"]
    assert stated == [{"file": str(tmp_path / "thing.safetensors"), "sha256": sha256(tmp_path / "thing.safetensors")}]
