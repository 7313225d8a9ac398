"""Sizes near the pictures' own shapes: one geometry for picture and map, batches of one size, exact resume."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.cli.main import main
from controlkit.data.geometry import MAX_ASPECT, Geometry
from controlkit.data.rows import read_dataset
from controlkit.models.controlnets import find_controlnet
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, make_batches
from controlkit.training.draws import positions_alike
from tests.conftest import draw_photo
from tests.processes import together

SHAPES = [(64, 64), (96, 48), (48, 96), (80, 60), (130, 70)]  # of the pictures


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Twenty pictures of five shapes; one of them is rotated by its EXIF."""
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(20):
        image = Image.fromarray(draw_photo(number, *SHAPES[number % 5]))
        exif = image.getexif()
        if number == 1:
            exif[0x0112] = 6
        image.save(folder / f"{number:03d}.png", exif=exif)
        (folder / f"{number:03d}.txt").write_text(f"picture {number}")
    assert main(["annotate", "--type", "canny", str(folder), "-q"]) == 0
    return folder


def rows_of(dataset, buckets=16, **options):
    settings = {"resolution": 64, "latent_shape": (4, 8, 8), "timesteps": 1000, "prompt_dropout": 0.5, "seed": 0}
    return ControlRows(read_dataset(dataset, "canny"), condition="canny", buckets=buckets, **(settings | options))


def batches(data, count, start=0, batch_size=2, processes=None, workers=0):
    return list(
        make_batches(
            data, start=start, count=count, batch_size=batch_size, workers=workers,
            processes=processes or Processes(), pin=False,
        )
    )  # fmt: skip


# Sizes


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (1024, 64), (64, 8), (64, 16), (768, 32)])
def test_sizes_have_about_the_area_of_the_square_and_come_in_pairs(resolution, step):
    sizes = Geometry(resolution, step).sizes
    assert (resolution, resolution) in sizes
    assert {(height, width) for width, height in sizes} == set(sizes)
    for width, height in sizes:
        assert width % step == height % step == 0
        assert width * height <= resolution**2 < width * (height + step) or (height, width) in sizes
        assert 1 / MAX_ASPECT <= width / height <= MAX_ASPECT


def test_of_a_picture_less_is_cut_away_than_for_a_square():
    """Over shapes up to the greatest: at most a sixth, where a square loses up to half."""
    geometry, square = Geometry(512, 64), Geometry(512)
    random = np.random.default_rng(0)

    def kept(geometry, width, height):
        to, (rows, columns) = geometry.cover(width, height)
        return (rows.stop - rows.start) * (columns.stop - columns.start) / (to[0] * to[1])

    shares = []
    for aspect in random.uniform(1 / MAX_ASPECT, MAX_ASPECT, 300):
        width, height = round(1000 * aspect**0.5), round(1000 / aspect**0.5)
        assert geometry.cover(width, height)[0][0] >= geometry.size(width, height)[0]
        shares.append((kept(geometry, width, height), kept(square, width, height)))
    assert min(own for own, _ in shares) > 0.999 * 5 / 6
    assert min(other for _, other in shares) < 0.55
    assert np.mean(shares, axis=0)[0] > 0.9 > 0.8 > np.mean(shares, axis=0)[1]


def test_picture_and_map_share_the_geometry_of_their_bucket(tmp_path):
    """A white square on black, off centre, in a wide picture: both show it at the same place, 48 pixels high."""
    image = np.zeros((100, 180, 3), np.uint8)
    image[30:70, 60:100] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    main(["annotate", "--type", "canny", str(tmp_path), "-q"])
    data = rows_of(tmp_path)
    pixels, maps, sizes = data.picture_and_maps(data.rows[0])
    control = maps["canny"]
    assert pixels.shape == control.shape == (48, 80, 3)
    assert sizes == (100, 180, 0, 3, 48, 80)
    assert set(np.unique(control)) == {0, 255}
    for axis in (0, 1):
        edges = np.nonzero(control[:, :, 0].any(axis=1 - axis))[0]
        bright = np.nonzero((pixels[:, :, 0] > 127).any(axis=1 - axis))[0]
        assert abs(edges.min() - bright.min()) <= 1
        assert abs(edges.max() - bright.max()) <= 1


