"""Tars on another machine: the rows of a copy on the disk, read through once, by ranges after that, and never stale."""

import json
import tarfile

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from controlkit.cli.main import main
from controlkit.data import readable
from controlkit.data.geometry import Geometry, sizes_of
from controlkit.data.pictures import BadPicture, read_picture
from controlkit.data.rows import find_datasets, read_dataset, read_datasets
from controlkit.errors import RequestError
from controlkit.processes import Processes
from tests.data.test_forms import add, as_webdataset, batches, png, same
from tests.processes import together

TARS = "memory://bucket/*.tar"


@pytest.fixture
def system(dataset, tmp_path, monkeypatch):
    """A store of three tars, and a cache that knows nothing of them; it counts what is asked for."""
    monkeypatch.setenv("CONTROLKIT_CACHE", str(tmp_path / "cache"))
    folder, _, _ = as_webdataset(dataset, tmp_path / "tars")
    system = fsspec.filesystem("memory")
    for tar in folder.iterdir():
        system.pipe(f"/bucket/{tar.name}", tar.read_bytes())
    asked, whole, part = [], MemoryFileSystem.open, MemoryFileSystem.cat_file

    def opened(self, path, *arguments, **options):
        asked.append(path)
        return whole(self, path, *arguments, **options)

    def ranged(self, path, *span):
        asked.append((path, *span))
        return part(self, path, *span)

    monkeypatch.setattr(MemoryFileSystem, "open", opened)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", ranged)
    monkeypatch.setattr(readable, "WAITS", (0.0, 0.0))
    system.asked = asked
    yield system
    system.rm("/bucket", recursive=True)


def test_the_rows_and_batches_are_those_of_a_copy(system, dataset):
    rows, expected = read_datasets(TARS, "canny"), read_dataset(dataset, "canny")
    for name in ("content", "captions"):
        assert [getattr(row, name) for row in rows] == [getattr(row, name) for row in expected]
    assert all(same(a, b) for a, b in zip(batches(rows), batches(expected), strict=True))


def test_a_tar_is_read_through_once_and_a_row_is_a_range(system):
    read_datasets(TARS, "canny")
    assert sorted(system.asked) == ["/bucket/00000.tar", "/bucket/00001.tar", "/bucket/00002.tar"]
    system.asked.clear()
    rows = read_datasets(TARS, "canny")
    assert system.asked == []
    picture = rows[12].picture
    read_picture(picture)
    assert system.asked[0] == ("/bucket/00001.tar", picture.offset, picture.offset + picture.size)


def test_a_tar_that_was_replaced_is_read_through_again(system, tmp_path):
    before = [row.content for row in read_datasets(TARS, "canny")]
    data = bytearray(system.cat_file("/bucket/00001.tar"))
    data[512 + 100] ^= 1  # in the first member
    system.pipe("/bucket/00001.tar", bytes(data))
    system.asked.clear()
    after = [row.content for row in read_datasets(TARS, "canny")]
    assert system.asked == ["/bucket/00001.tar"]
    assert [one == other for one, other in zip(before, after, strict=True)] == [number != 10 for number in range(24)]


def test_where_nothing_tells_a_change_nothing_is_kept(system, monkeypatch):
    info = MemoryFileSystem.info
    keys = ("name", "size", "type")
    monkeypatch.setattr(MemoryFileSystem, "info", lambda *a: {key: info(*a)[key] for key in keys if key in info(*a)})
    for _ in range(2):
        system.asked.clear()
        assert len(read_datasets(TARS, "canny")) == 24
        assert len(system.asked) == 3


def test_each_process_reads_its_share_through_and_all_know_all(system):
    one, other = together(lambda processes: read_datasets(TARS, "canny", processes=processes))
    assert one == other
    assert len(one) == 24
    assert sorted(system.asked) == ["/bucket/00000.tar", "/bucket/00001.tar", "/bucket/00002.tar"]


