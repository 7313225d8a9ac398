"""Entries on the disk: made once, whole or absent, the same bytes whoever makes them."""

import errno
import pickle
import signal
import subprocess
import sys
import types

import pytest
import torch

from controlkit.errors import RequestError
from controlkit.processes import Processes
from controlkit.training import store as store_module
from controlkit.training.store import Store
from tests.launcher import ROOT
from tests.processes import together

WANTED = {f"{number:032x}": number for number in range(20)}


def encode(number):
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(number))
    return {"half": values.bfloat16(), "whole": values.double(), "number": torch.tensor(number)}


def fill(folder, wanted=WANTED, encode=encode, processes=None, recipe=None, say=lambda text: None):
    return Store(folder, recipe or {"made": "here"}).fill(
        wanted, lambda number: number, encode, processes or Processes(), say
    )


def is_right(entries, wanted=WANTED):
    return all(
        torch.equal(tensor, entries[key][name]) and tensor.dtype == entries[key][name].dtype
        for key, number in wanted.items()
        for name, tensor in encode(number).items()
    )


def shards(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store_module, "SHARD", 6)


def test_entries_come_back_as_they_were_and_are_made_once(tmp_path):
    entries, made = fill(tmp_path)
    assert made == 20
    assert is_right(entries)
    entries, made = fill(tmp_path)
    assert made == 0
    assert is_right(entries)


def test_of_a_hundred_only_the_one_that_is_new_is_made(tmp_path):
    wanted = {f"{number:032x}": number for number in range(100)}
    fill(tmp_path, wanted)
    changed = {("f" * 32 if number == 40 else key): number for key, number in wanted.items()}
    seen = []
    _, made = fill(tmp_path, changed, lambda number: (seen.append(number), encode(number))[1])
    assert made == 1
    assert seen == [40]


def test_another_recipe_finds_nothing(tmp_path):
    fill(tmp_path)
    assert fill(tmp_path, recipe={"made": "elsewhere"})[1] == 20
    assert fill(tmp_path)[1] == 0


def test_entries_travel_to_workers(tmp_path):
    entries, _ = fill(tmp_path)
    _ = entries[next(iter(WANTED))]  # a shard is open
    assert is_right(pickle.loads(pickle.dumps(entries)))


def test_two_processes_share_the_work_and_make_the_same(tmp_path, small_shards):
    seen = {0: [], 1: []}

    def work(processes):
        return fill(
            tmp_path, encode=lambda number: (seen[processes.rank].append(number), encode(number))[1],
            processes=processes,
        )  # fmt: skip

    for entries, made in together(work):
        assert made == 20
        assert is_right(entries)
    assert len(seen[0]) == len(seen[1]) == 10
    assert not set(seen[0]) & set(seen[1])
    assert [made for _, made in together(work)] == [0, 0]


def test_processes_on_machines_without_a_common_disk_have_all_of_it(tmp_path, small_shards):
    results = together(lambda processes: fill(tmp_path / str(processes.rank), processes=processes))
    assert all(is_right(entries) for entries, _ in results)
    assert [made for _, made in together(lambda each: fill(tmp_path / str(each.rank), processes=each))] == [0, 0]


def test_a_build_that_was_killed_goes_on(tmp_path):
    """SIGKILL at the 15th of 20 entries, in shards of 6: two shards are whole, and nothing else is there."""
    code = f"""
import os, signal, sys
from pathlib import Path
from controlkit.training import store
from tests.training.test_store import encode, fill
store.SHARD = 6
def until_killed(number):
    return os.kill(os.getpid(), signal.SIGKILL) if number == 14 else encode(number)
fill(Path({str(tmp_path)!r}), encode=until_killed)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(shards(tmp_path)) == 2
    entries, made = fill(tmp_path)
    assert made == 8
    assert is_right(entries)


@pytest.mark.parametrize("place", [3, 200, -1], ids=["length", "header", "values"])
def test_a_changed_byte_is_found_and_what_it_touched_is_made_anew(tmp_path, small_shards, place):
    fill(tmp_path)
    victim = shards(tmp_path)[1]
    data = bytearray(victim.read_bytes())
    held = sum(f'"{key}.whole"'.encode() in data for key in WANTED)
    data[place] ^= 1
    victim.write_bytes(data)
    said = []
    entries, made = fill(tmp_path, say=said.append)
    assert made == held
    assert 2 <= held <= 6
    assert "1 damaged files" in said[0]
    assert is_right(entries)
    assert fill(tmp_path)[1] == 0


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_shard_that_was_cut_off_is_made_anew(tmp_path, small_shards, length):
    fill(tmp_path)
    victim = shards(tmp_path)[0]
    victim.write_bytes(victim.read_bytes()[:length])
    entries, made = fill(tmp_path)
    assert 2 <= made <= 6
    assert is_right(entries)
    assert len(shards(tmp_path)) == 4


def test_a_shard_that_is_gone_is_made_anew(tmp_path, small_shards):
    fill(tmp_path)
    shards(tmp_path)[0].unlink()
    assert is_right(fill(tmp_path)[0])


def test_a_full_disk_is_answered_in_one_line(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module, "atomic_write_bytes", full)
    with pytest.raises(RequestError, match=r"the disk is full; make room, .* or train with cache=off"):
        fill(tmp_path)


def test_a_disk_that_would_not_do_is_refused_at_the_first_entry(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2000))
    with pytest.raises(RequestError, match=r"about 0\.0 GB are needed, 0\.0 GB are free"):
        fill(tmp_path, encode=lambda number: (seen.append(number), encode(number))[1])
    assert len(seen) == 1
    assert not shards(tmp_path)


def test_long_work_says_how_far_it_is(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(store_module, "UNSAVED_SECONDS", -1)
    fill(tmp_path, say=said.append)
    assert said[4].startswith("cache: 5 of 20, ")
    assert len(shards(tmp_path)) == 20  # saved as often
