"""What a command says: answers on standard output, messages and progress on standard error.

On a terminal long work shows a bar with rate and time left; elsewhere a plain line now and then. `--quiet` silences
all but answers and errors; with `--json` the answer is one JSON object and nothing else is on standard output.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLAIN_LINE_EVERY_SECONDS = 10


@dataclass(frozen=True)
class Output:
    quiet: bool = False
    as_json: bool = False

    def say(self, text: str) -> None:
        """A message for the person at the keyboard."""
        if not self.quiet:
            click.echo(text, err=True)

    def warn(self, text: str) -> None:
        """Something went wrong, and the work goes on; said under --quiet too."""
        click.echo(text, err=True)

    def answer(self, text: str, data: dict[str, Any]) -> None:
        """The command's answer: `text` for people, `data` under --json."""
        click.echo(json.dumps(data, ensure_ascii=False) if self.as_json else text)

    @contextmanager
    def progress(self, what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Gives a function to call with (done, total)."""
        if self.quiet:
            yield lambda done, total: None
        elif sys.stderr.isatty():
            with _bar(what, unit) as update:
                yield update
        else:
            yield _PlainLines(what, unit)


def common_options(*, answers: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--quiet`, `--debug` and, for a command that answers, `--json`; the command gets `output`."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_output(*args: Any, quiet: bool, debug: bool, as_json: bool = False, **options: Any) -> Any:
            del debug  # main() looks for it itself, since it also counts when the arguments cannot be parsed
            return command(*args, output=Output(quiet, as_json), **options)

        if answers:
            with_output = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(with_output)
        with_output = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(with_output)
        return click.option("-q", "--quiet", is_flag=True, help="Say only answers and errors.")(with_output)

    return decorate


def duration(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def rate(done: int, seconds: float) -> str:
    per_second = done / max(seconds, 1e-9)
    return f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    speed = (TextColumn("{task.fields[rate]}"), TextColumn("·"), TimeRemainingColumn(), TextColumn("left"))
    with Progress(*columns, *speed, console=Console(stderr=True), transient=True) as bar:
        task, clock = bar.add_task(what, total=None, rate=""), _Clock()

        def update(done: int, total: int) -> None:
            fresh, seconds = clock(done)
            bar.update(task, completed=done, total=total, rate=rate(fresh, seconds))

        yield update


class _PlainLines:
    def __init__(self, what: str, unit: str) -> None:
        self.what, self.unit, self.clock, self.last = what, unit, _Clock(), time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        fresh, seconds = self.clock(done)
        now = time.monotonic()
        if now - self.last < PLAIN_LINE_EVERY_SECONDS and done < total:
            return
        self.last = now
        left = f" · {duration(seconds / fresh * (total - done))} left" if fresh > 0 and done < total else ""
        click.echo(f"{self.what}: {done}/{total} {self.unit} · {rate(fresh, seconds)}{left}", err=True)


class _Clock:
    """What was done since the first call, in how many seconds: loading and what a resumed run finds do not count."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.start = 0.0

    def __call__(self, done: int) -> tuple[int, float]:
        if self.first is None:
            self.first, self.start = done, time.monotonic()
        return done - self.first, time.monotonic() - self.start


def refuse_given(but: tuple[str, ...], why: str) -> None:
    """Refuse every option that was typed but these, by the names of their parameters; `why` says what goes before."""
    from controlkit.errors import RequestError

    context = click.get_current_context()
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name not in but
        and context.get_parameter_source(option.name or "") == click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise RequestError(f"{why}; leave out {', '.join(given)}")
