"""The readers of depth and pose: targets and answers agree, they learn, and they are annotators like any other."""

import json

import numpy as np
import pytest
import torch

import controlkit.toybox.register  # noqa: F401
from annotators import ANNOTATORS
from annotators.keypoints import People, Person
from annotators.weights import MissingWeights
from controlkit.cli.main import main
from controlkit.config import build
from controlkit.errors import RequestError
from controlkit.evaluation.pose_metrics import joints_found
from controlkit.toybox.lessons import LessonConfig, load_network, to_pixels, train_lesson
from controlkit.toybox.make import make
from controlkit.toybox.readers import CELL, PoseTargets, cell_centres, people_in
from controlkit.toybox.worlds import WORLDS


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    make(folder, "rooms", count=96)
    return folder


@pytest.fixture(scope="module")
def learn(rooms, tmp_path_factory):
    """Trains a reader for seconds."""
    made = {}

    def run(what):
        if what not in made:
            output = tmp_path_factory.mktemp(what) / "run"
            settings = [f"learn={what}", f"path={rooms}", f"output={output}", "width=8", "lr=4e-3", "held_out=0.2"]
            made[what] = train_lesson(build(LessonConfig, None, [*settings, "steps=150", "batch_size=8"]))
        return made[what]

    return run


def dolls():
    """Scenes with their people, two dolls at least once."""
    plans = [WORLDS["rooms"].plan(6, index) for index in range(40)]
    everybody = [People.from_json(plan.draw(64).keypoints) for plan in plans]
    assert max(len(people.persons) for people in everybody) >= 2
    assert min(len(people.persons) for people in everybody) == 0
    return everybody


def answers_to(targets):
    """The answer of a pose reader that makes no mistake, (N, 1 + 3 x 18, rows, columns)."""
    middle = np.log(np.clip(targets.middle, 1e-6, 1 - 1e-6) / np.clip(1 - targets.middle, 1e-6, 1))
    seen = np.where(targets.seen > 0, 20.0, -20.0)[..., None]
    joints = np.concatenate([targets.places, seen], axis=-1).reshape(*middle.shape, -1)
    return np.concatenate([middle[:, None], np.moveaxis(joints, 3, 1)], axis=1).astype(np.float32)


def test_a_perfect_answer_is_read_as_the_people_themselves():
    everybody = dolls()
    targets = PoseTargets(everybody)
    hits = []
    for people, answer in zip(everybody, answers_to(targets), strict=True):
        found = people_in(answer, 64, 64)
        hits += joints_found(found, people)
    assert np.mean(hits) > 0.97  # the middles of two dolls may fall together
    assert targets.loss(torch.from_numpy(answers_to(targets)), list(range(len(everybody)))) < 0.01


def test_the_cells_lie_where_the_pixels_say():
    centres = cell_centres(3, 4)
    assert centres.shape == (3, 4, 2)
    assert centres[0, 0].tolist() == [(CELL - 1) / 2] * 2
    assert centres[2, 3].tolist() == [3 * CELL + (CELL - 1) / 2, 2 * CELL + (CELL - 1) / 2]


def test_joints_are_found_within_their_reach():
    body = np.zeros((18, 3))
    body[[1, 8, 10]] = [[10, 10, 1], [10, 20, 1], [14, 30, 1]]  # 20 pixels high: a reach of 2
    near, far = body.copy(), body.copy()
    near[:, 0] += 1.9 * (body[:, 2] > 0)
    far[:, 0] += 2.1 * (body[:, 2] > 0)
    true = People(64, 64, (Person(body),))
    assert joints_found(People(64, 64, (Person(near),)), true) == [True] * 3
    assert joints_found(People(64, 64, (Person(far),)), true) == [False] * 3
    assert joints_found(People(64, 64, (Person(far), Person(near))), true) == [True] * 3
    assert joints_found(People(64, 64), true) == [False] * 3
    assert joints_found(People(64, 64, (Person(near),)), People(64, 64)) == []


@pytest.mark.parametrize("what", ["depth", "pose"])
def test_a_reader_learns(what, learn, rooms):
    """Better on scenes that it has not seen than before the first step."""
    network = load_network(what, learn(what))
    fresh = type(network)(8)
    plans = [WORLDS["rooms"].plan(8, index) for index in range(24)]
    drawn = [plan.draw(64) for plan in plans]
    pixels = to_pixels(np.stack([scene.image for scene in drawn]))
    with torch.no_grad():
        if what == "depth":
            wanted = np.stack([scene.maps["depth"][:, :, 0] for scene in drawn]) / 255
            errors = [np.square(net(pixels)[:, 0].numpy() - wanted).mean() for net in (network, fresh)]
        else:
            targets = PoseTargets([People.from_json(scene.keypoints) for scene in drawn])
            errors = [float(targets.loss(net(pixels), list(range(24)))) for net in (network, fresh)]
    assert errors[0] < 0.5 * errors[1]
    assert (learn(what).parent / "samples" / "step-000150.png").exists()


@pytest.mark.parametrize("what", ["depth", "pose"])
@pytest.mark.parametrize("shape", [(64, 64), (33, 70), (128, 96), (1, 1)])
def test_readers_keep_the_contract_of_annotators(what, shape, learn):
    annotator = ANNOTATORS.create(what, "toybox", weights=str(learn(what)), device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    made = annotator(image)
    assert made.shape == image.shape
    assert made.dtype == np.uint8
    assert np.array_equal(made, annotator(image))
    assert np.array_equal(image, before)
    together = annotator.batch([image, image[::-1]])[0]
    assert np.abs(together.astype(int) - made).max() <= 1  # kernels round otherwise in another batch
    assert len(annotator.libraries()["weights"]) == 16


def test_depth_is_in_the_scale_of_the_world(learn):
    """The same nearness is the same grey in every scene: nothing is stretched to the picture's own range."""
    annotator = ANNOTATORS.create("depth", "toybox", weights=str(learn("depth")), device="cpu")
    image = WORLDS["rooms"].plan(8, 0).draw(64).image
    with torch.no_grad():
        raw = load_network("depth", learn("depth"))(to_pixels(image[None]))[0, 0].numpy()
    assert np.array_equal(annotator(image)[:, :, 0], np.round(raw * 255).astype(np.uint8))


@pytest.mark.parametrize("what", ["depth", "pose"])
def test_a_folder_without_a_reader_is_refused(what, tmp_path):
    with pytest.raises(MissingWeights, match=f"{what}=toybox: .* has no diffusion_pytorch_model.safetensors"):
        ANNOTATORS.create(what, "toybox", weights=str(tmp_path))(np.zeros((64, 64, 3), np.uint8))


def test_scenes_of_another_size_are_refused(tmp_path):
    make(tmp_path / "small", "rooms", count=20, size=32)
    for what in ("depth", "pose"):
        config = build(
            LessonConfig,
            None,
            [f"learn={what}", f"path={tmp_path / 'small'}", f"output={tmp_path / what}", "held_out=0.3"],
        )
        with pytest.raises(RequestError, match="expected size=64"):
            train_lesson(config)


@pytest.mark.parametrize(("what", "metrics"), [("depth", {"depth_rmse"}), ("pose", {"pose_pck_0.1", "dolls_right"})])
def test_toybox_eval(what, metrics, learn, capsys):
    assert main(["toybox", "eval", what, "--weights", str(learn(what)), "--num", "12", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert set(scores) == metrics
    for score in scores.values():
        assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
