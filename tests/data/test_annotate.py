"""`controlkit annotate`: the dataset layout, the ledger, and a folder where something is wrong."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image, ImageOps

from annotators import ANNOTATORS
from controlkit.cli.main import main
from controlkit.data.ledger import png_size, read_entry
from tests.conftest import draw_photo
from tests.launcher import launch_two


def annotate(folder, *arguments, code=0):
    assert main(["annotate", "--type", "canny", str(folder), "--quiet", *arguments]) == code


def counts(capsys, folder, *arguments):
    """What --json answers."""
    capsys.readouterr()
    annotate(folder, "--json", *arguments)
    return json.loads(capsys.readouterr().out)


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def tree(folder):
    """Every file below the folder with its bytes; nothing unfinished may lie about."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_map_is_cv2_canny_of_its_picture(pictures):
    """At the picture's own size after EXIF rotation, 0 and 255 only."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw_photo(9)).save(pictures / "turned.jpg", exif=exif)
    annotate(pictures)
    names = {row["file_name"] for row in rows(pictures)}
    assert len(names) == 7
    for name in names:
        rgb = np.asarray(ImageOps.exif_transpose(Image.open(pictures / name)).convert("RGB"))
        made = np.asarray(Image.open(pictures / "conditions" / "canny" / f"{name}.png"))
        assert np.array_equal(made, cv2.Canny(rgb, 100, 200)), name
        assert set(np.unique(made)) == {0, 255}


def test_odd_pictures_are_annotated_beside_the_others(pictures):
    """1x1, 16-bit, grey, palette, CMYK, alpha: each at its own size."""
    photo = draw_photo(2, 40, 30)
    odd = {
        "one.png": Image.fromarray(photo[:1, :1]),
        "deep.png": Image.fromarray(photo[:, :, 0].astype(np.uint16) * 257),
        "grey.png": Image.fromarray(photo[:, :, 0]),
        "palette.gif": Image.fromarray(photo).quantize(32),
        "cmyk.jpg": Image.fromarray(photo).convert("CMYK"),
        "alpha.png": Image.fromarray(np.dstack([photo, np.full(photo.shape[:2], 90, np.uint8)])),
    }
    for name, image in odd.items():
        image.save(pictures / name)
    annotate(pictures)
    assert len(rows(pictures)) == 6 + len(odd)
    for name, image in odd.items():
        assert png_size(pictures / "conditions" / "canny" / f"{name}.png") == image.size


def test_the_folder_is_an_imagefolder(pictures):
    annotate(pictures)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(pictures), cache_dir=str(pictures / ".cache"))["train"]
    assert set(loaded.column_names) == {"image", "canny", "text"}
    assert len(loaded) == 6
    assert {row["text"] for row in loaded} == {"a red circle", "grün", None}
    for row in loaded:
        assert row["image"].size == row["canny"].size


def test_training_scripts_that_name_the_folder_alone_read_it(pictures):
    """As the ControlNet example of diffusers does: the folder as the dataset's name, then three columns by name."""
    annotate(pictures)
    dataset = datasets.load_dataset(str(pictures), cache_dir=str(pictures / ".cache"))
    assert set(dataset) == {"train"}
    columns = {"image", "text", "canny"}
    assert columns <= set(dataset["train"].column_names)
    examples = dataset["train"][:]
    assert len(examples["image"]) == 6
    for image, control, caption in zip(*(examples[name] for name in ("image", "canny", "text")), strict=True):
        assert image.convert("RGB").size == control.convert("RGB").size
        assert caption is None or isinstance(caption, str)


def test_pictures_are_never_touched(pictures):
    before = tree(pictures)
    annotate(pictures)
    after = tree(pictures)
    assert {name: after[name] for name in before} == before


def test_a_second_run_does_no_work(pictures, capsys):
    annotate(pictures)
    before = {path: path.stat().st_mtime_ns for path in pictures.rglob("*")}
    answer = counts(capsys, pictures)
    assert answer == {"pictures": 6, "made": 0, "kept": 6, "captioned": 0, "errors": [], "out": str(pictures)}
    assert {path: path.stat().st_mtime_ns for path in pictures.rglob("*")} == before


