"""Data in any form: the same content gives the same rows, and the same batches."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet

from controlkit.cli.main import main
from controlkit.data.pictures import read_picture
from controlkit.data.rows import WORLDS, held_out, read_dataset, read_datasets
from controlkit.errors import RequestError
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, make_batches

# Each makes of an annotated folder the same content in another form, and says what names it: path, condition, maps.


def imagefolder(dataset, out):
    return dataset, "canny", None


def as_tutorial(dataset, out):
    """prompt.json of the original ControlNet: its maps are called source."""
    lines = []
    for row in rows_of(dataset):
        for name in (row["file_name"], row["canny_file_name"]):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(dataset / name, out / name)
        lines.append({"source": row["canny_file_name"], "target": row["file_name"], "prompt": row["text"]})
    (out / "prompt.json").write_text("\n".join(map(json.dumps, lines)))
    return out, "source", None


def as_two_folders(dataset, out):
    """kohya's: pictures with .txt beside them, maps with equal names and suffixes of their own."""
    for row in rows_of(dataset):
        name = Path(row["file_name"])
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        (out / "maps").mkdir(exist_ok=True)
        shutil.copy(dataset / name, out / "pictures" / name)
        (out / "pictures" / name.with_suffix(".txt")).write_text(row["text"])
        shutil.copy(dataset / row["canny_file_name"], out / "maps" / name.with_suffix(".png"))
    return out / "pictures", "canny", out / "maps"


def as_webdataset(dataset, out, *, as_json=False):
    out.mkdir()
    rows = rows_of(dataset)
    for shard, start in enumerate(range(0, len(rows), 10)):
        with tarfile.open(out / f"{shard:05d}.tar", "w") as archive:
            for number, row in enumerate(rows[start : start + 10]):
                key = f"part/{start + number:06d}"
                text = ("json", json.dumps({"text": row["text"]})) if as_json else ("txt", row["text"])
                add(archive, f"{key}.png", (dataset / row["file_name"]).read_bytes())
                add(archive, f"{key}.{text[0]}", text[1].encode())
                add(archive, f"{key}.canny.png", (dataset / row["canny_file_name"]).read_bytes())
    return out, "canny", None


def as_webdataset_with_json(dataset, out):
    return as_webdataset(dataset, out, as_json=True)


def as_parquet(dataset, out):
    """As `datasets` pushes to the hub: data/train-….parquet with structs of bytes and path, and another split."""
    (out / "data").mkdir(parents=True)

    def picture(name):
        return {"bytes": (dataset / name).read_bytes(), "path": None}

    table = pyarrow.Table.from_pylist(
        [
            {"image": picture(row["file_name"]), "caption": row["text"], "canny": picture(row["canny_file_name"])}
            for row in rows_of(dataset)
        ]
    )
    parquet.write_table(table.slice(0, 13), out / "data" / "train-00000-of-00002.parquet", row_group_size=5)
    parquet.write_table(table.slice(13), out / "data" / "train-00001-of-00002.parquet", row_group_size=5)
    parquet.write_table(table.slice(0, 3), out / "data" / "test-00000-of-00001.parquet")
    return out, "canny", None


FORMS = [imagefolder, as_tutorial, as_two_folders, as_webdataset, as_webdataset_with_json, as_parquet]
forms = pytest.mark.parametrize("make", FORMS, ids=[make.__name__ for make in FORMS])


def rows_of(dataset):
    return [json.loads(line) for line in (dataset / "metadata.jsonl").read_text().splitlines()]


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def batches(rows, condition="canny", workers=0):
    data = ControlRows(
        rows, condition=condition, resolution=64, latent_shape=(4, 8, 8), timesteps=1000, prompt_dropout=0.5, seed=0
    )
    made = make_batches(data, start=5, count=3, batch_size=4, workers=workers, processes=Processes(), pin=False)
    return list(made)


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


@forms
def test_every_form_gives_the_same_batches(make, dataset, tmp_path):
    path, condition, maps = make(dataset, tmp_path / "out")
    rows = read_dataset(path, condition, maps=maps)
    expected = read_dataset(dataset, "canny")
    assert [row.content for row in rows] == [row.content for row in expected]
    assert [row.captions for row in rows] == [row.captions for row in expected]
    assert all(same(a, b) for a, b in zip(batches(rows, condition), batches(expected), strict=True))
    assert [held_out(row.content, 0.5) for row in rows] == [held_out(row.content, 0.5) for row in expected]


@pytest.mark.parametrize("make", [as_webdataset, as_parquet])
def test_workers_read_parts_of_files_too(make, dataset, tmp_path):
    path, condition, _ = make(dataset, tmp_path / "out")
    rows = read_dataset(path, condition)
    assert all(same(a, b) for a, b in zip(batches(rows), batches(rows, workers=1), strict=True))


@pytest.mark.parametrize("make", [as_two_folders, as_parquet])
def test_a_run_on_any_form_is_the_same_run(make, dataset, tmp_path):
    """With the cache: what another form brought into it is found, since the bytes are the same."""
    path, condition, maps = make(dataset, tmp_path / "out")
    settings = ["steps=2", "batch_size=2", "samples.every=0", "watch.every=0", "-q"]
    named = [f"data.path={path}", f"data.condition={condition}", *([f"data.maps={maps}"] if maps else [])]
    assert main(["train", *named, *settings, f"output={tmp_path / 'one'}"]) == 0
    assert main(["train", f"data.path={dataset}", *settings, f"output={tmp_path / 'other'}"]) == 0
    one, other = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("one", "other"))
    assert one == other


