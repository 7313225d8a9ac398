"""`controlkit fetch` and `controlkit annotators`, against a hub of our own."""

import hashlib
import json

import pytest

from annotators import ANNOTATORS
from controlkit.cli.fetch import worth_having
from controlkit.cli.main import main
from tests.annotators.hub import FakeHub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    made = FakeHub(monkeypatch, tmp_path / "hub")
    made.repositories["lllyasviel/Annotators"] = {
        "ControlNetHED.pth": b"hed",
        "table5_pidinet.pth": b"pidinet",
        "sk_model.pth": b"fine",
        "sk_model2.pth": b"coarse",
    }
    return made


def answer(capsys, *arguments):
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_type_fetches_what_its_default_backend_needs(hub, capsys):
    """And says where from, how large, under which licence, with which hash."""
    assert main(["fetch", "softedge"]) == 0
    captured = capsys.readouterr()
    sha = hashlib.sha256(b"hed").hexdigest()
    assert f"ControlNetHED.pth of lllyasviel/Annotators · 0.0 MB · Apache-2.0 · SHA-256 {sha}" in captured.out
    assert "fetching ControlNetHED.pth of lllyasviel/Annotators (29.4 MB, Apache-2.0)" in captured.err
    assert hub.asked == ["ControlNetHED.pth"]


def test_what_is_there_is_not_fetched_again(hub, capsys):
    assert main(["fetch", "softedge=pidinet", "-q"]) == 0
    capsys.readouterr()
    hub.online = False
    code, said = answer(capsys, "fetch", "softedge=pidinet")
    assert code == 0
    assert hub.asked == ["table5_pidinet.pth"]
    (file,) = said["files"]
    assert file["licence"] == "research only"
    assert file["bytes"] == len(b"pidinet")
    assert file["path"].endswith("table5_pidinet.pth")


def test_all_fetches_what_the_parameters_may_ask_for(hub, capsys):
    assert main(["fetch", "lineart", "-q"]) == 0
    assert hub.asked == ["sk_model.pth"]
    assert main(["fetch", "lineart", "--all", "-q"]) == 0
    assert hub.asked == ["sk_model.pth", "sk_model2.pth"]


def test_a_hub_id_is_fetched_with_its_settings_and_one_format(hub, capsys):
    hub.repositories["a/model"] = {
        "config.json": b"{}",
        "model.safetensors": b"12345",
        "model.fp16.safetensors": b"123",
        "pytorch_model.bin": b"again",
        "README.md": b"#",
    }
    code, said = answer(capsys, "fetch", "a/model")
    assert code == 0
    assert [file["file"] for file in said["files"]] == ["config.json", "model.safetensors"]
    assert {file["licence"] for file in said["files"]} == {"mit"}
    assert said["files"][1]["sha256"] == hashlib.sha256(b"12345").hexdigest()


def test_the_safest_format_that_there_is_is_chosen():
    assert worth_having(["a.bin", "b.pth"]) == ["a.bin"]
    assert worth_having(["unet/m.safetensors", "unet/config.json", "m.ckpt", "m.bin"]) == [
        "unet/config.json",
        "unet/m.safetensors",
    ]


def test_a_file_that_is_not_what_the_hub_describes_is_refused(hub, capsys):
    hub.lies = True
    assert main(["fetch", "softedge"]) == 1
    captured = capsys.readouterr()
    assert "the hub says ffff" in captured.err
    assert "ControlNetHED" not in captured.out


def test_one_that_fails_does_not_stop_the_others(hub, capsys):
    del hub.repositories["lllyasviel/Annotators"]["table5_pidinet.pth"]
    code, said = answer(capsys, "fetch", "softedge=pidinet", "softedge", "canny")
    assert code == 1
    assert list(said["failed"]) == ["softedge=pidinet"]
    assert [file["file"] for file in said["files"]] == ["ControlNetHED.pth"]


def test_a_type_without_weights_says_so(hub, capsys):
    assert main(["fetch", "canny"]) == 0
    assert "canny needs no weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("softedg", "did you mean 'softedge'"),
        ("softedge=het", "did you mean 'hed'"),
        ("a/b --all", "--all is for types"),
    ],
)
def test_unknown_names_are_wrong_requests(what, words, hub, capsys):
    assert main(["fetch", *what.split()]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert not hub.asked


def test_the_list_names_every_backend_with_what_it_needs(hub, capsys):
    code, said = answer(capsys, "annotators")
    assert code == 0
    rows = {(row["type"], row["backend"]): row for row in said["annotators"]}
    assert set(rows) == {(name, backend) for name in ANNOTATORS for backend in ANNOTATORS.backends(name)}
    pidinet = rows["softedge", "pidinet"]
    assert pidinet["licence"].startswith("research only")
    (need,) = pidinet["needs"]
    assert need["repo"] == "lllyasviel/Annotators"
    assert pidinet["state"] == "weights are not here: controlkit fetch softedge=pidinet"
    assert rows["canny", "default"]["problem"] is None
    assert not {"weights", "device", "offline"} & set(pidinet["parameters"])
    assert not hub.asked


def test_the_list_sees_what_was_fetched(hub, capsys):
    assert main(["fetch", "softedge", "-q"]) == 0
    capsys.readouterr()
    _, said = answer(capsys, "annotators")
    states = {(row["type"], row["backend"]): row["state"] for row in said["annotators"]}
    assert states["softedge", "hed"] == states["scribble", "hed"] == "works here"
    assert states["softedge", "pidinet"] != "works here"


def test_the_list_for_people_is_complete(hub, capsys):
    assert main(["annotators"]) == 0
    text = capsys.readouterr().out
    assert "softedge=pidinet (on request): " in text
    assert "needs table5_pidinet.pth of lllyasviel/Annotators, 2.9 MB, research only" in text