def test_other_bytes_than_were_seen_are_refused(system):
    """A tar that changes under a run would teach it something else than its rows are known for."""
    row = read_datasets(TARS, "canny")[10]
    data = bytearray(system.cat_file("/bucket/00001.tar"))
    data[row.picture.offset] ^= 1
    system.pipe("/bucket/00001.tar", bytes(data))
    with pytest.raises(BadPicture, match=r"00001.tar/part/000010.png: cannot be read \(is not what it was"):
        read_picture(row.picture)


@pytest.mark.parametrize(("failures", "read"), [(2, True), (3, False)])
def test_a_range_is_asked_for_again(system, monkeypatch, failures, read):
    row = read_datasets(TARS, "canny")[3]
    left, own = [failures], MemoryFileSystem.cat_file

    def shaky(self, *arguments, **options):
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError("reset by peer")
        return own(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", shaky)
    if read:
        assert read_picture(row.picture).shape == (64, 64, 3)
    else:
        with pytest.raises(BadPicture, match=r"cannot be read \(reset by peer\)"):
            read_picture(row.picture)


def test_sizes_need_no_range(system):
    """Buckets know the shape of each picture from when its tar was read through."""
    rows = read_datasets(TARS, "canny")
    system.asked.clear()
    assert set(sizes_of(rows, Geometry(64, 16), Processes())) == {(64, 64)}
    assert system.asked == []


def test_a_resumed_run_is_that_of_a_copy_on_the_disk(dataset, tmp_path):
    folder, _, _ = as_webdataset(dataset, tmp_path / "tars")
    settings = [f"data.path=file://{folder}/*.tar", "base=random-sd15", "batch_size=2", "checkpoint_every=1"]
    settings += ["samples.every=0", "watch.every=0", f"output={tmp_path / 'run'}", "-q"]
    assert main(["train", *settings, "steps=1"]) == 0
    assert main(["train", *settings, "steps=3", "--resume"]) == 0
    own = [f"data.path={dataset}", *settings[1:-2], f"output={tmp_path / 'own'}", "steps=3", "-q"]
    assert main(["train", *own]) == 0
    one, other = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "own"))
    assert one == other


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nosuch://bucket/a.tar", "data.path=nosuch://bucket/a.tar: Protocol not known: nosuch"),
        ("memory://bucket/b*.tar", "data.path=memory://bucket/b*.tar: there is no such tar"),
        ("memory://bucket/b.tar", "memory://bucket/b.tar: there is no such file"),
        ("memory://bucket/a.parquet", "expected tars, e.g. …/*.tar; what else lies there is read from the disk"),
        ("memory://bucket/cut.tar", "memory://bucket/cut.tar: is no whole tar archive"),
        (
            "memory://bucket/00000.tar",
            "has no depth maps: known: canny; make them: controlkit annotate",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(system, address, words, tmp_path, capsys):
    system.pipe("/bucket/cut.tar", system.cat_file("/bucket/00000.tar")[:5000])
    arguments = [f"data.path={address}", "base=random-sd15", "data.condition=depth", f"output={tmp_path / 'run'}"]
    assert main(["train", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert words in said[-1]
    assert not (tmp_path / "run").exists()


def test_only_trainings_read_from_elsewhere(system, tmp_path):
    with pytest.raises(RequestError, match="lies on another machine, and is needed here; copy it"):
        find_datasets(TARS)


def test_a_damaged_picture_does_not_spoil_its_tar(system, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, data in enumerate((b"no picture", png(read_picture(read_datasets(TARS, "canny")[0].picture)))):
            add(archive, f"{number}.png", data)
            add(archive, f"{number}.json", json.dumps({"text": f"number {number}"}).encode())
    system.pipe("/bucket/more/a.tar", (tmp_path / "a.tar").read_bytes())
    bad, good = read_datasets("memory://bucket/more/a.tar")
    assert good.caption == "number 1"
    assert read_picture(good.picture).shape == (64, 64, 3)
    with pytest.raises(BadPicture, match="no picture"):
        read_picture(bad.picture)