def test_several_captions_of_a_picture_survive(dataset, tmp_path):
    table = pyarrow.Table.from_pylist(
        [{"image": (dataset / "000.png").read_bytes(), "text": ["one", "two"]}, {"image": b"", "text": None}]
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = read_dataset(tmp_path / "a.parquet")
    assert [row.captions for row in rows] == [("one", "two"), ("",)]
    assert read_picture(rows[0].picture).shape == (64, 64, 3)
    with pytest.raises(RequestError, match=r"image of row 1 in group 0: is empty"):
        read_picture(rows[1].picture)


def test_files_and_wildcards_name_data(dataset, tmp_path):
    folder, _, _ = as_webdataset(dataset, tmp_path / "tars")
    assert len(read_datasets(f"{folder}/*.tar", "canny")) == 24
    assert len(read_datasets(f"{folder / '00000.tar'}, {folder / '00002.tar'}", "canny")) == 14


@pytest.mark.parametrize(("rank", "expected"), [(0, ["found", "wait", "found"]), (1, ["wait", "found"])])
def test_one_of_several_processes_draws_a_world(dataset, monkeypatch, rank, expected):
    """The others wait until it is there."""
    done = []

    class Waiting(Processes):
        def wait(self):
            done.append("wait")

        def gather(self, items):
            return items

    monkeypatch.setitem(WORLDS, "drawn", lambda count, say: done.append("found") or dataset)
    monkeypatch.setattr(Processes, "slice", lambda self, items: items)
    assert read_datasets("drawn:8", "canny", processes=Waiting(rank, 2))
    assert done == expected


def test_a_label_is_read_from_any_form(dataset, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "0.png", (dataset / "000.png").read_bytes())
        add(archive, "0.json", json.dumps({"scene": {"disc": "red"}}).encode())
    assert [row.label for row in read_dataset(tmp_path / "a.tar", label="scene.disc")] == ["red"]


def test_a_folder_of_pictures_is_not_taken_for_its_archive(dataset, tmp_path):
    folder, _, _ = as_webdataset(dataset, tmp_path / "tars")
    shutil.copy(dataset / "000.png", folder / "a.png")
    assert [row.file_name for row in read_dataset(folder)] == ["a.png"]


def test_a_replaced_member_has_another_content(dataset, tmp_path):
    folder, _, _ = as_webdataset(dataset, tmp_path / "tars")
    before = [row.content for row in read_dataset(folder, "canny")]
    path = folder / "00001.tar"
    data = bytearray(path.read_bytes())
    data[512 + 100] ^= 1  # in the first member
    path.write_bytes(data)
    after = [row.content for row in read_dataset(folder, "canny")]
    assert [one == other for one, other in zip(before, after, strict=True)] == [number != 10 for number in range(24)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is no whole tar archive"),
        (lambda path: path.rename(path.with_name("a.tar.gz")), "is compressed; put its pictures into a folder"),
        (lambda path: path.rename(path.with_name("a.zip")), "is no tar and no parquet file; put its pictures into"),
        (lambda path: rewritten(path, "0.json", b"{"), "a.tar/0.json: is not JSON"),
        (lambda path: rewritten(path, "0.json", b"[]"), "a.tar/0.json: expected names and values in JSON, got list"),
        (lambda path: rewritten(path, "0.txt", b""), "holds pictures but no control maps"),
        (lambda path: rewritten(path, "0.depth.png", b""), "has no canny maps: known: depth; make them: controlkit"),
    ],
)
def test_a_spoilt_tar_is_one_line(spoil, words, dataset, tmp_path, capsys):
    path = rewritten(tmp_path / "a.tar", "0.txt", b"a")
    data = spoil(path) or path
    data = data if isinstance(data, Path) else path
    assert main(["train", f"data.path={data}", f"output={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def rewritten(path, name, data):
    from tests.conftest import draw_photo

    with tarfile.open(path, "w") as archive:
        add(archive, "0.png", png(draw_photo(0)))
        add(archive, name, data)
    return path


def png(image):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def test_two_folders_that_do_not_match_are_one_line(dataset, tmp_path, capsys):
    pictures, _, maps = as_two_folders(dataset, tmp_path / "out")
    (maps / "003.png").unlink()
    output = f"output={tmp_path / 'run'}"
    assert main(["train", f"data.path={pictures}", f"data.maps={maps}", output]) == 2
    assert "holds no map for 003.png; expected one under the same name" in capsys.readouterr().err
    assert main(["train", f"data.path={pictures}", "data.maps=/nowhere", output]) == 2
    assert "data.maps=/nowhere: there is no such folder" in capsys.readouterr().err
    assert main(["train", f"data.path={pictures},{pictures}", f"data.maps={maps}", output]) == 2
    assert "goes with one folder of pictures" in capsys.readouterr().err


def test_a_parquet_file_without_pictures_or_cut_off_is_one_line(tmp_path):
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(RequestError, match="has no column of pictures; its columns: text"):
        read_dataset(tmp_path / "a.parquet", "canny")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:50])
    with pytest.raises(RequestError, match="is no whole parquet file"):
        read_dataset(tmp_path / "b.parquet", "canny")
