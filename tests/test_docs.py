"""What the documents say is true today: their commands run, their names exist."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from controlkit.cli.main import COMMANDS, main
from tests.launcher import ROOT

DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]
SETTINGS = "docs/training.md"

# Run by .ci/run, or not by a test at all: they install, or they run the tests.
NOT_HERE = ("pip ", "python -m venv", "python -m pytest", "pre-commit", "ruff", "bash .ci/run")


def commands(document: str) -> list[str]:
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith("#")]


def a_clone(folder: Path) -> Path:
    """A folder as of somebody in a clone of the project, with `controlkit` and `accelerate` on the path."""
    (folder / "train_controlnet.py").symlink_to(ROOT / "train_controlnet.py")
    programs = folder / ".bin"
    programs.mkdir()
    for name, module in [("controlkit", "controlkit"), ("accelerate", "accelerate.commands.accelerate_cli")]:
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        (programs / name).chmod(0o755)
    return folder


# A base that would be downloaded, and what makes a run as small as one that shows that it works.
REAL_BASE, SMALL_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5", "random-sd15"
SMALL_RUN = " steps=2 batch_size=2 samples.every=2 samples.steps=1 samples.count=1 watch.rows=2"
SMALL_SD_RUN = f"{SMALL_RUN} base={SMALL_BASE} gradient_accumulation=1 data.workers=0 mixed_precision=no"


def made_small(command: str) -> str:
    """A command as it runs here: trainings of two steps in this process, a small model of the same layout in place of
    Stable Diffusion 1.5. A launched one is in the first command line."""
    if "train_controlnet.py" in command:
        small = SMALL_SD_RUN if "--config sd15" in command else SMALL_RUN
        return command.replace("accelerate launch train_controlnet.py", "controlkit train") + small
    return command.replace(REAL_BASE, f"{SMALL_BASE} --num 2 --steps 1").replace(" --held-out 0.02", "")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return a_clone(tmp_path_factory.mktemp("newcomer"))


def run(command: str, place: Path) -> subprocess.CompletedProcess:
    path = f"{place / '.bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, shell=True, text=True, capture_output=True, cwd=place, env=environment, check=False)


def run_here(command: str, place: Path) -> int:
    """As `run`, but what is `controlkit` and no shell's business runs in this process, which has imported it all."""
    words = shlex.split(command)
    if words[0] != "controlkit" or any(mark in command for mark in "|<>&;$"):
        return run(command, place).returncode
    with contextlib.chdir(place):
        return main(words[1:])


def the_first_line() -> str:
    """All of it but the installation, which .ci/run does."""
    (line,) = [command for command in commands("README.md") if command.startswith("pip install . && ")]
    return line.removeprefix("pip install . && ")


def test_the_first_command_line_ends_in_a_picture(place):
    """With a training of two steps: the commands and what they hand on to each other are those of the page."""
    trained = "--config circles data.path=data"
    assert the_first_line().count(trained) == 1
    done = run(the_first_line().replace(trained, trained + SMALL_RUN), place)
    assert done.returncode == 0, done.stderr
    assert (place / "first.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_first_command_line_as_it_stands(tmp_path):
    done = run(the_first_line(), a_clone(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "first.png").stat().st_size > 1000


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_runs(document, place):
    """In the order of the page, since later ones use what earlier ones made."""
    for command in commands(document):
        if not command.startswith(NOT_HERE):
            assert run_here(made_small(command), place) == 0, command


def test_ci_runs_the_readmes_test_line(tmp_path):
    """.ci/run takes the line from the README itself; here is what it finds."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    grep = re.search(r'bash -c "\$\((grep .*?)\)"\n', script)[1]
    found = subprocess.run(grep, shell=True, text=True, capture_output=True, cwd=ROOT, check=True).stdout.strip()
    assert found == 'pip install ".[test]" && python -m pytest'
    assert found in commands("README.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert all(((ROOT / document).parent / target).exists() for target in targets)


def test_the_tree_in_the_readme_is_the_tree():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree")[2]
    named = re.findall(r"^  (\w+)/ ", tree, re.M)
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "controlkit").glob("*/__init__.py"))
    for name in re.findall(r"^(\S+) +\S", tree.partition("```")[2].partition("```")[0], re.M):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_is_in_the_readme_and_has_a_help(command, place, capsys):
    assert run_here(f"controlkit {command} --help", place) == 0
    assert "Options:" in capsys.readouterr().out
    assert f"controlkit {command}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_setting_in_the_table_exists():
    from controlkit.config import build
    from controlkit.training.config import TrainConfig

    table = (ROOT / SETTINGS).read_text(encoding="utf-8").partition("| setting |")[2].partition("\n\n")[0]
    names = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert len(names) > 10
    for name in names:
        if not name.startswith("random"):
            value = build(TrainConfig)
            for part in name.split("."):
                value = getattr(value, part)


def test_nothing_names_the_machine_it_was_made_on():
    files = subprocess.run(["git", "ls-files"], text=True, capture_output=True, cwd=ROOT, check=False).stdout.split(
        "\n"
    )
    for name in files:
        if name.endswith((".py", ".md", ".yaml", ".toml")) and (ROOT / name).exists():
            assert not re.search(r"/ho[m]e/|/ro[o]t/|/wo[r]k/", (ROOT / name).read_text(encoding="utf-8")), name


def test_git_is_there_or_the_test_above_is_empty():
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    assert subprocess.run(["git", "ls-files"], capture_output=True, cwd=ROOT, check=True).stdout
