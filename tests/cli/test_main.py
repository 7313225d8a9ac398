"""Exit codes, one line for an error, and who is spoken to where."""

import json
import subprocess
import sys

import click
import pytest

from controlkit.cli import main as cli
from controlkit.cli.main import COMMANDS, main
from controlkit.cli.output import _Clock, _PlainLines, duration, rate
from controlkit.errors import RequestError


@pytest.fixture
def failing(monkeypatch):
    """`controlkit doctor` replaced by a command that raises what it is given."""

    def install(exception):
        @click.command()
        @click.option("--debug", is_flag=True)
        def command(debug):
            raise exception

        monkeypatch.setattr(cli.Commands, "get_command", lambda *_: command)

    return install


@pytest.mark.parametrize(
    ("exception", "code", "line"),
    [
        (RequestError("a came; b was expected"), 2, "error: a came; b was expected\n"),
        (ValueError("also wrong"), 2, "error: also wrong\n"),
        (OSError(28, "No space left on device", "/x"), 2, "error: /x: No space left on device\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted\n"),
        (KeyError("k"), 1, "error: KeyError: 'k'; --debug shows where\n"),
    ],
)
def test_what_is_raised_becomes_a_line_and_an_exit_code(failing, capsys, exception, code, line):
    failing(exception)
    assert main(["doctor"]) == code
    assert capsys.readouterr().err == line


def test_debug_shows_the_traceback(failing, capsys):
    failing(KeyError("k"))
    assert main(["doctor", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_command_is_one_line(capsys):
    assert main(["anotate"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "anotate" in captured.err


def test_help_lists_every_command_and_no_other(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("Commands:")[2]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == list(COMMANDS)


def test_version(capsys):
    from controlkit import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"controlkit {__version__}\n"


def test_without_a_command_the_help_is_shown(capsys):
    assert main([]) == 2
    assert "Commands:" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["annotators", "doctor"])
def test_json_is_one_object_and_nothing_else(command, capsys):
    assert main([command, "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert main([command]) == 0
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(capsys.readouterr().out)


def test_quiet_says_nothing_but_the_answer(pictures, capsys):
    assert main(["annotate", "--type", "canny", str(pictures), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_away_from_a_terminal_progress_is_plain_lines(pictures):
    command = [sys.executable, "-m", "controlkit", "annotate", "--type", "canny", str(pictures)]
    done = subprocess.run(command, text=True, capture_output=True, check=True)
    assert "\x1b" not in done.stderr + done.stdout
    assert done.stderr.startswith("annotate: 6/6 pictures · ")


def test_interrupted_from_the_keyboard(tmp_path):
    """SIGINT in the middle of drawing: one line, 130, nothing half-written."""
    import signal
    import time

    command = [sys.executable, "-m", "controlkit", "toybox", "make", str(tmp_path / "d"), "--world", "circles"]
    # Tests that run in the background of a shell inherit that SIGINT is ignored.
    process = subprocess.Popen(
        [*command, "--count", "100000", "-q"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("d/*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert process.stderr.read().strip() == "interrupted"
    assert not list(tmp_path.glob("d/.unfinished-*"))


def test_rates_and_times_left(monkeypatch, capsys):
    """From the first call on: neither loading nor what a resumed run finds counts."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = _Clock()
    now[0] = 500.0
    assert clock(40) == (0, 0.0)
    now[0] = 510.0
    assert clock(60) == (20, 10.0)
    lines = _PlainLines("train", "steps")
    lines(0, 100)
    now[0] += 20
    lines(40, 100)
    now[0] += 1
    lines(42, 100)
    assert capsys.readouterr().err == "train: 40/100 steps · 2/s · 0:30 left\n"
    assert [duration(5), duration(75), duration(3700)] == ["0:05", "1:15", "1:01:40"]
    assert [rate(1000, 10), rate(1, 4)] == ["100/s", "0.25/s"]
