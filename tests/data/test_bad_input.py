"""Folders as people have them: nothing lost, nothing overwritten, each problem listed once with its reason."""

import errno
import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import datasets
import numpy as np
import pytest
from PIL import Image

from controlkit.cli.main import main
from tests.conftest import draw_photo

PHOTO = draw_photo(4, 60, 44)


def annotate(folder, *arguments, code=0):
    assert main(["annotate", "--type", "canny", str(folder), "--quiet", *arguments]) == code


def encoded(name, image=None, **options):
    """The bytes of a picture file of that name."""
    buffer = io.BytesIO()
    image = Image.fromarray(PHOTO) if image is None else image
    image.save(buffer, format=Image.registered_extensions()["." + name.rpartition(".")[2]], **options)
    return buffer.getvalue()


def bomb():
    """A PNG of some hundred bytes that claims 50,000 x 50,000 pixels."""
    header = struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
    )


def errors(folder):
    try:
        lines = (folder / "errors.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    found = [json.loads(line) for line in lines]
    assert len({row["file_name"] for row in found}) == len(found)  # each is listed once
    return {row["file_name"]: row["reason"] for row in found}


def rows(folder):
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["file_name"]: row for row in map(json.loads, lines)}


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def map_of(folder, name):
    return np.asarray(Image.open(folder / "conditions" / "canny" / f"{name}.png"))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jpg", b"", "is empty (0 bytes)"),
        ("a.png", b"hello", "no picture: its 5 bytes"),
        ("a.jpg", encoded("a.jpg")[:600], "damaged or cut off"),
        ("a.png", encoded("a.png")[:600], "damaged or cut off"),
        ("a.webp", encoded("a.webp")[:200], "damaged or cut off"),
        ("a.bmp", encoded("a.bmp")[:600], "damaged or cut off"),
        ("a.tif", encoded("a.tif")[:600], ""),
        ("a.gif", encoded("a.gif", Image.fromarray(PHOTO).quantize(32))[:500], "damaged or cut off"),
        ("a.png", bomb(), "more than 178,956,970 pixels"),
        ("a.tif", encoded("a.tif", Image.fromarray(PHOTO[:, :, 0].astype(np.float32))), "floating-point"),
    ],
)
def test_a_bad_file_is_listed_with_its_reason_and_kept(pictures, capsys, name, data, words):
    (pictures / "bad").mkdir()
    (pictures / "bad" / name).write_bytes(data)
    annotate(pictures, code=1)
    found = errors(pictures)
    assert found.keys() == {f"bad/{name}"}
    assert words in found[f"bad/{name}"]
    assert capsys.readouterr().err == f"failed: {pictures / 'bad' / name}: {found[f'bad/{name}']}\n"
    assert (pictures / "bad" / name).read_bytes() == data
    assert len(rows(pictures)) == 6
    before = tree(pictures)
    annotate(pictures, code=1)  # again: the same
    assert tree(pictures) == before


EXIF = Image.Exif()
EXIF[0x0112] = 6
RGBA = np.dstack([PHOTO, np.full(PHOTO.shape[:2], 255, np.uint8)])
RGBA[:20, :, 3] = 0
GREY = PHOTO[:, :, 0]
PALETTE = Image.fromarray(PHOTO).quantize(64)
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (60, 44), "blue")]}


def rgb(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("name", "data", "seen"),
    [
        ("animated.gif", encoded("a.gif", PALETTE, **FRAMES), np.asarray(PALETTE.convert("RGB"))),
        ("animated.webp", encoded("a.webp", lossless=True, **FRAMES), PHOTO),
        ("animated.png", encoded("a.png", **FRAMES), PHOTO),
        ("deep.png", encoded("a.png", Image.fromarray(GREY.astype(np.uint16) * 257)), rgb(GREY)),
        ("palette.png", encoded("a.png", PALETTE), np.asarray(PALETTE.convert("RGB"))),
        ("alpha.png", encoded("a.png", Image.fromarray(RGBA)), np.where(RGBA[:, :, 3:] == 0, np.uint8(255), PHOTO)),
        ("turned.png", encoded("a.png", exif=EXIF), np.rot90(PHOTO, -1)),
        ("cmyk.tif", encoded("a.tif", Image.fromarray(PHOTO).convert("CMYK")), PHOTO),
        ("one.png", encoded("a.png", Image.fromarray(PHOTO[:1, :1])), PHOTO[:1, :1]),
        ("grey.png", encoded("a.png", Image.fromarray(GREY)), rgb(GREY)),
        ("bits.png", encoded("a.png", Image.fromarray(GREY > 127)), rgb((GREY > 127) * np.uint8(255))),
    ],
)
def test_an_odd_picture_is_annotated_as_people_see_it(tmp_path, name, data, seen):
    """The first frame, upright, 16 bits as 8, what is transparent white."""
    (tmp_path / name).write_bytes(data)
    annotate(tmp_path)
    assert np.array_equal(map_of(tmp_path, name), cv2.Canny(np.ascontiguousarray(seen), 100, 200))
    assert (tmp_path / name).read_bytes() == data


NAMES = [
    "with space.png",
    "new\nline.png",
    "quote'\"$`.png",
    "é\u0301漢🙂.png",
    "-dash.png",
    "a%20b#?.png",
    "UP.PNG",
    "dots.in.name.png",
]