def test_what_changed_is_made_again_and_nothing_else(pictures, capsys):
    annotate(pictures)
    Image.fromarray(draw_photo(77, 70, 64)).save(pictures / "a.png")  # other content, same name and size
    assert counts(capsys, pictures)["made"] == 1
    assert counts(capsys, pictures, "--set", "canny.low=50")["made"] == 6
    assert counts(capsys, pictures, "--set", "canny.low=50")["made"] == 0
    assert counts(capsys, pictures, "--set", "canny.low=50", "--overwrite")["made"] == 6


def test_a_map_cut_off_or_replaced_is_made_again(pictures):
    annotate(pictures)
    whole = tree(pictures)
    cut = pictures / "conditions/canny/a.png.png"
    cut.write_bytes(cut.read_bytes()[:-20])
    foreign = pictures / "conditions/canny/b.jpg.png"
    Image.new("RGB", (3, 3)).save(foreign)
    annotate(pictures)
    assert tree(pictures) == whole


def test_the_ledger_says_what_made_the_map(pictures):
    annotate(pictures, "--set", "canny.high=150")
    path = pictures / "conditions/canny/b.jpg.png"
    entry = read_entry(path)
    assert entry.type == "canny"
    assert entry.parameters == {**asdict(ANNOTATORS.create("canny")), "high": 150}
    assert entry.backend is None  # the first way of its type, which has no name
    assert entry.versions == {"canny": "1", "opencv": cv2.__version__}
    with Image.open(path) as image:
        assert image.size == png_size(path)
        assert json.loads(image.text["controlkit"])["source_sha256"] == entry.source_sha256


@pytest.mark.parametrize("workers", ["1", "2", "4"])
def test_workers_change_nothing(pictures, workers, tmp_path):
    shutil.copytree(pictures, tmp_path / "other")
    annotate(pictures, "--workers", workers)
    annotate(tmp_path / "other", "--workers", "3")
    assert tree(pictures) == tree(tmp_path / "other")


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path):
    """SIGKILL at a random moment; nothing unfinished is left once the run has been repeated."""
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    broken.mkdir()
    for number in range(60):
        Image.fromarray(draw_photo(number, 400, 300)).save(broken / f"{number}.png")
    shutil.copytree(broken, whole)
    annotate(whole)
    command = [
        sys.executable,
        "-m",
        "controlkit",
        "annotate",
        "--type",
        "canny",
        str(broken),
        "--quiet",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(list(broken.glob("conditions/canny/*.png"))) < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(broken.glob("conditions/canny/*.png"))) < 60
    assert not (broken / "metadata.jsonl").exists()
    annotate(broken)
    assert tree(broken) == tree(whole)


def test_rows_columns_and_order_of_the_user_survive(pictures):
    mine = [
        {"file_name": "sub/é.bmp", "text": "mine", "rating": 5},
        {"file_name": "a.png", "text": "also mine", "depth_file_name": "d.png"},
    ]
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mine), encoding="utf-8")
    annotate(pictures)
    found = rows(pictures)
    assert found[0] == {**mine[0], "canny_file_name": "conditions/canny/sub/é.bmp.png"}
    assert found[1] == {**mine[1], "canny_file_name": "conditions/canny/a.png.png"}
    assert [row["file_name"] for row in found[2:]] == ["b.jpg", "b.png", "sub/a.png", "sub/c d.webp"]


def test_out_holds_the_whole_dataset(pictures, tmp_path):
    before = tree(pictures)
    annotate(pictures, "--out", str(tmp_path / "out"))
    assert tree(pictures) == before
    made = tree(tmp_path / "out")
    assert {name: made[name] for name in before if not name.endswith(".txt")} == {
        name: data for name, data in before.items() if not name.endswith(".txt")
    }
    loaded = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "hf"))
    assert set(loaded["train"].column_names) == {"image", "canny", "text"}


# Bad input


