"""`controlkit toybox train` and `controlkit base eval`: a classifier learns scenes, and a base is judged by it."""

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from controlkit.cli.main import main
from controlkit.config import build
from controlkit.errors import RequestError
from controlkit.toybox.classifier import HUES, SHAPES, Contents, Reading, SceneClassifier, Targets
from controlkit.toybox.lessons import LessonConfig, load_network, to_pixels, train_lesson
from controlkit.toybox.make import make
from controlkit.toybox.measure import fidelity, judge, psnr
from controlkit.toybox.worlds import WORLDS

ROOMS = [WORLDS["rooms"].plan(3, index) for index in range(12)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    make(folder / "circles", "circles", count=96, types=("outline",))
    make(folder / "rooms", "rooms", count=32, types=("canny",))
    return folder


@pytest.fixture(scope="module")
def classifier(drawn, tmp_path_factory):
    """Trained for seconds on circles only: enough to tell their colours."""
    settings = [f"path={drawn / 'circles'}", "width=8", "steps=250", "batch_size=32", "held_out=0.1", "lr=1e-2"]
    output = tmp_path_factory.mktemp("lesson") / "run"
    return train_lesson(build(LessonConfig, None, [*settings, f"output={output}", "sheet_every=250"]))


def perfect(contents):
    """The reading of somebody who sees all."""
    targets = Targets.of(contents)
    return Reading(
        targets.things * 20 - 10,
        torch.nn.functional.one_hot(targets.count, 4).float(),
        torch.nn.functional.one_hot(targets.floor, 18).float(),
        torch.nn.functional.one_hot(targets.wall, 18).float(),
        torch.zeros(len(contents), 64),
    )


def test_contents_become_targets_and_come_back():
    contents = [Contents.of(plan.facts) for plan in ROOMS]
    reading = perfect(contents)
    for was, seen in zip(contents, reading.contents(), strict=True):
        assert set(seen.things) == set(was.things)
        assert (seen.floor, seen.wall) == (was.floor, was.wall)
    assert reading.counts() == [len(plan.facts["objects"]) for plan in ROOMS]
    assert reading.loss(Targets.of(contents)) < perfect(contents[::-1]).loss(Targets.of(contents))


def test_the_worlds_hold_nothing_that_the_classifier_has_no_name_for():
    for world in ("rooms", "circles"):
        for index in range(300):
            contents = Contents.of(WORLDS[world].plan(4, index).facts)
            assert {shape for shape, _ in contents.things} <= set(SHAPES)
            assert contents.colours <= set(HUES)
            Targets.of([contents])


def test_a_circle_is_one_thing_on_its_ground():
    plan = WORLDS["circles"].plan(0, 1)
    assert Contents.of(plan.facts) == Contents((("circle", plan.disc),), plan.ground, plan.ground)


def test_fidelity_counts_what_the_caption_names():
    asked = [
        Contents((("ball", "red"), ("box", "red")), "grey", "beige"),
        Contents((("cone", "blue"),), "brown", "beige"),
    ]
    captions = ["a red ball and a red box on a grey floor", "a blue cone in front of a beige wall"]
    right = judged(asked, [2, 1])
    assert {name: score.mean for name, score in fidelity(captions, asked, right).items()} == dict.fromkeys(
        ["colours_found", "count_right", "things_found", "prompt_fidelity", "surroundings_right"], 1.0
    )
    # One red thing too few, another shape, the wall another; what no caption names is not asked.
    seen = judged(
        [Contents((("ball", "red"),), "grey", "dark red"), Contents((("ball", "blue"),), "grey", "brown")], [1, 1]
    )
    scores = {name: score.mean for name, score in fidelity(captions, asked, seen).items()}
    assert scores == {
        "colours_found": 1.0,
        "count_right": 0.5,
        "things_found": 0.0,
        "prompt_fidelity": 0.5,
        "surroundings_right": 0.5,
    }


def judged(contents, counts):
    from controlkit.evaluation.frechet import Moments
    from controlkit.toybox.measure import Judged

    return Judged(contents, counts, Moments(64))


def test_psnr():
    picture = np.zeros((4, 4, 3), np.uint8)
    assert psnr(picture, picture) == 100
    assert psnr(picture, picture + 255) == 0
    assert psnr(picture, np.full_like(picture, 51)) == pytest.approx(20 * np.log10(5))


def test_the_classifier_learns_and_loads(classifier, drawn):
    network = load_network("scenes", classifier)
    assert isinstance(network, SceneClassifier)
    assert not network.training
    assert sum(file.stat().st_size for file in classifier.iterdir()) < 200_000  # halves
    plans = [WORLDS["circles"].plan(5, index) for index in range(60)]  # never seen
    pictures = [plan.draw(64).image for plan in plans]
    nearest = network(to_pixels(np.stack(pictures))).things.amax(dim=1).argmax(dim=1)
    assert np.mean([plan.disc == HUES[hue] for plan, hue in zip(plans, nearest, strict=True)]) > 0.3  # chance: 0.1
    found = judge(network, pictures)
    assert found.counts == [1] * 60
    # The same scene at another size is the same scene.
    larger = judge(network, [plan.draw(128).image for plan in plans])
    assert np.mean([a == b for a, b in zip(found.contents, larger.contents, strict=True)]) > 0.8
    assert (classifier.parent / "samples" / "step-000250.png").exists()


def test_a_lesson_resumed_is_the_unbroken_one(drawn, tmp_path):
    def run(name, *settings, resume=False):
        common = [f"path={drawn / 'rooms'}", f"output={tmp_path / name}", "width=8", "batch_size=4", "held_out=0.2"]
        config = build(LessonConfig, None, [*common, "steps=6", "checkpoint_every=3", "sheet_every=0", *settings])
        return train_lesson(config, resume=resume)

    whole = run("whole")
    run("broken", "max_minutes=0")
    broken = run("broken", resume=True)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "broken" / "metrics.jsonl").read_text()


