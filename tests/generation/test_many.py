"""Several pictures: painted together, or from a file of requests, alone and by two processes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.cli.main import main
from controlkit.generation import many
from controlkit.generation.generate import load_models, paint
from controlkit.generation.plan import make_plan
from controlkit.generation.request import Control, Net, Request
from controlkit.generation.settings import read_settings
from tests.conftest import draw_photo
from tests.forked import run_two
from tests.painting import edges_of, pixels

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


def silent(*_):
    pass


def generate(*arguments, code=0):
    assert main(["generate", *map(str, arguments)]) == code


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "edge.png"
    Image.fromarray(edges_of(draw_photo(0, 48, 32))).save(path)
    return path


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "start.png"
    Image.fromarray(draw_photo(3, 48, 32)).save(path)
    return path


def painted(request, models=None):
    plan = make_plan(request, silent)
    models = models or load_models(plan, **CPU)
    return {picture.seed: picture for picture in paint(plan, models)}, models


@pytest.mark.parametrize("task", ["text", "picture"])
@pytest.mark.parametrize("base", ["random-sd15", "random-sdxl"])
def test_a_batch_is_its_pictures_painted_alone(base, task, nets, small, start):
    """Under a control, with a sampler that draws noise in every step, and one that does not."""
    models = None
    for sampler in ("euler_a", "dpmpp_2m_karras"):
        common = {
            "base": base, "prompt": "x", "negative": "y", "steps": 3, "seed": 5, "num": 3, "sampler": sampler,
            "cfg": 3.0, "controls": (Control(file=small, weight=0.5),), "controlnets": (Net(name=str(nets[base])),),
            "image": start if task == "picture" else None,
        }  # fmt: skip
        alone, models = painted(Request(**common), models)
        together, _ = painted(Request(**common, batch_size=2), models)
        for seed in (5, 6, 7):
            assert np.abs(alone[seed].image.astype(int) - together[seed].image).max() <= 1, (sampler, seed)
        assert np.abs(alone[5].image.astype(int) - alone[6].image).max() > 1
        places = [(made["size"], made["place"]) for made in (together[seed].settings["batch"] for seed in (5, 6, 7))]
        assert places == [(2, 0), (2, 1), (1, 0)]


def test_clip_skip_and_mixed_modes_go_with_batches(nets, small):
    common = {
        "base": "random-sd15", "prompt": "x", "steps": 2, "num": 2, "clip_skip": 2, "cfg_rescale": 0.5,
        "controls": (Control(file=small, mode="prompt"), Control(file=small, mode="control")),
        "controlnets": (Net(name=str(nets["random-sd15"])), Net(name=str(nets["second"]))),
    }  # fmt: skip
    alone, models = painted(Request(**common))
    together, _ = painted(Request(**common, batch_size=2), models)
    for seed in (0, 1):
        assert np.abs(alone[seed].image.astype(int) - together[seed].image).max() <= 1


def test_what_a_request_asks_of_shared_networks_ends_with_it(nets, small):
    common = {
        "base": "random-sd15", "prompt": "x", "steps": 2, "cfg": 3.0, "controls": (Control(file=small),),
        "controlnets": (Net(name=str(nets["random-sd15"])),),
    }  # fmt: skip
    before, models = painted(Request(**common))
    half, _ = painted(Request(**common, control_half=True), models)
    after, _ = painted(Request(**common), models)
    assert np.array_equal(before[0].image, after[0].image)
    assert not np.array_equal(before[0].image, half[0].image)


# Requests


def lines(path, *requests):
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in requests) + "\n")
    return path


COMMON = ["--base", "random-sd15", "--steps", 1, "--size", "32x32", "--quiet"]


def test_a_line_is_the_command_line_of_its_options(nets, small, start, tmp_path, capsys):
    file = lines(
        tmp_path / "r.jsonl",
        {"prompt": "a red ball", "seed": 4, "cfg": 3},
        "",
        {"control": f"{small}@0.5", "controlnet": str(nets["random-sd15"]), "control_mode": "prompt", "seed": 5},
        {"image": str(start), "strength": 1, "sampler": "ddim", "eta": 0.5, "num": 2},
    )
    generate("--requests", file, *COMMON, "--out", tmp_path / "many")
    paths = [Path(path) for path in capsys.readouterr().out.split()]
    for number, arguments in enumerate(
        [
            ["--prompt", "a red ball", "--seed", 4, "--cfg", 3],
            ["--control", f"{small}@0.5", "--controlnet", nets["random-sd15"], "--control-mode", "prompt", "--seed", 5],
            ["--image", start, "--strength", 1, "--sampler", "ddim", "--eta", 0.5, "--seed", 1],
        ]
    ):
        generate(*COMMON, *arguments, "--out", tmp_path / f"{number}.png")
    by_settings = {many.fingerprint({**read_settings(path), "batch": 0}): path for path in paths}
    for number in range(3):
        alone = tmp_path / f"{number}.png"
        found = by_settings[many.fingerprint({**read_settings(alone), "batch": 0})]
        assert np.array_equal(pixels(found), pixels(alone))
    assert len(paths) == 4


def test_what_is_there_is_not_painted_again(tmp_path, capsys, monkeypatch):
    file = lines(tmp_path / "r.jsonl", {"prompt": "a", "num": 2}, {"prompt": "b", "num": 3, "batch-size": 2})
    run = ["--requests", file, *COMMON, "--out", tmp_path / "many", "--json"]
    generate(*run)
    first = json.loads(capsys.readouterr().out)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "many").iterdir()}
    assert (len(first["pictures"]), first["kept"], len(whole)) == (5, 0, 5)

    loads = []
    monkeypatch.setattr(many, "load_models", lambda *a, **k: loads.append(1) or load_models(*a, **k))
    generate(*run)
    assert json.loads(capsys.readouterr().out) == {"pictures": [], "kept": 5}
    assert loads == []

    (lost,) = [path for path in whole if path.endswith("seed1.png") and path.startswith("000004")]
    (tmp_path / "many" / lost).unlink()  # one of a batch of two
    generate(*run)
    answer = json.loads(capsys.readouterr().out)
    assert (len(answer["pictures"]), answer["kept"], len(loads)) == (1, 4, 1)
    again = answer["pictures"][0]["path"]
    assert (tmp_path / "many" / again.split("/")[-1]).read_bytes() == whole[lost]


SHARED = {"steps": 2, "cfg": 3.0, "size": (48, 32)}


@pytest.fixture
def other(tmp_path):
    path = tmp_path / "other.png"
    Image.fromarray(edges_of(draw_photo(8, 48, 32))).save(path)
    return path


def asked(task, nets, maps, start):
    """Three requests that ask alike: a net, two with a mode each, SDXL, weighted prompts, from a picture."""
    base = "random-sdxl" if task == "sdxl" else "random-sd15"
    names = [str(nets[base])] + ([str(nets["second"])] if task == "two nets" else [])
    words = ["a red ball", "a (blue:1.4) cone" if task == "weighted" else "a blue cone", "x"]
    return [
        Request(
            base=base,
            prompt=words[number],
            negative=["y", "z", "z"][number] if task != "sdxl" else "",
            seed=[5, 5, 9][number],
            controls=tuple(
                Control(file=maps[(number + place) % 2], weight=0.5, mode=["balanced", "prompt"][place])
                for place in range(len(names))
            ),
            controlnets=tuple(Net(name=name) for name in names),
            image=(start if number else maps[0]) if task == "picture" else None,
            batch_size=3,
            **{**SHARED, "clip_skip": 2 if task == "weighted" else 1},
        )
        for number in range(3)
    ]


def many_painted(requests, there=frozenset()):
    return list(many.paint_many(requests, **CPU, there=set(there), say=silent, progress=silent))


@pytest.mark.parametrize("task", ["text", "picture", "two nets", "sdxl", "weighted"])
def test_requests_that_ask_alike_are_painted_together(task, nets, small, other, start, monkeypatch):
    """Each as it would be alone, in a third of the UNet's calls."""
    calls = []

    def counted(plan, **how):
        models = load_models(plan, **how)
        models.parts["unet"].register_forward_hook(lambda unet, inputs, output: calls.append(len(inputs[0])))
        return models

    monkeypatch.setattr(many, "load_models", counted)
    requests = asked(task, nets, [small, other], start)
    together = many_painted(requests)
    walked = requests[0].walked_steps
    assert calls == [2 * 3] * walked
    for number, (request, made) in enumerate(zip(requests, together, strict=True)):
        (alone,) = many_painted([replace(request, batch_size=1)])
        assert np.abs(alone.image.astype(int) - made.image).max() <= 1
        assert made.settings == alone.settings | {"batch": {"size": 3, "place": number, "mixed": True}}
    assert np.abs(together[0].image.astype(int) - together[1].image).max() > 1


