"""Pictures that are computed together: fixed slices, one decoding, failures that cost one picture."""

import itertools
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from annotators import ANNOTATORS
from annotators.keypoints import BODY, People, Person
from annotators.pose_json import PoseFiles
from controlkit.cli.main import main
from controlkit.data import slices as slices_module
from controlkit.data.annotate import Job, annotate
from controlkit.errors import RequestError
from controlkit.processes import Processes
from tests.conftest import draw_photo


@dataclass(frozen=True)
class Plain:
    values = None
    version = 1
    licence = "none"
    runs_with = frozenset()

    def libraries(self):
        return {}


@dataclass(frozen=True)
class Company(Plain):
    """A network at its worst: each map shows what all the companions of its picture were."""

    def batch(self, images):
        everything = sum(int(image.sum()) * (3 + place) for place, image in enumerate(images))
        return [np.full_like(image, everything % 251) for image in images]


@dataclass(frozen=True)
class Fails(Company):
    """Cannot work on pictures of one size."""

    width: int = 0

    def batch(self, images):
        if any(image.shape[1] == self.width for image in images):
            raise RuntimeError("no such\nkernel")
        return super().batch(images)


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


@dataclass(frozen=True)
class TooLarge(Company):
    def batch(self, images):
        if len(images) > 1:
            raise OutOfMemoryError("tried to allocate")
        return super().batch(images)


@dataclass(frozen=True)
class Stops(Company):
    """Is interrupted after so many slices."""

    after: int = 0
    runs_with = frozenset({"after", "calls"})
    calls: tuple = ()

    def batch(self, images):
        if next(self.calls[0]) >= self.after:
            raise KeyboardInterrupt
        return super().batch(images)


