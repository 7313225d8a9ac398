"""What all tests share: no network, a cache of their own, pictures to work on, small models of the true layout."""

from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
import socket
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_finish():
    """What was imported and collected lives to the end: no collection of garbage need look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """One cache for the session, inherited by every process that a test starts."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["CONTROLKIT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def networks_loaded_once():
    """Of the random bases, by us and by diffusers' own pipelines: who loads one gets a copy of what was loaded first.

    Building their layers anew took more than half of most tests that paint.
    """
    if "diffusers" not in sys.modules:  # no test file that was collected needs it
        yield
        return
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    with pytest.MonkeyPatch.context() as monkeypatch:
        for family in (ModelMixin, PreTrainedModel):
            monkeypatch.setattr(family, "from_pretrained", classmethod(_copied(family.from_pretrained.__func__)))
        yield


def _copied(load):
    loaded = {}

    @functools.wraps(load)
    def from_pretrained(cls, folder, **options):
        place = Path(folder).resolve()
        if "random-bases" not in place.parts:
            return load(cls, folder, **options)
        key = cls, place, repr(sorted(options.items()))
        if key not in loaded:
            loaded[key] = load(cls, folder, **options)
        return copy.deepcopy(loaded[key])

    return from_pretrained


@pytest.fixture(autouse=True)
def no_network(request, monkeypatch):
    """A connection to another machine is an error; processes of one run talk over the loopback."""
    if request.node.get_closest_marker("network"):
        return
    connect = socket.socket.connect

    def guarded(self, address):
        if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1"):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def draw_photo(seed: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A picture with smooth parts, edges, texture and colours, of its own for each seed: uint8 (H, W, 3) RGB."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(4):
        centre = (int(random.integers(width)), int(random.integers(height)))
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        cv2.circle(image, centre, int(random.integers(3, 3 + max(2, height // 3))), colour, -1)
    noisy = image.astype(np.int16) + random.integers(-6, 7, image.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.fixture
def photo():
    return draw_photo(0)


@pytest.fixture
def pictures(tmp_path):
    """A folder of six pictures in formats, sizes and subfolders of their own, two with captions."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    names = ["a.png", "b.jpg", "b.png", "sub/c d.webp", "sub/é.bmp", "sub/a.png"]
    for number, name in enumerate(names):
        image = Image.fromarray(draw_photo(number, 70 + 9 * number, 64 + 5 * number))
        image.save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    (folder / "a.txt").write_text("a red circle\n", encoding="utf-8")
    (folder / "sub" / "é.txt").write_text("grün", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """An annotated folder of 24 captioned pictures. Shared: read it, do not write into it."""
    from controlkit.cli.main import main

    folder = tmp_path_factory.mktemp("dataset")
    for number in range(24):
        Image.fromarray(draw_photo(number, 64, 64)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"picture number {number}", encoding="utf-8")
    assert main(["annotate", "--type", "canny", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="session")
def two_types(dataset, tmp_path_factory):
    """The same folder with maps of two types: canny, and grey, whose maps hold any value."""
    from controlkit.cli.main import main

    folder = tmp_path_factory.mktemp("two_types") / "data"
    shutil.copytree(dataset, folder)
    assert main(["annotate", "--type", "canny,grey", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory) -> Path:
    """The run folder of a short training."""
    from controlkit.cli.main import main

    run = tmp_path_factory.mktemp("runs") / "run"
    settings = [
        "base=random-sd15",
        "steps=4",
        "batch_size=2",
        "lr=1e-3",
        "checkpoint_every=2",
        "samples.count=2",
        "samples.steps=2",
        "watch.every=0",
    ]
    assert main(["train", f"data.path={dataset}", f"output={run}", *settings, "samples.every=4", "--quiet"]) == 0
    return run
