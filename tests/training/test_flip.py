"""Mirrored rows: picture and map together, anew each epoch, and only where nothing tells left from right."""

import dataclasses

import numpy as np
import pytest
import torch

from annotators import ANNOTATORS
from controlkit.cli.main import main
from controlkit.data.mirroring import may_mirror, may_mirror_maps
from controlkit.data.rows import read_dataset
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, collate
from controlkit.training.cache import cache_rows
from controlkit.training.objective import latents
from tests.training.test_objective import set_up
from tests.training.test_train import steps_of


def rows_of(dataset, flip=True):
    return ControlRows(
        read_dataset(dataset, "canny"), condition="canny", resolution=64, latent_shape=(4, 8, 8), timesteps=1000,
        prompt_dropout=0.5, seed=0, flip=flip,
    )  # fmt: skip


@pytest.fixture
def flippable(dataset):
    """The captions of the shared dataset speak of numbers, which are left alone; here they do not."""

    def make(flip=True):
        data = rows_of(dataset, flip)
        data.rows = [dataclasses.replace(row, captions=("a picture",)) for row in data.rows]
        return data

    return make


def test_about_half_are_mirrored_anew_each_epoch_picture_and_map_together(flippable):
    plain, data = flippable(flip=False), flippable()
    mirrored = []
    for epoch in range(10):
        for number in range(24):
            seen, straight = data[epoch, number], plain[epoch, number]
            flipped = not torch.equal(seen["pixels"], straight["pixels"])
            for name in ("pixels", "control"):
                expected = straight[name].flip(-1) if flipped else straight[name]
                assert torch.equal(seen[name], expected)
            assert torch.equal(seen["noise"], straight["noise"])
            mirrored.append(flipped)
    shares = np.array(mirrored).reshape(10, 24)
    assert abs(shares.mean() - 0.5) < 4 * (0.25 / shares.size) ** 0.5
    assert len({tuple(row) for row in shares}) == 10
    assert torch.equal(data[3, 5]["pixels"], flippable()[3, 5]["pixels"])


def test_the_window_of_a_mirrored_picture_is_mirrored(flippable):
    """SDXL is told where the window begins: of the mirrored picture."""
    data = flippable()
    straight, _ = data.picture(data.rows[0])
    seen, sizes = data.picture(data.rows[0], mirrored=True)
    assert np.array_equal(seen, straight[:, ::-1])
    assert sizes == (64, 64, 0, 0, 64, 64)


def test_the_cache_holds_both_and_gives_the_same_latents(flippable, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("CONTROLKIT_CACHE", str(tmp_path))  # an empty one
    models, _, _ = set_up("random-sd15", dataset)
    data, plain = flippable(), flippable()
    made = cache_rows(data, [0, 1, 2], models, Processes(), dataset=str(dataset))
    assert (made["pictures"], made["maps"]) == (6, 6)
    views = set()
    for epoch in range(6):
        ours, theirs = collate([data[epoch, 1]]), collate([plain[epoch, 1]])
        assert torch.equal(ours.control, theirs.control)
        assert torch.equal(latents(models, ours), latents(models, theirs))
        views.add(tuple(ours.moments.flatten().tolist()))
    assert len(views) == 2


@pytest.mark.parametrize(
    ("caption", "allowed"),
    [
        ("a red ball on a grey floor", True),
        ("a brightly lit street", True),
        ("a ball LEFT of a cone", False),
        ("she raises her right hand", False),
        ("a sign that reads open", False),
        ("a shirt with a logo", False),
        ("", True),
    ],
)
def test_captions_that_tell_sides_or_speak_of_writing_keep_their_rows_as_they_are(dataset, caption, allowed):
    row = read_dataset(dataset, "canny")[0]
    assert may_mirror(dataclasses.replace(row, captions=("a cat", caption))) == allowed
    data = rows_of(dataset)
    data.rows = [dataclasses.replace(row, captions=(caption,))]
    pictures = {tuple(data[epoch, 0]["pixels"].flatten().tolist()) for epoch in range(12)}
    assert len(pictures) == (2 if allowed else 1)


def test_types_declare_whether_their_maps_may_be_mirrored():
    assert not may_mirror_maps("pose")
    assert not may_mirror_maps("normal")
    assert may_mirror_maps("canny")
    assert may_mirror_maps("a type of somebody else's")
    for name in ANNOTATORS:
        for backend in ANNOTATORS.backends(name):
            assert isinstance(ANNOTATORS.class_of(name, backend).mirrors, bool)


@pytest.mark.parametrize("name", ["canny", "lineart", "scribble", "tile", "blur", "grey"])
def test_the_mirrored_map_is_nearly_the_map_of_the_mirrored_picture(name, photo):
    """What the declaration means, for those that need no weights."""
    backend = {"lineart": "standard", "scribble": "xdog"}.get(name)
    annotator = ANNOTATORS.create(name, backend)
    one, other = annotator(photo)[:, ::-1], annotator(np.ascontiguousarray(photo[:, ::-1]))
    assert np.abs(one.astype(float) - other).mean() < 8
    assert np.abs(one.astype(float) - annotator(photo)).mean() > np.abs(one.astype(float) - other).mean()


def test_poses_are_refused_in_one_line(dataset, capsys):
    assert main(["train", f"data.path={dataset}", "data.condition=pose", "data.flip=true", "--dry-run"]) == 2
    assert "data.flip=true: pose maps tell left from right and cannot be mirrored" in capsys.readouterr().err


def test_a_run_with_flips_resumes_exactly_and_is_another_run(dataset, tmp_path):
    settings = [
        f"data.path={dataset}",
        "batch_size=2",
        "checkpoint_every=3",
        "samples.every=0",
        "watch.every=0",
        "lr=1e-3",
        "-q",
    ]
    folder = tmp_path / "data"
    assert main(["toybox", "make", str(folder), "--world", "circles", "--count", "8", "-q"]) == 0
    settings[0] = f"data.path={folder}"

    def losses(name, *more):
        assert main(["train", *settings, f"output={tmp_path / name}", *more]) == 0
        return [row["loss"] for row in steps_of(tmp_path / name)]

    whole = losses("whole", "data.flip=true", "steps=6")
    losses("broken", "data.flip=true", "steps=3")
    assert losses("broken", "data.flip=true", "steps=6", "--resume") == whole
    assert losses("straight", "steps=6") != whole