def spoil(folder):
    """Files that are no pictures, beside good ones."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    whole = folder / "sub" / "cut.jpg"
    Image.fromarray(draw_photo(5, 300, 200)).save(whole)
    whole.write_bytes(whole.read_bytes()[:2500])
    return {"empty.png", "text.jpg", "sub/cut.jpg"}


def test_bad_pictures_are_listed_and_cost_nothing_else(pictures, capsys):
    bad = spoil(pictures)
    assert main(["annotate", "--type", "canny", str(pictures)]) == 1
    said = capsys.readouterr().err
    errors = [json.loads(line) for line in (pictures / "errors.jsonl").read_text().splitlines()]
    assert {error["file_name"] for error in errors} == bad
    for error in errors:
        assert f"{pictures / error['file_name']}: {error['reason']}" in said
    assert len(rows(pictures)) == 6
    assert len(list(pictures.glob("conditions/canny/**/*.png"))) == 6


def test_the_row_of_a_bad_picture_waits_until_it_is_mended(pictures):
    spoil(pictures)
    mine = {"file_name": "empty.png", "text": "precious", "rating": 3}
    (pictures / "metadata.jsonl").write_text(json.dumps(mine) + "\n", encoding="utf-8")
    annotate(pictures, code=1)
    assert "precious" not in (pictures / "metadata.jsonl").read_text()
    Image.fromarray(draw_photo(1)).save(pictures / "empty.png")
    annotate(pictures, code=1)
    assert {**mine, "canny_file_name": "conditions/canny/empty.png.png"} in rows(pictures)
    for name in ("text.jpg", "sub/cut.jpg"):
        (pictures / name).unlink()
    annotate(pictures)
    assert not (pictures / "errors.jsonl").exists()


def test_strict_stops_at_the_first(pictures, capsys):
    spoil(pictures)
    annotate(pictures, "--strict", "--workers", "1", code=1)
    assert "stopped by --strict: " in capsys.readouterr().err
    assert not (pictures / "metadata.jsonl").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "there is no such folder"),
        (lambda folder: folder.mkdir(), "is empty; expected files like"),
        (lambda folder: (folder.mkdir(), (folder / "a.txt").write_text("x")), "holds 1 files but no picture"),
        (lambda folder: folder.write_text("x"), "is a file; give the folder"),
    ],
)
def test_a_folder_without_pictures_is_refused_in_one_line(tmp_path, capsys, make, words):
    folder = tmp_path / "d"
    make(folder)
    before = tree(tmp_path)
    annotate(folder, code=2)
    said = capsys.readouterr().err
    assert words in said
    assert str(folder) in said
    assert said.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--type", "cany", "DATA"], "unknown annotator 'cany': did you mean 'canny'?"),
        (["--type", "", "DATA"], "names no type"),
        (["--type", "canny", "--set", "canny.lo=3", "DATA"], "has no parameter 'lo': did you mean 'low'?"),
        (["--type", "canny", "--set", "low=3", "DATA"], "expected TYPE.NAME=VALUE"),
        (["--type", "canny", "--set", "depth.low=3", "DATA"], "not among the types to be made: canny"),
        (["--type", "canny", "--workers", "0", "DATA"], "Invalid value for '--workers'"),
        (["DATA"], "Missing option '--type'"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(pictures, capsys, arguments, words):
    before = tree(pictures)
    assert main(["annotate", *[str(pictures) if each == "DATA" else each for each in arguments]]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert tree(pictures) == before


def test_damaged_metadata_is_refused_and_kept(pictures, capsys):
    (pictures / "metadata.jsonl").write_text('{"file_name": "a.png"}\n{"file_name": \n')
    before = tree(pictures)
    annotate(pictures, code=2)
    assert "metadata.jsonl: line 2 is not JSON" in capsys.readouterr().err
    assert tree(pictures) == before


def test_an_unwritable_output_is_refused(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    annotate(pictures, "--out", str(tmp_path / "file" / "out"), code=2)
    assert "cannot be written (Not a directory); choose a folder of your own" in capsys.readouterr().err


@pytest.mark.slow
def test_a_picture_of_10000_by_10000(tmp_path):
    Image.fromarray(draw_photo(1, 10_000, 10_000)).save(tmp_path / "a.jpg")
    annotate(tmp_path)
    assert png_size(tmp_path / "conditions/canny/a.jpg.png") == (10_000, 10_000)


def test_two_processes_share_the_work_and_end_with_the_same_bytes(pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "alone")
    annotate(tmp_path / "alone")
    done = launch_two("-m", "controlkit", "annotate", "--type", "canny", str(pictures), "--json")
    assert done.returncode == 0, done.stderr
    assert "annotate: 3/3 pictures" in done.stderr  # the first of two has three of six
    assert json.loads(done.stdout.splitlines()[-1])["made"] == 6
    assert tree(pictures) == tree(tmp_path / "alone")