def test_requests_that_ask_otherwise_are_painted_apart(nets, small, start):
    """Each of these differs from the one before in what a call of the pipeline has one of."""
    common = {"base": "random-sd15", "prompt": "a", "batch_size": 4, **SHARED, "steps": 1}
    control = {"controls": (Control(file=small),), "controlnets": (Net(name=str(nets["random-sd15"])),)}
    requests = [
        Request(**common),
        Request(**common | {"cfg": 2.0}),
        Request(**common | {"cfg": 2.0, "size": (32, 32)}),
        Request(**common | {"cfg": 2.0, "size": (32, 32), "prompt": "a " * 100}),
        Request(**common, **control),
        Request(**common, **{**control, "controls": (replace(control["controls"][0], weight=0.5),)}),
        Request(**common, image=start, strength=1.0),
    ]
    sizes = [made.settings["batch"]["size"] for made in many_painted(requests)]
    assert sizes == [1] * len(requests)
    alike = many_painted([requests[0], replace(requests[0], seed=3)])
    assert [made.settings["batch"]["size"] for made in alike] == [2, 2]


def test_a_picture_of_a_mixed_batch_comes_again(nets, small, tmp_path, capsys):
    """By --replay, and where it was lost: with the company that it had."""
    file = lines(
        tmp_path / "r.jsonl",
        {"prompt": "a red ball", "seed": 4, "num": 2},
        {"prompt": "a blue cone", "seed": 4, "control": f"{small}@0.5", "controlnet": str(nets["random-sd15"])},
        {"prompt": "a cone", "seed": 7},
        {"prompt": "a ball", "seed": 8, "num": 2},
    )
    run = ["--requests", file, *COMMON, "--batch-size", 4, "--out", tmp_path / "many", "--json"]
    generate(*run)
    paths = [Path(each["path"]) for each in json.loads(capsys.readouterr().out)["pictures"]]
    made = {path: path.read_bytes() for path in paths}
    batches = [read_settings(path)["batch"] for path in paths]  # those of other models come last
    assert [batch["size"] for batch in batches] == [4, 4, 4, 4, 1, 1]
    assert [batch["mixed"] for batch in batches] == [True] * 4 + [False] * 2
    paths[1].unlink()
    generate(*run)
    (again,) = [Path(each["path"]) for each in json.loads(capsys.readouterr().out)["pictures"]]
    assert again.read_bytes() == made[paths[1]]
    generate("--replay", paths[3], "--out", tmp_path / "replayed.png")
    assert "bit for bit" in capsys.readouterr().err
    assert (tmp_path / "replayed.png").read_bytes() == made[paths[3]]


