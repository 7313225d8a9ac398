"""Files appear whole or not at all."""

from pathlib import Path

import pytest

from controlkit.errors import RequestError
from controlkit.files import (
    atomic_create_bytes,
    atomic_file,
    atomic_folder,
    atomic_path,
    atomic_write_bytes,
    link_or_copy,
    need_writable,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.txt"
    atomic_write_bytes(path, b"old")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize(("make", "by"), [(atomic_file, "open"), (atomic_path, "mkdir"), (atomic_folder, "mkdir")])
def test_ctrl_c_while_the_temporary_name_is_made_leaves_nothing(tmp_path, monkeypatch, make, by):
    """The signal arrives when the name is on the disk and the call that put it there has not yet returned."""
    original, made = getattr(Path, by), []

    def interrupted(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        if self == tmp_path:
            return
        made.append(self)
        if by == "open":
            result.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, by, interrupted)
    with pytest.raises(KeyboardInterrupt), make(tmp_path / "a"):
        pass
    assert len(made) == 1
    assert names(tmp_path) == []


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path):
    atomic_write_bytes(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_the_longest_names_can_be_written(tmp_path):
    longest, another = tmp_path / ("a" * 255), tmp_path / ("b" * 255)
    atomic_write_bytes(longest, b"1")
    link_or_copy(longest, another)
    atomic_create_bytes(tmp_path / ("c" * 255), b"1")
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"1"}


def test_create_never_replaces(tmp_path):
    atomic_create_bytes(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError):
        atomic_create_bytes(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with atomic_folder(tmp_path / "f") as unfinished:
        (unfinished / "a").write_text("1")
        assert not (tmp_path / "f").exists()
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "f") as unfinished:
        (unfinished / "missing").rename(unfinished / "a")
    assert (tmp_path / "f" / "a").read_text() == "1"
    with atomic_folder(tmp_path / "f") as unfinished:
        (unfinished / "b").write_text("3")
    assert names(tmp_path / "f") == ["b"]
    assert names(tmp_path) == ["f"]


def test_who_comes_second_leaves_the_folder_of_the_first_where_it_is(tmp_path):
    """Two processes make what both need, and one of them already reads it."""
    with atomic_folder(tmp_path / "f", replace=False) as slow:
        with atomic_folder(tmp_path / "f", replace=False) as quick:
            (quick / "a").write_text("quick")
        (slow / "a").write_text("slow")
    assert (tmp_path / "f" / "a").read_text() == "quick"
    assert names(tmp_path) == ["f"]


def test_link_or_copy_twice_is_once(tmp_path):
    source = tmp_path / "a"
    source.write_text("x")
    for _ in range(2):
        link_or_copy(source, tmp_path / "out" / "a")
    assert (tmp_path / "out" / "a").read_text() == "x"
    assert names(tmp_path / "out") == ["a"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"--out '.*/file/x' cannot be written \(Not a directory\)"):
        need_writable(tmp_path / "file" / "x", "--out")


def test_a_folder_is_for_whom_the_umask_says(tmp_path):
    """Whatever a library chose for the files in it."""
    with atomic_folder(tmp_path / "f") as unfinished:
        (unfinished / "sub").mkdir()
        (unfinished / "sub" / "secret").write_text("x")
        (unfinished / "sub" / "secret").chmod(0o600)
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert (tmp_path / "f" / "sub" / "secret").stat().st_mode == plain.stat().st_mode


def test_a_path_to_write_to_appears_whole_or_not_at_all(tmp_path):
    with atomic_path(tmp_path / "new" / "a.bin") as unfinished:
        unfinished.write_bytes(b"whole")
        assert not (tmp_path / "new" / "a.bin").exists()
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"whole"

    def fail():
        with atomic_path(tmp_path / "new" / "a.bin") as unfinished:
            unfinished.write_bytes(b"half")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.bin"]
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"whole"
