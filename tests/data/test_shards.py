"""`annotate --shards`: what other readers of webdataset find in the tars."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from controlkit.cli.main import main
from tests.conftest import draw_photo
from tests.forked import run_two


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "d"
    (place / "sub.dir").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b.JPG", "sub.dir/c.png", "sub.dir/d.e.png", "z.webp"]):
        Image.fromarray(draw_photo(number)).save(place / name)
    (place / "a.txt").write_text("a red ball", encoding="utf-8")
    return place


def annotate(folder, *more):
    return main(["annotate", "--type", "canny,grey", str(folder), "--quiet", *map(str, more)])


def members(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_a_row_is_the_members_of_one_key(folder, tmp_path):
    assert annotate(folder, "--shards", tmp_path / "s", "--rows-per-shard", 2) == 0
    tars = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert tars == ["000000.tar", "000001.tar", "000002.tar"]
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {}
    for name in tars:
        found |= members(tmp_path / "s" / name)
    for number, row in enumerate(rows):
        key = f"{number:09d}"
        suffix = "." + row["file_name"].rpartition(".")[2].lower()
        assert found.pop(key + suffix) == (folder / row["file_name"]).read_bytes()
        assert json.loads(found.pop(f"{key}.json")) == row
        for type in ("canny", "grey"):
            assert found.pop(f"{key}.{type}.png") == (folder / row[f"{type}_file_name"]).read_bytes()
        assert found.pop(f"{key}.txt", b"").decode() == row.get("text", "")
    assert not found


def test_datasets_reads_the_shards_as_webdataset(folder, tmp_path):
    from datasets import load_dataset

    for path in [*folder.rglob("*.jpg"), *folder.rglob("*.JPG"), *folder.rglob("*.webp")]:
        path.unlink()  # rows of one suffix, as that reader wants them
    annotate(folder, "--shards", tmp_path / "s")
    loaded = load_dataset("webdataset", data_files=str(tmp_path / "s" / "*.tar"), cache_dir=str(tmp_path / "c"))
    assert {"png", "canny.png", "grey.png"} <= set(loaded["train"].column_names)
    for row in loaded["train"]:
        assert row["png"].size == row["canny.png"].size


def test_the_same_dataset_gives_the_same_bytes_in_two_processes_too(folder, tmp_path):
    annotate(folder, "--shards", tmp_path / "one", "--rows-per-shard", 1)
    arguments = ["annotate", "--type", "canny,grey", str(folder), "--shards", str(tmp_path / "two")]
    done = run_two(*arguments, "--rows-per-shard", "1")
    assert done.returncode == 0, done.stderr
    assert "annotate: 2/2 pictures" in done.stderr  # the first of two has two of five
    shards = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert shards == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in shards)


def test_annotating_the_shards_again_takes_the_pictures_and_not_their_maps(folder, tmp_path):
    annotate(folder, "--shards", tmp_path / "s")
    assert annotate(tmp_path / "s" / "000000.tar", "--out", tmp_path / "again") == 0
    rows = [json.loads(line) for line in (tmp_path / "again" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert "a red ball" in [row.get("text") for row in rows]
    again = np.asarray(Image.open(tmp_path / "again" / rows[0]["canny_file_name"]))
    assert np.array_equal(again, np.asarray(Image.open(folder / "conditions" / "canny" / "a.jpg.png")))


def test_a_shard_that_would_be_taken_for_one_of_these_is_refused(folder, tmp_path, capsys):
    annotate(folder, "--shards", tmp_path / "s", "--rows-per-shard", 1)
    assert annotate(folder, "--shards", tmp_path / "s", "--rows-per-shard", 5) == 2
    assert "000001.tar, which is none of the 1 shards" in capsys.readouterr().err
    assert annotate(folder, "--rows-per-shard", 5) == 2
    assert "goes with --shards" in capsys.readouterr().err


def test_a_row_whose_picture_went_away_is_named(folder, tmp_path, capsys):
    annotate(folder)
    (folder / "a.jpg").unlink()
    assert annotate(folder, "--shards", tmp_path / "s") == 2
    assert "a.jpg: named in metadata.jsonl but missing" in capsys.readouterr().err
    assert not list((tmp_path / "s").glob("*"))