def test_models_are_loaded_once_for_requests_alike(tmp_path, monkeypatch):
    """Also where requests of other models stand between them."""
    loads = []
    monkeypatch.setattr(many, "load_models", lambda plan, **k: loads.append(plan.base.name) or load_models(plan, **k))
    requests = [
        Request(base=base, prompt=prompt, steps=1, size=(32, 32), cfg=1)
        for base, prompt in [("random-sd15", "a"), ("random-sd21", "b"), ("random-sd15", "c"), ("random-sd21", "d")]
    ]
    pictures = list(many.paint_many(requests, **CPU, there=set(), say=silent, progress=silent))
    assert [picture.settings["prompt"] for picture in pictures] == ["a", "c", "b", "d"]
    assert loads == ["random-sd15", "random-sd21"]


def test_bad_lines_are_listed_with_their_numbers_before_anything_is_painted(tmp_path, capsys):
    file = lines(
        tmp_path / "r.jsonl",
        {"prompt": "fine"},
        "{",
        '["a"]',
        {"promt": "x"},
        {"prompt": "x", "steps": "3"},
        {"prompt": "x", "sampler": "eulr", "cfg": -1},
        {"control": "nothing.png", "controlnet": "nothing"},
        {"prompt": "x", "size": "33x32"},
        {"prompt": 3},
        {"control": "c.png", "controlnet": ["a", "b"]},
    )
    generate("--requests", file, "--base", "random-sd15", "--out", tmp_path / "many", code=2)
    said = capsys.readouterr().err.removeprefix("error: ").splitlines()
    for line, words in zip(
        said,
        [
            "line 2: is not JSON", "line 3: is no JSON object", "line 4: unknown option 'promt': did you mean 'pro",
            "line 5: steps='3': expected a whole number", "line 6: unknown sampler 'eulr'", "line 6: cfg=-1",
            "line 7: ControlNet 'nothing': no such folder", "line 8: --size 33x32: the base's VAE needs multiples of 8",
            "line 9: prompt=3: expected a text", "line 10: ControlNet 'a': no such folder",
        ],
        strict=True,
    ):  # fmt: skip
        assert f"{file} {words}" in line
    assert not (tmp_path / "many").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "there is no such file"), ("\n", "holds no request"), (b"\xff", "is no text in UTF-8")],
)
def test_a_bad_file_is_refused(text, words, tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    generate("--requests", file, "--out", tmp_path / "many", code=2)
    assert words in capsys.readouterr().err


def test_two_processes_paint_the_same_pictures(tmp_path, capsys):
    file = lines(tmp_path / "r.jsonl", *({"prompt": prompt} for prompt in "abcd"))
    common = ["generate", "--requests", str(file), "--base", "random-sd15", "--steps", "1", "--size", "32x32"]
    done = run_two(*common, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert "/2 pictures" in done.stderr  # each its share
    assert "/4 pictures" not in done.stderr
    assert "4 pictures painted, 0 were there" in done.stderr
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    both = [{path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert len(both[0]) == 4
    assert both[0] == both[1]
