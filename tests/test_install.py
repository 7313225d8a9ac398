"""What is installed beside us, and what is shipped."""

import json
import tomllib
from importlib.metadata import PackageNotFoundError, distribution, version

import pytest

from controlkit import __version__
from controlkit.cli import doctor
from controlkit.cli.main import main
from tests.launcher import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_both_opencv_packages_are_of_one_version_and_run():
    assert doctor.opencv_problem() is None
    assert version("opencv-python") == version("opencv-python-headless")


def test_both_opencv_packages_are_declared_with_one_range():
    ranges = {name.partition(">=")[0]: name.partition(">=")[2] for name in PROJECT["dependencies"]}
    assert ranges["opencv-python"] == ranges["opencv-python-headless"]


def test_every_dependency_has_a_lower_bound():
    assert all(">=" in dependency for dependency in PROJECT["dependencies"])


def test_the_version_is_said_once():
    assert PROJECT["version"] == __version__


def test_what_is_not_code_is_installed_with_it():
    try:
        installed = distribution("controlkit")
    except PackageNotFoundError:
        pytest.skip("run from a checkout alone: nothing is installed")
    files = {str(file) for file in installed.files or ()}
    if not any(name.startswith("controlkit/") for name in files):
        pytest.skip("installed as editable: the checkout itself is used")
    assert {f"controlkit/configs/{path.name}" for path in (ROOT / "configs").iterdir()} <= files
    weights = [path for path in (ROOT / "controlkit/toybox/weights").rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in weights} <= files
    assert "train_controlnet.py" in files


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"opencv-python": "5.0.0.93", "opencv-python-headless": "4.9.0.80"}, "share one folder and differ"),
        ({}, "OpenCV is not installed"),
        ({"opencv-python": "1.2.3.4", "opencv-python-headless": "1.2.3.4"}, "installed is 1.2.3.4"),
    ],
)
def test_doctor_sees_what_is_wrong_with_opencv(monkeypatch, capsys, found, words):
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: found.get(name) if "opencv" in name else real(name))
    assert main(["doctor", "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any(words in problem for problem in problems)


def test_doctor_says_what_works(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["annotators"]["canny"] == report["annotators"]["depth=toybox"] == "works here"
    assert report["annotators"]["depth=zoe"].startswith("weights are not here")
    assert "toybox" in report["bases"]
    assert "cpu" in report["devices"]
    assert report["versions"]["torch"] == version("torch")