@dataclass(frozen=True)
class Nose(Plain):
    """Finds a nose in the middle, and says how often its network ran."""

    calls: tuple = ()
    runs_with = frozenset({"calls"})

    def batch(self, images):
        return [self.drawn(people) for people in self.keypoints_of(images)]

    def keypoints(self, image):
        return self.keypoints_of([image])[0]

    def keypoints_of(self, images):
        self.calls[0].append(len(images))
        body = np.zeros((BODY, 3))
        body[0] = (5.25, 6.5, 0.75)
        return [People(image.shape[1], image.shape[0], (Person(body),)) for image in images]

    def drawn(self, people):
        return np.full((people.height, people.width, 3), 7, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Twenty-three pictures of two sizes: five slices of five, the last of three."""
    (tmp_path / "data").mkdir()
    for number in range(23):
        Image.fromarray(draw_photo(number, 40 + number % 2, 30)).save(tmp_path / "data" / f"{number:02d}.png")
    return tmp_path / "data"


def work(folder, annotator=None, type="depth", **options):
    options = {"batch_size": 5, "workers": 2, **options}
    annotators = options.pop("annotators", None) or {type: annotator or Company()}
    return annotate(Job(data=folder, annotators=annotators, **options), Processes())


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def whole(folder, tmp_path):
    """What an unbroken run leaves."""
    shutil.copytree(folder, tmp_path / "whole")
    work(tmp_path / "whole")
    return tree(tmp_path / "whole")


def test_companions_are_the_neighbours_in_the_sorted_list(folder, whole):
    names = sorted(path.name for path in folder.glob("*.png"))
    for start in range(0, 23, 5):
        together = names[start : start + 5]
        images = [np.asarray(Image.open(folder / name)) for name in together]
        for name, expected in zip(together, Company().batch(images), strict=True):
            (folder / "made.png").write_bytes(whole[f"conditions/depth/{name}.png"])
            assert np.array_equal(np.asarray(Image.open(folder / "made.png")), expected)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(folder, whole, workers):
    work(folder, workers=workers)
    assert tree(folder) == whole


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_run_goes_on_and_ends_the_same(folder, whole, after):
    with pytest.raises(KeyboardInterrupt):
        work(folder, Stops(after=after, calls=(itertools.count(),)))
    assert len(list(folder.glob("conditions/depth/*"))) <= 5 * after
    work(folder)
    assert tree(folder) == whole


@pytest.mark.parametrize("seed", range(4))
def test_whichever_maps_are_missing_the_slice_is_computed_whole(folder, whole, seed):
    work(folder)
    maps = sorted(folder.glob("conditions/depth/*"))
    lost = [maps[place] for place in np.random.default_rng(seed).permutation(23)[: 3 + 4 * seed]]
    for path in lost:
        path.unlink()
    report = work(folder)
    assert (report.made, report.kept) == (len(lost), 23 - len(lost))
    assert tree(folder) == whole


def test_processes_take_whole_slices(folder):
    slices = slices_module.Slices(folder=folder, out=folder, makers=[], workers=1, batch_size=5, overwrite=False)
    assert slices.size == 1  # without a network nothing is computed together
    names = [str(number) for number in range(23)]
    parts = [names[start : start + 5] for start in range(0, 23, 5)]
    for count in (2, 3, 7):
        shares = [Processes(rank, count).slice(parts) for rank in range(count)]
        assert list(itertools.chain(*shares)) == parts


def test_each_picture_is_decoded_once_for_all_types(folder, monkeypatch):
    decoded = []
    original = slices_module.decode_picture
    monkeypatch.setattr(
        slices_module, "decode_picture", lambda path, data: decoded.append(path.name) or original(path, data)
    )
    types = {"canny": ANNOTATORS.create("canny"), "depth": Company(), "normal": Company()}
    assert work(folder, annotators=types).made == 69
    assert sorted(decoded) == sorted(path.name for path in folder.glob("*.png"))
    row = json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])
    assert list(row) == ["file_name", "canny_file_name", "depth_file_name", "normal_file_name"]


def test_only_a_few_slices_are_in_memory(folder, monkeypatch):
    """However many pictures there are: what is decoded runs ahead of the network by a fixed number of slices."""
    decoded, computed, ahead = [], [], []
    original = slices_module.decode_picture
    monkeypatch.setattr(slices_module, "decode_picture", lambda *args: decoded.append(1) or original(*args))

    @dataclass(frozen=True)
    class Counts(Company):
        def batch(self, images):
            computed.extend(images)
            ahead.append(len(decoded) - len(computed))
            return super().batch(images)

    work(folder, Counts(), batch_size=2, workers=1)
    assert len(computed) == 23
    assert max(ahead) <= 4 * 2


def test_a_picture_that_fails_costs_only_itself(folder):
    """The others of its slice are made one by one, each as it is alone."""
    Image.fromarray(draw_photo(50, 77, 30)).save(folder / "07.png")
    report = work(folder, Fails(width=77))
    assert report.errors == [{"file_name": "07.png", "reason": "depth: no such kernel"}]
    assert report.made == 22
    image = np.asarray(Image.open(folder / "06.png"))
    made = np.asarray(Image.open(folder / "conditions/depth/06.png.png"))
    assert np.array_equal(made, Company().batch([image])[0])
    assert len((folder / "metadata.jsonl").read_text().splitlines()) == 22


def test_a_picture_that_fails_one_type_keeps_its_other_maps(folder):
    Image.fromarray(draw_photo(50, 77, 30)).save(folder / "07.png")
    types = {"canny": ANNOTATORS.create("canny"), "depth": Fails(width=77)}
    assert work(folder, annotators=types).made == 22 + 23
    assert (folder / "conditions/canny/07.png.png").exists()


def test_too_little_memory_stops_the_run_with_advice(folder):
    with pytest.raises(RequestError, match=r"depth: 5 pictures together need more memory .* smaller --batch-size"):
        work(folder, TooLarge())
    assert work(folder, TooLarge(), batch_size=1).made == 23


def test_an_undecodable_picture_leaves_its_slice(folder):
    (folder / "02.png").write_bytes(b"no picture")
    report = work(folder)
    assert [error["file_name"] for error in report.errors] == ["02.png"]
    before = tree(folder)
    (folder / "conditions/depth/03.png.png").unlink()
    work(folder)
    assert tree(folder) == before


def test_a_map_of_another_size_is_a_bug_that_is_said(folder):
    @dataclass(frozen=True)
    class Half(Plain):
        def __call__(self, image):
            return image[::2]

    report = work(folder, Half())
    assert len(report.errors) == 23
    assert "gave uint8 (15, 40, 3) for a picture of (30, 40, 3): a bug of depth" in report.errors[0]["reason"]


# Poses


def test_keypoints_lie_beside_each_pose_map_and_the_network_runs_once(folder):
    calls = []
    work(folder, Nose(calls=(calls,)), type="pose")
    assert calls == [5, 5, 5, 5, 3]
    data = json.loads((folder / "conditions/pose/00.png.json").read_text())
    assert People.from_json(data).persons[0].body[0].tolist() == [5.25, 6.5, 0.75]
    assert (data["canvas_width"], data["canvas_height"]) == (40, 30)
    before = tree(folder)
    (folder / "conditions/pose/00.png.json").unlink()
    work(folder, Nose(calls=(calls,)), type="pose")
    assert tree(folder) == before
    assert sum(calls) == 28  # one more slice


def test_poses_are_drawn_from_json_without_a_network(folder, tmp_path):
    """The maps are those that PoseFiles draws; a picture without a file, or with a broken one, fails alone."""
    work(folder, Nose(calls=([],)), type="pose", out=tmp_path / "out")
    poses = tmp_path / "poses"
    shutil.copytree(tmp_path / "out/conditions/pose", poses)
    (poses / "03.png.json").unlink()
    (poses / "04.png.json").write_text("{")
    arguments = ["annotate", "--type", "pose", "--from-json", str(poses), str(folder), "--quiet"]
    assert main(arguments) == 1
    failed = {json.loads(line)["file_name"] for line in (folder / "errors.jsonl").read_text().splitlines()}
    assert failed == {"03.png", "04.png"}
    image = np.asarray(Image.open(folder / "00.png"))
    made = np.asarray(Image.open(folder / "conditions/pose/00.png.png"))
    assert np.array_equal(made, PoseFiles(poses).annotator("00.png")(image))
    assert made.max() > 0
    before = tree(folder)
    assert main(arguments) == 1
    assert tree(folder) == before
    moved = json.loads((poses / "00.png.json").read_text())
    moved["people"][0]["pose_keypoints_2d"][:2] = [20, 20]
    (poses / "00.png.json").write_text(json.dumps(moved))
    assert main(arguments) == 1
    changed = {name for name, data in tree(folder).items() if data != before[name]}
    assert changed == {"conditions/pose/00.png.png", "conditions/pose/00.png.json"}


def test_json_that_lies_beside_the_maps_is_read_and_left_as_it_is(folder):
    work(folder, Nose(calls=([],)), type="pose")
    beside = {name: data for name, data in tree(folder).items() if name.endswith(".json")}
    work(folder, PoseFiles(folder / "conditions/pose"), type="pose")
    after = tree(folder)
    assert {name: after[name] for name in beside} == beside
    assert len({name for name in after if name.startswith("conditions/pose")}) == 46


# Depth with 16 bits


@dataclass(frozen=True)
class Ramp(Plain):
    """Nearness grows to the right, in steps of its own."""

    def depths(self, images):
        return [np.cumsum(image[:, :, 0].astype(np.float32) + 1, axis=1) for image in images]

    def batch(self, images):
        return [np.zeros_like(image) for image in images]


def test_depth_with_16_bits_is_a_column_beside_the_8_bits(folder):
    work(folder, Ramp(), depth16=True)
    row = json.loads((folder / "metadata.jsonl").read_text().splitlines()[4])
    depth = Ramp().depths([np.asarray(Image.open(folder / row["file_name"]))])[0].astype(np.float64)
    share = (depth - depth.min()) / np.ptp(depth)
    deep = np.asarray(Image.open(folder / row["depth16_file_name"])).astype(np.int64)
    assert np.abs(deep - share * 65535).max() <= 1
    flat = np.asarray(Image.open(folder / row["depth_file_name"])).astype(np.int64)
    assert flat.shape == (*deep.shape, 3)
    assert np.abs(flat - share[:, :, None] * 255).max() <= 1
    before = tree(folder)
    (folder / row["depth16_file_name"]).unlink()
    assert work(folder, Ramp(), depth16=True).made == 1
    assert tree(folder) == before
    assert work(folder, Ramp()).made == 0  # the 8 bits are there without it


def test_an_annotator_without_depths_has_no_16_bits(folder):
    with pytest.raises(RequestError, match="depth16: Company gives maps of 8 bits only"):
        work(folder, depth16=True)
    assert main(["annotate", "--type", "canny", "--depth16", str(folder)]) == 2
