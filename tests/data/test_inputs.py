"""Pictures from wherever people keep them: files, globs, archives, parquet, videos."""

import io
import json
import shutil
import tarfile
import zipfile

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image

from controlkit.cli.main import main
from tests.conftest import draw_photo

PHOTOS = {f"{number}.png": draw_photo(number) for number in range(3)}


def annotate(data, *arguments, code=0):
    assert main(["annotate", "--type", "canny", str(data), "--quiet", *arguments]) == code


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(folder):
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["file_name"]: row for row in map(json.loads, lines)}


def errors(folder):
    lines = (folder / "errors.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["file_name"]: row["reason"] for row in map(json.loads, lines)}


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def maps(folder):
    """By picture: its map."""
    return {name: np.asarray(Image.open(folder / row["canny_file_name"])) for name, row in rows(folder).items()}


def expect_maps(folder, images):
    made = maps(folder)
    assert made.keys() == images.keys()
    for name, image in images.items():
        assert np.array_equal(made[name], cv2.Canny(image, 100, 200)), name


# Files


def test_one_picture(pictures):
    annotate(pictures / "sub" / "a.png")
    assert rows(pictures / "sub").keys() == {"a.png"}
    assert not (pictures / "metadata.jsonl").exists()


def test_a_glob_takes_what_matches_and_leaves_the_other_rows(pictures):
    annotate(f"{pictures}/**/*.png")
    assert rows(pictures).keys() == {"a.png", "b.png", "sub/a.png"}
    annotate(f"{pictures}/sub/*")  # the folder before the wildcard holds the dataset
    assert rows(pictures / "sub").keys() == {"a.png", "c d.webp", "é.bmp"}
    annotate(f"{pictures}/b.*")
    assert rows(pictures).keys() == {"a.png", "b.jpg", "b.png", "sub/a.png"}


def test_errors_of_other_pictures_stay_listed(pictures):
    (pictures / "bad.png").write_bytes(b"")
    annotate(pictures, code=1)
    annotate(pictures / "a.png")
    assert errors(pictures).keys() == {"bad.png"}
    (pictures / "bad.png").unlink()
    annotate(pictures)
    assert not (pictures / "errors.jsonl").exists()


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("*.txt", "matches 1 files but no picture"), ("no/*.png", "there is no folder"), ("x.png", "there is no such")],
)
def test_what_matches_nothing_is_refused(pictures, capsys, pattern, words):
    annotate(f"{pictures}/{pattern}", code=2)
    assert words in capsys.readouterr().err


# Archives


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path, files):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


FILES = {
    **{f"shard/{name}": encoded(image) for name, image in PHOTOS.items()},
    "shard/0.txt": b"nought",
    "shard/1.cls": b"7",
    "__MACOSX/shard/0.png": b"x",
    "shard/.hidden.png": b"x",
}


@pytest.mark.parametrize(
    ("pack", "name"), [(zipped, "a.zip"), (tarred, "a.tar"), (tarred, "a.tar.gz"), (tarred, "A.TGZ")]
)
def test_an_archive_becomes_a_dataset(tmp_path, pack, name):
    """As a webdataset has them: the caption beside the picture."""
    archive, out = pack(tmp_path / name, FILES), tmp_path / "out"
    before = archive.read_bytes()
    annotate(archive, "--out", str(out))
    expect_maps(out, {f"shard/{name}": image for name, image in PHOTOS.items()})
    assert rows(out)["shard/0.png"]["text"] == "nought"
    assert archive.read_bytes() == before
    whole = tree(out)
    (out / "shard/1.png").unlink()
    (out / "conditions/canny/shard/1.png.png").unlink()
    annotate(archive, "--out", str(out))
    assert tree(out) == whole


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "C:/evil.png"])
def test_a_path_out_of_the_folder_is_refused_before_anything_is_written(tmp_path, capsys, pack, name):
    archive = pack(tmp_path / f"a.{'zip' if pack is zipped else 'tar'}", {"good.png": b"x", name: b"x"})
    annotate(archive, "--out", str(tmp_path / "deep" / "out"), code=2)
    assert "leads out of the folder; such an archive is refused" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {archive.name, "deep", "out"}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.parquet", "a.mp4"])
@pytest.mark.parametrize("data", [b"", b"nothing of the kind" * 50])
def test_a_damaged_archive_is_refused_in_one_line(tmp_path, capfd, name, data):
    (tmp_path / name).write_bytes(data)
    annotate(tmp_path / name, "--out", str(tmp_path / "out"), code=2)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert name in said[0]


def test_an_entry_that_cannot_be_unpacked_costs_only_itself(tmp_path):
    files = {name: encoded(image) for name, image in PHOTOS.items()}
    archive = zipped(tmp_path / "a.zip", files)
    data = archive.read_bytes()
    place = data.index(files["1.png"]) + 40
    archive.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    annotate(archive, "--out", str(tmp_path / "out"), code=1)
    assert errors(tmp_path / "out").keys() == {"1.png"}
    assert "Bad CRC" in errors(tmp_path / "out")["1.png"]
    expect_maps(tmp_path / "out", {name: PHOTOS[name] for name in ("0.png", "2.png")})


