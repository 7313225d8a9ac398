"""Configuration: the field's type decides, and everything that is wrong is said together."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from controlkit.cli.train import FIRST_CONFIG
from controlkit.config import build, find_config, shipped_configs, to_yaml
from controlkit.errors import RequestError
from controlkit.toybox.lessons import LessonConfig
from controlkit.training.base_config import BaseConfig
from controlkit.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    path: str = "here"
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Config:
    lr: float = 1e-5
    steps: int = 10
    name: str = "x"
    precision: Literal["no", "bf16"] = "no"
    flag: bool = False
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)

    def problems(self):
        if self.steps < 1:
            yield f"steps={self.steps}: expected at least 1"
        if self.lr <= 0:
            yield f"lr={self.lr}: expected more than 0"


def write(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_fields_type_decides_not_the_look(tmp_path):
    """PyYAML reads 1e-5 as text, `no` as False, 007 as an octal, 1_000 as a number."""
    config = build(Config, write(tmp_path, "lr: 1e-5\nprecision: no\nname: no\nflag: yes\nsteps: 1_000\nlimit: 7\n"))
    assert config == Config(lr=1e-5, precision="no", name="no", flag=True, steps=1000, limit=7)


def test_the_command_line_stands_over_the_file_over_the_defaults(tmp_path):
    file = write(tmp_path, "steps: 5\ninner:\n  path: there\n")
    config = build(Config, file, ["inner.sizes=3,4", "steps=6", "name=a=b"])
    assert config == Config(steps=6, name="a=b", inner=Inner(path="there", sizes=(3, 4)))


def test_null_is_none_only_where_that_is_allowed(tmp_path):
    assert build(Config, None, ["limit=null"]).limit is None
    with pytest.raises(RequestError, match="steps=null: expected a whole number"):
        build(Config, None, ["steps=null"])
    assert build(Config, write(tmp_path, 'name: "null"')).name == "null"


@pytest.mark.parametrize(
    "config", [Config(), Config(name="no", precision="bf16", inner=Inner(sizes=())), TrainConfig()]
)
def test_what_is_written_is_read_back(tmp_path, config):
    assert build(type(config), write(tmp_path, to_yaml(config))) == config


def test_everything_wrong_is_said_together(tmp_path):
    file = write(tmp_path, "stepz: 5\nlr: fast\ninner:\n  pth: x\n")
    with pytest.raises(RequestError) as reason:
        build(Config, file, ["precision=fp8", "flag=maybe", "inner=3", "loose"])
    lines = str(reason.value).splitlines()
    assert "unknown setting 'stepz': did you mean 'steps'?" in str(reason.value)
    assert "lr=fast: expected a number" in lines
    assert "precision=fp8: expected no or bf16" in lines
    assert "flag=maybe: expected true or false" in lines
    assert "inner=3: is a group of settings; set one of them, e.g. inner.path=…" in lines
    assert "'loose': expected key=value, e.g. lr=1e-05" in lines
    assert len(lines) == 6


def test_unknown_inner_keys_name_the_nearest(tmp_path):
    with pytest.raises(RequestError, match=r"unknown setting 'inner\.pth': did you mean 'path'"):
        build(Config, write(tmp_path, "inner:\n  pth: x\n"))


def test_conflicts_are_reported_together():
    with pytest.raises(RequestError, match=r"steps=0: .*\nlr=-1"):
        build(Config, None, ["steps=0", "lr=-1"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "line 1 is not YAML"),
        ("- 1", "expected keys and values"),
        ("steps: 1\nsteps: 2", "line 2 is not YAML: the key 'steps' is given twice"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(RequestError, match=words) as reason:
        build(Config, write(tmp_path, text))
    assert "\n" not in str(reason.value)


def test_a_config_is_found_by_name_or_path(tmp_path):
    assert find_config("circles") == shipped_configs()["circles"]
    assert find_config(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(RequestError, match="did you mean 'circles'"):
        find_config("circle")
    with pytest.raises(RequestError, match="there is no such file"):
        build(Config, tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", list(shipped_configs()))
def test_every_shipped_config_is_read_and_opens_with_its_command(name):
    """Their names say what they train: base-… a base, toybox-read-… a reader, the others a ControlNet."""
    file = shipped_configs()[name]
    kinds = {
        "base-": (BaseConfig, "controlkit base train"),
        "toybox-read-": (LessonConfig, "controlkit toybox train"),
        "": (TrainConfig, "accelerate launch train_controlnet.py"),
    }
    config, command = next(kind for start, kind in kinds.items() if name.startswith(start))
    build(config, file)
    assert file.read_text(encoding="utf-8").splitlines()[0] == f"# {command} --config {name}"


def test_the_first_config_is_for_the_small_base_and_the_defaults_are_not():
    """Steps of that size would tear a base of full size apart."""
    first, plain = build(TrainConfig, shipped_configs()[FIRST_CONFIG]), TrainConfig()
    assert first.base == plain.base == "toybox"
    assert plain.lr < first.lr / 10


def test_bad_training_values_are_refused():
    with pytest.raises(RequestError) as reason:
        build(TrainConfig, None, ["lr=0", "prompt_dropout=2", "data.held_out=1", "samples.sampler=eulr"])
    assert len(str(reason.value).splitlines()) == 4
    assert "did you mean 'euler'" in str(reason.value)
