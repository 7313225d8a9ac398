"""`controlkit annotate --check`: what would spoil a training is named, and nothing is written."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPTokenizer

from annotators.canny import Canny
from controlkit.cli.main import main
from controlkit.data.check import least_tokens
from controlkit.models.random_base import random_base
from tests.conftest import draw_photo


def check(capsys, folder, *arguments, code):
    """What --json answers: (file, kind) with the text."""
    capsys.readouterr()
    assert main(["annotate", "--check", str(folder), "--json", *arguments]) == code
    answer = json.loads(capsys.readouterr().out)
    return {(each["file_name"], each["kind"]): each["text"] for each in answer["findings"]}


def rewrite(folder, change):
    """metadata.jsonl with each row changed; a row that becomes None goes."""
    path = folder / "metadata.jsonl"
    rows = [change(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row), encoding="utf-8")


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def sound(dataset, tmp_path):
    """An annotated folder with captions in which nothing is wrong."""
    shutil.copytree(dataset, tmp_path / "d")
    return tmp_path / "d"


def test_a_sound_folder_has_no_findings(sound, capsys):
    before = tree(sound)
    assert check(capsys, sound, code=0) == {}
    assert main(["annotate", "--check", str(sound)]) == 0
    assert capsys.readouterr().out == f"24 pictures: no problems found · {sound}\n"
    assert tree(sound) == before


def canny(folder, name):
    return folder / "conditions" / "canny" / f"{name}.png"


def missing_picture(folder):
    (folder / "003.png").unlink()


def missing_map(folder):
    canny(folder, "003.png").unlink()


def missing_column(folder):
    rewrite(folder, lambda row: {**row, "canny_file_name": None} if row["file_name"] == "003.png" else row)


def missing_row(folder):
    rewrite(folder, lambda row: None if row["file_name"] == "003.png" else row)


def another_size(folder):
    path = canny(folder, "003.png")
    Image.open(path).resize((32, 48)).save(path)


def inverted(folder):
    path = canny(folder, "003.png")
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)


def black(folder):
    Image.new("L", (64, 64)).save(canny(folder, "003.png"))


def changed_picture(folder):
    Image.fromarray(draw_photo(99, 64, 64)).save(folder / "003.png")


def damaged_picture(folder):
    (folder / "003.png").write_bytes(b"no picture")


def duplicate(folder):
    shutil.copy(folder / "001.png", folder / "003.png")
    shutil.copy(canny(folder, "001.png"), canny(folder, "003.png"))


def no_caption(folder):
    rewrite(folder, lambda row: {**row, "text": "  "} if row["file_name"] == "003.png" else row)


def long_caption(folder):
    rewrite(folder, lambda row: {**row, "text": "red " * 76} if row["file_name"] == "003.png" else row)


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (missing_picture, "missing", "the picture cannot be read (No such file or directory)"),
        (damaged_picture, "missing", "the picture cannot be read (cannot identify"),
        (missing_map, "missing", "conditions/canny/003.png.png: there is no such file"),
        (missing_column, "missing", "has no canny map"),
        (missing_row, "missing", "has no row in metadata.jsonl"),
        (another_size, "size", "is 32x48, the picture 64x64"),
        (inverted, "inverted", "is dark on white; lines are white on black"),
        (black, "constant", "is all black"),
        (changed_picture, "out of date", "was made of another picture; annotate again"),
        (duplicate, "duplicate", "the same file as 001.png"),
        (no_caption, "caption", "has no caption"),
        (long_caption, "caption", "the caption has at least 78 tokens, of which CLIP reads 77"),
    ],
)
def test_what_is_wrong_is_named_once(sound, capsys, spoil, kind, words):
    spoil(sound)
    before = tree(sound)
    found = check(capsys, sound, code=1)
    assert found.keys() == {("003.png", kind)}
    assert words in found["003.png", kind]
    assert tree(sound) == before
    assert main(["annotate", "--check", str(sound)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"24 pictures: 1 problem found · {sound}"


def test_a_map_by_an_older_version_is_out_of_date(sound, capsys, monkeypatch):
    monkeypatch.setattr(Canny, "version", Canny.version + 1)
    found = check(capsys, sound, code=1)
    assert len(found) == 24
    assert f"was made by version {Canny.version - 1} of canny" in found["000.png", "out of date"]


def test_a_picture_turned_by_exif_has_the_size_of_its_map(tmp_path, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw_photo(1)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("turned")
    assert main(["annotate", "--type", "canny", str(tmp_path), "--quiet"]) == 0
    assert check(capsys, tmp_path, code=0) == {}


def test_a_picture_that_failed_says_why(tmp_path, capsys):
    Image.fromarray(draw_photo(1)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("whole")
    (tmp_path / "b.jpg").write_bytes(b"")
    assert main(["annotate", "--type", "canny", str(tmp_path), "--quiet"]) == 1
    found = check(capsys, tmp_path, code=1)
    assert found == {("b.jpg", "missing"): "failed: is empty (0 bytes); get a whole copy"}


def test_a_folder_that_was_never_annotated_has_no_rows(pictures, capsys):
    found = check(capsys, pictures, code=1)
    assert set(found.values()) == {"has no row in metadata.jsonl"}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "cany"], "has no such maps: did you mean 'canny'?"),
        (["--out", "x"], "--out does not go with --check"),
        (["--overwrite"], "--overwrite does not go with --check"),
        (["--set", "canny.low=3"], "--set does not go with --check"),
    ],
)
def test_what_does_not_go_with_it_is_refused(sound, capsys, arguments, words):
    assert main(["annotate", "--check", str(sound), *arguments]) == 2
    assert words in capsys.readouterr().err


TEXTS = [
    "a big red ball left of a small blue cone",
    "it's 1,000 photos — he'll say “hello!!!” (f/2.8, ISO 400)",
    "ein schönes Bild; 東京の夜 🙂🙂 snake_case_name",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_counted_as_clip_cuts_a_text(text):
    """Each piece that CLIP's own tokenizer cuts is at least one token, so the count is never too high."""
    tokenizer = CLIPTokenizer.from_pretrained(random_base("random-sd15") / "tokenizer")
    assert least_tokens(text) <= len(tokenizer(text).input_ids)
    backend = tokenizer.backend_tokenizer
    pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
    assert least_tokens(text) == len(pieces) + 2