def test_a_link_in_a_tar_is_listed_and_not_followed(tmp_path):
    archive = tarred(tmp_path / "a.tar", {"0.png": encoded(PHOTOS["0.png"])})
    with tarfile.open(archive, "a") as file:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)
    annotate(archive, "--out", str(tmp_path / "out"), code=1)
    assert errors(tmp_path / "out") == {"link.png": "is no file but a link or a device"}


def test_nothing_in_the_output_is_overwritten(tmp_path, capsys):
    archive = zipped(tmp_path / "a.zip", {"0.png": encoded(PHOTOS["0.png"])})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.png").write_bytes(b"precious")
    annotate(archive, "--out", str(tmp_path / "out"), code=2)
    assert "is there already, with other content" in capsys.readouterr().err
    assert (tmp_path / "out" / "0.png").read_bytes() == b"precious"


def test_an_archive_needs_a_place_for_its_pictures(tmp_path, capsys):
    annotate(zipped(tmp_path / "a.zip", FILES), code=2)
    assert "give --out DIR" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {"a.zip"}


def test_an_annotated_dataset_survives_packing(dataset, tmp_path, capsys):
    """Its maps and rows come along, so that nothing is made again."""
    shutil.make_archive(str(tmp_path / "d"), "zip", dataset)
    annotate(tmp_path / "d.zip", "--out", str(tmp_path / "out"), "--json")
    assert json.loads(capsys.readouterr().out)["made"] == 0
    assert tree(tmp_path / "out") == tree(dataset)


# Parquet


@pytest.fixture
def parquet(tmp_path):
    """What `datasets` writes for the hub, in two files."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    photos = list(PHOTOS.values())
    for number, part in enumerate((photos[:2], photos[2:])):
        table = {
            "image": [Image.fromarray(each) for each in part],
            "caption": [f"{number}-{k}" for k in range(len(part))],
        }
        datasets.Dataset.from_dict(table, features=features).to_parquet(folder / f"train-{number}.parquet")
    return tmp_path / "hub"


def test_a_hub_dataset_folder_becomes_a_dataset(parquet, tmp_path):
    annotate(parquet, "--out", str(tmp_path / "out"))
    expect_maps(tmp_path / "out", {f"00000{number}.png": image for number, image in enumerate(PHOTOS.values())})
    assert [row["text"] for row in rows(tmp_path / "out").values()] == ["0-0", "0-1", "1-0"]
    before = tree(tmp_path / "out")
    annotate(parquet, "--out", str(tmp_path / "out"))
    assert tree(tmp_path / "out") == before


def test_one_parquet_file_of_plain_bytes(tmp_path):
    table = {"jpg": [encoded(PHOTOS["0.png"]), None, b"junk"], "n": [1, 2, 3]}
    datasets.Dataset.from_dict(table).to_parquet(tmp_path / "a.parquet")
    annotate(tmp_path / "a.parquet", "--out", str(tmp_path / "out"), code=1)
    expect_maps(tmp_path / "out", {"000000.png": PHOTOS["0.png"]})
    assert errors(tmp_path / "out").keys() == {"000001", "000002.png"}
    assert errors(tmp_path / "out")["000001"] == "the row holds no picture"


def test_parquet_without_pictures_is_refused(tmp_path, capsys):
    datasets.Dataset.from_dict({"n": [1], "text": ["a"]}).to_parquet(tmp_path / "a.parquet")
    annotate(tmp_path / "a.parquet", "--out", str(tmp_path / "out"), code=2)
    assert "has no column of pictures; its columns: n, text" in capsys.readouterr().err


def test_a_picture_folder_with_a_stray_parquet_file_stays_a_picture_folder(pictures):
    datasets.Dataset.from_dict({"n": [1]}).to_parquet(pictures / "a.parquet")
    annotate(pictures)
    assert len(rows(pictures)) == 6


# Videos


@pytest.fixture
def video(tmp_path):
    """Twelve frames at eight a second."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 8, (96, 64))
    for number in range(12):
        writer.write(draw_photo(number))
    writer.release()
    return path


def frames(path):
    """As OpenCV reads them, in RGB."""
    reader, found = cv2.VideoCapture(str(path)), []
    while (read := reader.read())[0]:
        found.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    return found


@pytest.mark.parametrize(
    ("fps", "numbers"), [(None, range(12)), (8, range(12)), (4, range(0, 12, 2)), (3, (0, 3, 6, 8, 11))]
)
def test_frames_of_a_video(video, tmp_path, fps, numbers):
    annotate(video, "--out", str(tmp_path / "out"), *(["--fps", str(fps)] if fps else []))
    every = frames(video)
    assert len(every) == 12
    expect_maps(tmp_path / "out", {f"clip-{number:06d}.png": every[number] for number in numbers})


@pytest.mark.parametrize("fps", ["9", "0"])
def test_frames_that_are_not_there_are_refused(video, tmp_path, capsys, fps):
    annotate(video, "--out", str(tmp_path / "out"), "--fps", fps, code=2)
    assert "fps" in capsys.readouterr().err


def test_fps_is_for_videos(pictures, tmp_path, capsys):
    annotate(pictures, "--fps", "2", code=2)
    annotate(zipped(tmp_path / "a.zip", FILES), "--fps", "2", "--out", str(tmp_path / "out"), code=2)
    assert capsys.readouterr().err.count("is no video") == 2