def test_another_network_is_refused_by_name(tmp_path):
    AutoencoderKL(block_out_channels=(32,), norm_num_groups=32).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="holds a AutoencoderKL; expected a SceneClassifier"):
        load_network("scenes", tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["learn=scens"], "expected scenes"),
        (["size=8"], "size=8: expected a multiple of 8, at least 32"),
        (["width=9"], "width=9: expected a multiple of 8"),
        (["held_out=0"], "held_out=0: expected a share"),
        (["steps=0"], "steps=0: expected at least 1"),
        (["path=room"], "did you mean 'rooms'"),
        (["path=rooms:many"], "expected a number of scenes behind the colon"),
    ],
)
def test_lessons_that_cannot_be_given(settings, words, tmp_path, capsys):
    assert main(["toybox", "train", f"output={tmp_path / 'run'}", *settings]) == 2
    assert words in capsys.readouterr().err


def test_base_eval(classifier, tmp_path, capsys):
    """A base of random weights paints no better than chance, and its figures come in the form of a report."""
    command = ["base", "eval", "--base", "random-sd15", "--world", "circles", "--num", "3", "--steps", "2"]
    options = ["--classifier", str(classifier), "--out", str(tmp_path / "eval"), "--device", "cpu"]
    assert main([*command, *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    scores = answer["scores"]
    assert answer["base"] == "random-sd15"
    assert json.loads((tmp_path / "eval" / "scores.json").read_text()) == scores
    assert len(list((tmp_path / "eval").glob("*.png"))) == 3
    for metric in ("colours_found", "count_right", "things_found", "prompt_fidelity", "surroundings_right"):
        assert set(scores[metric]) == {"base", "vae", "real", "chance"}
        assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in scores[metric].values())
    assert scores["colours_found"]["real"]["n"] == 3
    assert set(scores["frechet_scenes"]) == {"base", "vae", "real"}
    assert set(scores["vae_psnr"]) == {"vae"}
    assert main([*command, *options]) == 0
    assert "prompt_fidelity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--world", "room"], "did you mean 'rooms'"),
        (["--base", "random-sdxl"], "expected a StableDiffusionPipeline"),
        (["--num", "1"], "--num"),
        (["--sampler", "dddim"], "did you mean 'ddim'"),
    ],
)
def test_evaluations_that_cannot_be_made(options, words, classifier, capsys):
    command = ["base", "eval", "--base", "random-sd15", "--num", "2", "--steps", "1", "--classifier", str(classifier)]
    assert main([*command, *options]) == 2
    assert words in capsys.readouterr().err