def test_odd_names_survive_into_the_dataset(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Image.fromarray(draw_photo(number)).save(folder / name)
    annotate(folder)
    assert rows(folder).keys() == set(NAMES)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "hf"))["train"]
    assert len(loaded) == len(NAMES)
    before = tree(folder)
    annotate(folder)
    assert tree(folder) == before


def test_a_line_break_in_a_name_does_not_break_the_list_of_failures(tmp_path, capsys):
    (tmp_path / "bad\nfile.png").write_bytes(b"")
    annotate(tmp_path, code=1)
    assert capsys.readouterr().err.count("\n") == 1
    assert errors(tmp_path).keys() == {"bad\nfile.png"}


def test_a_name_that_is_not_utf8_is_listed_and_costs_nothing_else(pictures, capsys):
    with open(os.fsencode(pictures) + b"/caf\xe9.png", "wb") as file:  # noqa: PTH123 (a name in bytes)
        file.write(encoded("a.png"))
    annotate(pictures, "--json", code=1)
    assert json.loads(capsys.readouterr().out)["errors"] == [
        {"file_name": "caf\\udce9.png", "reason": "its name is not UTF-8; rename it"}
    ]
    assert len(rows(pictures)) == 6
    annotate(pictures, code=1)
    os.rename(os.fsencode(pictures) + b"/caf\xe9.png", pictures / "café.png")  # noqa: PTH104
    annotate(pictures)
    assert "café.png" in rows(pictures)
    assert not errors(pictures)


def test_what_looks_like_a_picture_but_is_none_is_listed(pictures):
    (pictures / "nowhere.png").symlink_to("missing.png")
    os.mkfifo(pictures / "pipe.png")
    (pictures / "folder.png").mkdir()
    annotate(pictures, code=1)
    assert errors(pictures) == {
        "nowhere.png": "cannot be read (No such file or directory)",
        "pipe.png": "is no file but something else, such as a pipe",
    }
    assert len(rows(pictures)) == 6


def test_links_in_a_circle_are_followed_once(pictures):
    (pictures / "sub" / "up").symlink_to(pictures, target_is_directory=True)
    (pictures / "self.png").symlink_to("self.png")
    annotate(pictures, code=1)
    assert errors(pictures) == {"self.png": "cannot be read (Too many levels of symbolic links)"}
    assert len(rows(pictures)) == 6


def test_an_input_that_must_not_be_written_is_not(pictures, tmp_path):
    """With --out no file or folder of the input is made, changed or removed, even where one could be."""
    for folder in (pictures, pictures / "sub"):
        folder.chmod(0o555)
    before = {path: path.stat().st_mtime_ns for path in (pictures, *pictures.rglob("*"))}
    annotate(pictures, "--out", str(tmp_path / "out"))
    assert {path: path.stat().st_mtime_ns for path in (pictures, *pictures.rglob("*"))} == before
    assert len(rows(tmp_path / "out")) == 6
    for folder in (pictures, pictures / "sub"):
        folder.chmod(0o755)


def test_equal_stems_keep_their_own_maps_and_share_a_caption(tmp_path):
    images = {name: draw_photo(number) for number, name in enumerate(["a.png", "a.bmp", "a.tif"])}
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("one caption")
    annotate(tmp_path)
    for name, image in images.items():
        assert np.array_equal(map_of(tmp_path, name), cv2.Canny(image, 100, 200))
        assert rows(tmp_path)[name]["text"] == "one caption"


def test_a_caption_in_another_encoding_is_listed_and_its_picture_waits(pictures):
    (pictures / "b.txt").write_bytes("größe".encode("latin-1"))  # of b.jpg and b.png
    annotate(pictures, code=1)
    reason = f"{pictures / 'b.txt'}: is not UTF-8; save it as UTF-8"
    assert errors(pictures) == {"b.jpg": reason, "b.png": reason}
    assert len(rows(pictures)) == 4
    (pictures / "b.txt").write_text("größe", encoding="utf-8")
    annotate(pictures)
    assert rows(pictures)["b.jpg"]["text"] == "größe"
    assert not errors(pictures)


def test_a_caption_with_a_byte_order_mark_is_read(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("größe", encoding="utf-8-sig")
    annotate(tmp_path)
    assert rows(tmp_path)["a.png"]["text"] == "größe"


@pytest.mark.parametrize("writes", [0, 3, 6])
def test_a_full_disk_stops_the_run_and_the_next_one_goes_on(pictures, tmp_path, capsys, monkeypatch, writes):
    """The disk takes so many files and the half of one more; at six the maps are there and metadata.jsonl is not."""
    shutil.copytree(pictures, tmp_path / "whole")
    annotate(tmp_path / "whole")
    opened = []

    class Full(io.FileIO):
        def write(self, data):
            opened.append(1)
            if len(opened) <= writes:
                return super().write(data)
            super().write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    whole_open = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode="r", **how: Full(self, "x") if mode == "xb" else whole_open(self, mode, **how)
    )
    annotate(pictures, "--workers", "1", code=2)
    monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err
    assert len([name for name in tree(pictures) if name.startswith("conditions")]) == writes
    assert not [name for name in tree(pictures) if "unfinished" in name]
    annotate(pictures)
    assert tree(pictures) == tree(tmp_path / "whole")