# The stream


GROUPS = [number % 3 if number % 7 else "rare" for number in range(40)]


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_a_batch_is_of_one_group_and_no_row_is_dropped(size):
    """After any number of batches each row was seen as often as any other of its group, but for the epoch at work and
    what waits: at most a batch."""
    seen, places = Counter(), []
    for batch in islice(positions_alike(0, GROUPS, size, 0), 600 // size + 20):
        assert len({GROUPS[row] for _, row in batch}) == 1
        assert len(batch) == size
        seen.update(row for _, row in batch)
        places += batch
    assert len(set(places)) == len(places)  # no row twice in an epoch
    for group in set(GROUPS):
        rows = [row for row in range(40) if GROUPS[row] == group]
        counts = [seen[row] for row in rows]
        assert max(counts) - min(counts) <= 1
        # As often as a stream without buckets would have it, but for the batch that is being gathered.
        epochs = max(epoch for epoch, _ in places)
        assert (epochs + 1) * len(rows) - size <= sum(counts) + len(rows)


@pytest.mark.parametrize("size", [1, 3, 8, 50])
def test_the_stream_can_be_entered_at_any_batch(size):
    whole = list(islice(positions_alike(5, GROUPS, size, 0), 60))
    for number in (1, 7, 20, 41, 59):
        assert list(islice(positions_alike(5, GROUPS, size, number * size), 60 - number)) == whole[number:]


def test_batches_have_one_size_each_and_all_sizes_come(mixed):
    data = rows_of(mixed)
    made = batches(data, 24)
    shapes = Counter(tuple(batch.pixels.shape[2:]) for batch in made)
    assert set(shapes) == {(height, width) for width, height in data.sizes(Processes())}
    assert len(shapes) == 3
    for batch in made:
        height, width = batch.pixels.shape[2:]
        assert batch.control.shape == batch.pixels.shape
        assert batch.noise.shape == batch.vae_noise.shape == (2, 4, height // 8, width // 8)
        assert batch.sizes[:, 4:].tolist() == [[height, width]] * 2


def test_two_processes_see_together_what_one_sees(mixed):
    whole = batches(rows_of(mixed), 6, start=8, batch_size=4)
    shares = together(lambda processes: batches(rows_of(mixed), 6, start=8, batch_size=2, processes=processes))
    for one, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(one.pixels, torch.cat([part.pixels for part in parts]))
        assert torch.equal(one.noise, torch.cat([part.noise for part in parts]))


# As a run


SETTINGS = [
    "base=random-sd15",
    "data.buckets=16",
    "batch_size=2",
    "checkpoint_every=3",
    "samples.steps=1",
    "watch.every=0",
    "lr=1e-3",
    "-q",
]


def train(mixed, output, *settings):
    assert main(["train", f"data.path={mixed}", f"output={output}", *SETTINGS, *settings]) == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def test_a_run_in_buckets_resumes_exactly_with_and_without_a_cache(mixed, tmp_path):
    whole = train(mixed, tmp_path / "whole", "steps=6", "samples.every=6", "samples.count=3")
    train(mixed, tmp_path / "broken", "steps=3", "samples.every=0")
    assert train(mixed, tmp_path / "broken", "steps=6", "samples.every=0", "--resume") == whole
    without = train(mixed, tmp_path / "off", "steps=6", "samples.every=0", "cache=off")
    assert [row["loss"] for row in without] == pytest.approx([row["loss"] for row in whole], rel=1e-5)
    with Image.open(tmp_path / "whole" / "samples" / "step-000006.png") as sheet:
        assert sheet.width > 3 * 64  # the room of the widest
    assert find_controlnet(str(tmp_path / "whole" / "controlnet"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.buckets=0"], "data.buckets=0: expected a number of pixels, e.g. 64"),
        (["data.buckets=12"], "data.buckets=12: expected a multiple of 8 (this base's VAE divides by it)"),
        (["data.buckets=48"], "of which data.resolution=64 is one too, e.g. 8"),
    ],
)
def test_buckets_that_do_not_fit_are_one_line(mixed, settings, words, capsys):
    assert main(["train", "base=random-sd15", f"data.path={mixed}", *settings, "--dry-run"]) == 2
    assert words in capsys.readouterr().err
