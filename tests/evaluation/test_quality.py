"""Measures by networks of others: small random ones in the true format, against those libraries used directly."""

import hashlib
import io
import json

import numpy as np
import pytest
import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from controlkit.cli.main import main
from controlkit.data.pictures import read_picture
from controlkit.evaluation.sets import cmmd, frechet, kernel
from controlkit.models.random_base import random_base

COUNT = 4
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A CLIP and a DINOv2 as the hub keeps them."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    source = random_base("random-sd15") / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(source)
    text = {**SMALL, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    vision = {**SMALL, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder / "clip")
    vocabulary = tokenizer.get_vocab()
    (folder / "clip" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "clip" / "merges.txt").write_text("#version: 0.2\n")
    tokenizer.save_pretrained(folder / "clip")
    Dinov2Model(Dinov2Config(**{**SMALL, "image_size": 224, "patch_size": 56})).save_pretrained(folder / "dino")
    BitImageProcessor(size={"shortest_edge": 256}, crop_size=224).save_pretrained(folder / "dino")
    return folder


@pytest.fixture(scope="module")
def painted(dataset, tmp_path_factory):
    """As if painted: the picture of the next row."""
    folder = tmp_path_factory.mktemp("painted")
    for number in range(COUNT):
        (folder / f"{number:03d}.png").write_bytes((dataset / f"{(number + 1) % COUNT:03d}.png").read_bytes())
    return folder


def evaluate(painted, dataset, out, *also, code=0):
    given = ["--pictures", f"canny={painted}", "--data", dataset, "--num", COUNT, "--out", out, "-q"]
    assert main(["evaluate", *map(str, given), *(word for each in also for word in ("--also", each))]) == code


def pictures(folder):
    return [read_picture(folder / f"{number:03d}.png") for number in range(COUNT)]


def test_each_figure_is_that_of_its_library(weights, painted, dataset, tmp_path):
    clip, dino = weights / "clip", weights / "dino"
    evaluate(painted, dataset, tmp_path, f"clip_score={clip}", f"cmmd={clip}", f"fd_dinov2={dino}")
    scores = json.loads((tmp_path / "scores.json").read_text())

    model = CLIPModel.from_pretrained(clip).eval()
    both = CLIPProcessor(CLIPImageProcessor.from_pretrained(clip), CLIPTokenizer.from_pretrained(clip))
    cosines, embeddings = [], {"made": [], "real": []}
    for number, (made, real) in enumerate(zip(pictures(painted), pictures(dataset), strict=True)):
        with torch.inference_mode():
            answer = model(**both(text=[f"picture number {number}"], images=[made, real], return_tensors="pt"))
            cosines.append((answer.logits_per_image[:, 0] / model.logit_scale.exp()).tolist())
        for name, each in zip(embeddings, answer.image_embeds, strict=True):
            embeddings[name].append(each.numpy())
    expected = 100 * np.clip(np.array(cosines), 0, None).mean(axis=0)
    assert expected.min() > 0
    assert scores["clip_score"]["control"]["mean"] == pytest.approx(expected[0], rel=1e-4)
    assert scores["clip_score"]["real"]["mean"] == pytest.approx(expected[1], rel=1e-4)
    made, real = (np.stack(embeddings[name]) for name in ("made", "real"))
    assert scores["cmmd"]["control"]["mean"] == pytest.approx(cmmd(made, real).mean, abs=1e-3)

    network, processor = Dinov2Model.from_pretrained(dino).eval(), BitImageProcessor.from_pretrained(dino)
    square = {"size": {"height": 224, "width": 224}, "do_center_crop": False}
    with torch.inference_mode():
        made, real = (
            network(**processor(pictures(folder), return_tensors="pt", **square)).last_hidden_state[:, 0].numpy()
            for folder in (painted, dataset)
        )
    assert scores["fd_dinov2"]["control"]["mean"] == pytest.approx(frechet(made, real).mean, rel=1e-3, abs=1e-3)
    assert set(scores["fd_dinov2"]) == {"control"}

    page = (tmp_path / "index.html").read_text()
    for name, folder in (("clip_score", clip), ("cmmd", clip), ("fd_dinov2", dino)):
        stated = scores["stated"][name]
        assert stated["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        assert stated["library"].startswith("transformers ")
        assert stated["sha256"] in page
        assert {"resize", "reference", "weights"} <= set(stated)
    assert f"fd_dinov2 over {COUNT} pictures, fewer than 10000" in page


def test_what_is_not_there_is_one_line(weights, painted, dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for also, words in [
        ("clip_score", "model.safetensors of openai/clip-vit-base-patch16 (599 MB, MIT) is not on this machine"),
        ("fid", "expected fid=FILE, pt_inception-2015-12-05-6726825d.pth of torch-fidelity or pytorch-fid (96 MB, "
                "Apache-2.0), from https://"),
        ("kid=nowhere.pth", "nowhere.pth: there is no such file; expected kid=FILE"),
        ("clipscore=x", "did you mean 'clip_score'?"),
        (f"fd_dinov2={weights / 'clip'}", "are missing"),
    ]:  # fmt: skip
        evaluate(painted, dataset, tmp_path / "out", also, code=2)
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.slow  # Inception has no small size
def test_fid_and_kid_by_torch_fidelity(painted, dataset, tmp_path, monkeypatch):
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict", lambda self, state: None)
        network = inception("random", ["2048"], feature_extractor_weights_path=nothing)
    file = tmp_path / "pt_inception.pth"
    torch.save(network.state_dict(), file)
    evaluate(painted, dataset, tmp_path / "out", f"fid={file}", f"kid={file}")
    with torch.inference_mode():
        made, real = (
            np.concatenate([network(torch.from_numpy(each.copy()).permute(2, 0, 1)[None])[0] for each in pictures(of)])
            for of in (painted, dataset)
        )
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["fid"]["control"]["mean"] == pytest.approx(frechet(made, real).mean, rel=1e-6)
    expected = kernel(made, real)
    for name in ("mean", "low", "high"):
        assert scores["kid"]["control"][name] == pytest.approx(getattr(expected, name), rel=1e-6)


def test_lpips_by_its_package(painted, dataset, tmp_path):
    lpips = pytest.importorskip("lpips")
    from torchvision.models import alexnet

    torch.manual_seed(0)
    trunk = alexnet()
    file = tmp_path / "alexnet.pth"
    torch.save(trunk.state_dict(), file)
    evaluate(painted, dataset, tmp_path / "out", f"lpips={file}")
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for name, layer in network.net.named_modules():
        if name.count(".") == 1 and hasattr(layer, "weight"):
            layer.load_state_dict(trunk.features[int(name.split(".")[1])].state_dict())
    with torch.inference_mode():
        expected = [
            float(network(*(torch.from_numpy(each.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for each in pair)))
            for pair in zip(pictures(painted), pictures(dataset), strict=True)
        ]
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["lpips"]
    assert scores["control"]["mean"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert scores["real"]["mean"] == pytest.approx(0, abs=1e-6)
