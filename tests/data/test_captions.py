"""Captions from wherever people keep them; what is there is never replaced."""

import itertools
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from controlkit.cli.main import main
from controlkit.data.captions import Captioner, caption_from_name
from controlkit.data.rows import read_dataset
from tests.conftest import draw_photo

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", *(f"word{number}" for number in range(33))]


def annotate(folder, *arguments, code=0):
    assert main(["annotate", "--type", "canny", str(folder), "--quiet", *arguments]) == code


def captions(folder):
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["file_name"]: row.get("text") for row in map(json.loads, lines)}


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("sub/a_red-ball.jpg", "a red ball"),
        ("a red  ball.01.png", "a red ball 01"),
        ("_.png", ""),
        ("grüne_Kugel.webp", "grüne Kugel"),
    ],
)
def test_a_file_name_read_as_a_caption(name, caption):
    assert caption_from_name(name) == caption


def test_file_names_caption_what_has_no_caption(pictures):
    annotate(pictures, "--captions", "names")
    assert captions(pictures) == {
        "a.png": "a red circle",  # a.txt
        "b.jpg": "b",
        "b.png": "b",
        "sub/a.png": "a",
        "sub/c d.webp": "c d",
        "sub/é.bmp": "grün",
    }


# The original ControlNet's tutorial


@pytest.fixture
def tutorial(tmp_path):
    """fill50k in small: circles as sources, discs as targets."""
    folder = tmp_path / "fill"
    lines = []
    for kind in ("source", "target"):
        (folder / kind).mkdir(parents=True)
    for number in range(3):
        for kind in ("source", "target"):
            Image.fromarray(draw_photo(number + 10 * (kind == "target"))).save(folder / kind / f"{number}.png")
        row = {"source": f"source/{number}.png", "target": f"target/{number}.png", "prompt": f"circle {number}"}
        lines.append(json.dumps(row))
    (folder / "prompt.json").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("apart", [False, True])
def test_the_tutorial_layout_becomes_a_dataset(tutorial, tmp_path, apart):
    """Targets are the pictures, prompts the captions; sources are maps that were made before and can be trained on."""
    out = tmp_path / "out" if apart else tutorial
    annotate(tutorial, *(["--out", str(out)] if apart else []))
    assert captions(out) == {f"target/{number}.png": f"circle {number}" for number in range(3)}
    rows = read_dataset(out, "source")
    assert [row.control.read_bytes() for row in rows] == [
        (tutorial / "source" / f"{number}.png").read_bytes() for number in range(3)
    ]
    assert [row.captions for row in rows] == [(f"circle {number}",) for number in range(3)]
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "hf"))["train"]
    assert {"image", "text", "canny", "source"} <= set(loaded.column_names)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 4 is no row of the tutorial; expected"),
        ('["a"]', "line 4 is no row of the tutorial"),
        ('{"target": "target/0.png"}', "line 4 is no row of the tutorial"),
        ('{"target": "../a.png", "prompt": "x"}', "line 4 names '../a.png', which is no path inside the folder"),
        ('{"target": "/etc/a.png", "prompt": "x"}', "line 4 names '/etc/a.png'"),
        ('{"target": "a.png", "source": 5, "prompt": "x"}', "line 4 names 5"),
    ],
)
def test_a_wrong_line_of_the_tutorial_is_refused(tutorial, capsys, line, words):
    with (tutorial / "prompt.json").open("a") as file:
        file.write(line + "\n")
    before = tree(tutorial)
    annotate(tutorial, code=2)
    assert words in capsys.readouterr().err
    assert tree(tutorial) == before


def test_a_target_that_is_missing_is_listed(tutorial):
    (tutorial / "target/1.png").unlink()
    annotate(tutorial, code=1)
    assert captions(tutorial).keys() == {"target/0.png", "target/2.png"}
    error = json.loads((tutorial / "errors.jsonl").read_text())
    assert error["row"]["text"] == "circle 1"


# An image-to-text model


