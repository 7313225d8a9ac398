"""Hashes are remembered, and never of a file that has changed."""

import os
import time
from hashlib import sha256

import pytest

from controlkit.data import contents as module
from controlkit.data.contents import contents
from controlkit.data.pictures import BadPicture
from controlkit.processes import Processes
from tests.processes import together


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files that have lain there for a while, and a list of those that are read."""
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text(path.name)
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + 60)
    return paths


@pytest.fixture
def read(monkeypatch):
    paths = []
    digest_of = module.digest_of
    monkeypatch.setattr(module, "digest_of", lambda path: (paths.append(path.name), digest_of(path))[1])
    return paths


def ask(files, processes=None):
    return contents(files, f"the data in {files[0].parent}", processes or Processes())


def test_a_file_is_read_once(files, read):
    expected = [sha256(path.read_bytes()).hexdigest() for path in files]
    assert ask(files) == expected
    assert ask(files) == expected
    assert ask(files[::-1][:2]) == expected[::-1][:2]
    assert sorted(read) == ["a", "b", "c"]


def test_a_file_put_in_place_with_the_old_date_and_size_is_read_again(files, read):
    before = ask(files)
    status = files[1].stat()
    other = files[1].with_name("other")
    other.write_text("B")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(files[1])
    files[2].write_text("C")
    os.utime(files[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    after = ask(files)
    assert after == [sha256(path.read_bytes()).hexdigest() for path in files]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]
    assert read[3:] == ["b", "c"]


def test_a_file_of_this_moment_is_not_remembered(tmp_path, read):
    """It could change again within one tick of the clock, and nothing would show it."""
    path = tmp_path / "new"
    path.write_text("new")
    ask([path])
    ask([path])
    assert read == ["new", "new"]


def test_each_process_reads_its_share(files, read):
    results = together(lambda processes: ask(files, processes))
    assert results == [[sha256(path.read_bytes()).hexdigest() for path in files]] * 2
    assert sorted(read) == ["a", "b", "c"]


def test_a_memory_that_is_damaged_is_none(files, read, cache):
    ask(files)
    for memo in (cache / "contents").iterdir():
        memo.write_text("{")
    ask(files)
    assert len(read) == 6


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(BadPicture, match=r"gone: cannot be read \(No such file or directory\)"):
        ask([tmp_path / "gone"])