def save_blip(folder):
    """BLIP as Salesforce/blip-image-captioning-base is, small and random."""
    torch.manual_seed(3)
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**small, "vocab_size": len(WORDS), "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3}
    config = transformers.BlipConfig(
        text_config={**text, "pad_token_id": 0, "max_position_embeddings": 80},
        vision_config={**small, "image_size": 32, "patch_size": 16, "initializer_range": 0.5},
    )
    network = transformers.BlipForConditionalGeneration(config).eval()
    with torch.no_grad():  # larger weights, so that pictures have captions of their own
        for parameter in network.text_decoder.parameters():
            parameter.mul_(6)
    network.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.BlipImageProcessor(size=size).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    words = transformers.BertTokenizer.from_pretrained(folder)
    words.add_special_tokens({"bos_token": "[DEC]"})
    words.save_pretrained(folder)
    return network


def save_vit_gpt2(folder):
    """ViT and GPT-2 as nlpconnect/vit-gpt2-image-captioning is, small and random."""
    torch.manual_seed(2)
    small = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    eye = transformers.ViTConfig(**small, image_size=32, patch_size=16)
    mouth = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=24, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3, n_positions=80
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(eye, mouth)
    config.decoder_start_token_id, config.pad_token_id = 2, 3
    network = transformers.VisionEncoderDecoderModel(config=config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(6)
    network.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="[CLS]", eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    return network


@pytest.fixture(scope="module", params=[save_blip, save_vit_gpt2])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    return folder, request.param(folder)


def read_directly(folder, network, path):
    """What the library itself says of a picture, alone."""
    image = Image.open(path).convert("RGB")
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt").pixel_values
    tokens = network.generate(pixel_values=pixels, do_sample=False, max_new_tokens=60)
    text = transformers.AutoTokenizer.from_pretrained(folder).decode(tokens[0], skip_special_tokens=True)
    return " ".join(text.split())


def test_a_model_captions_what_has_no_caption(pictures, model, capsys):
    folder, network = model
    annotate(pictures, "--caption", str(folder), "--offline", "--device", "cpu", "--batch-size", "4", "--json")
    assert json.loads(capsys.readouterr().out)["captioned"] == 4
    found = captions(pictures)
    assert (found["a.png"], found["sub/é.bmp"]) == ("a red circle", "grün")
    for name in found.keys() - {"a.png", "sub/é.bmp"}:
        assert found[name] == read_directly(folder, network, pictures / name)
        assert found[name].startswith("word")
    assert not (pictures / ".captions").exists()
    before = tree(pictures)
    annotate(pictures, "--caption", str(folder), "--offline", "--json")
    assert json.loads(capsys.readouterr().out)["captioned"] == 0
    assert tree(pictures) == before


def test_a_killed_run_keeps_its_captions_and_ends_the_same(tmp_path, model, monkeypatch):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    broken.mkdir()
    for number in range(12):
        Image.fromarray(draw_photo(number)).save(broken / f"{number:02d}.png")
    shutil.copytree(broken, whole)
    arguments = ("--caption", str(model[0]), "--offline", "--batch-size", "2")
    annotate(whole, *arguments)
    calls = itertools.count()
    original = Captioner._captions

    def stopping(self, names, images):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return original(self, names, images)

    monkeypatch.setattr(Captioner, "_captions", stopping)
    annotate(broken, *arguments, code=130)
    assert len(list(broken.glob(".captions/*/*.json"))) == 6
    assert not (broken / "metadata.jsonl").exists()
    annotate(broken, *arguments)
    assert next(calls) == 4 + 3  # three slices were there already
    assert tree(broken) == tree(whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--caption", "no/such-model", "--offline"], "--caption no/such-model: no image-to-text model that transform"),
        (["--caption", "FOLDER"], "no image-to-text model that transformers can load"),
        (["--caption", "FOLDER", "--captions", "names"], "choose one of the two"),
        (["--captions", "colours"], "Invalid value for '--captions'"),
    ],
)
def test_what_cannot_caption_is_refused_in_one_line(pictures, tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    before = tree(pictures)
    annotate(pictures, *[str(tmp_path / "empty") if each == "FOLDER" else each for each in arguments], code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert tree(pictures) == before


def test_pictures_have_captions_of_their_own(model, tmp_path):
    """Or the comparisons above would say little."""
    folder, network = model
    texts = set()
    for number in range(4):
        Image.fromarray(np.full((32, 32, 3), 80 * number, np.uint8)).save(tmp_path / "a.png")
        texts.add(read_directly(folder, network, tmp_path / "a.png"))
    assert len(texts) > 1
