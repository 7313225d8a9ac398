"""Ends a run between two steps: SIGINT and SIGTERM let it save a checkpoint first, and so does the end of its time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from accelerate import Accelerator

T = TypeVar("T")
Reason = Literal["time", "SIGTERM", "SIGINT"]
_REASONS: tuple[Reason | None, ...] = (None, "time", "SIGTERM", "SIGINT")  # of several, the last counts


class Stopper:
    """Asked behind each step whether it was the last. While the loop runs, signals wait for that question; a second
    Ctrl-C does not.

    Several processes agree every `ask_every` steps, since asking makes them wait for each other and for the GPU.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        *,
        max_minutes: float | None,
        ask_every: int,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.accelerator, self.max_minutes, self.ask_every, self.say = accelerator, max_minutes, ask_every, say
        self.signal: Reason | None = None
        self._begun = time.monotonic()

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; from the first to the end of the loop over them signals are caught."""
        self._begun = time.monotonic()
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no signals
            before = {each: signal.signal(each, self._note) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield from batches
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def reason(self, step: int) -> Reason | None:
        """Why the run ends behind this step, if it does; the same on every process."""
        mine = self.signal
        if mine is None and self.max_minutes is not None and time.monotonic() - self._begun >= 60 * self.max_minutes:
            mine = "time"
        if self.accelerator.num_processes == 1:
            return mine
        if step % self.ask_every:
            return None
        codes = torch.tensor([_REASONS.index(mine)], device=self.accelerator.device)
        return _REASONS[int(self.accelerator.gather(codes).max())]

    def _note(self, number: int, frame: Any) -> None:
        # A launcher passes SIGINT on as SIGTERM, and a terminal sends it to all: only a person asks for SIGINT twice.
        if number == signal.SIGINT and self.signal == "SIGINT":
            raise KeyboardInterrupt
        self.signal = "SIGINT" if number == signal.SIGINT else self.signal or "SIGTERM"
        when = "behind this step" if self.accelerator.num_processes == 1 else f"within {self.ask_every} steps"
        self.say(f"{self.signal}: a checkpoint is saved {when}, then the run ends; Ctrl-C again ends it now")


def leave(reason: Reason, step: int, steps: int, max_minutes: float | None, say: Callable[[str], None]) -> None:
    """Say how to go on; a signal is raised on as KeyboardInterrupt, which ends in exit code 130."""
    why = f"after {max_minutes:g} minutes" if reason == "time" else f"by {reason}"
    say(f"stopped at step {step} of {steps} {why}; go on with --resume")
    if reason != "time":
        raise KeyboardInterrupt


def live_with_the_parent(worker: int) -> None:
    """For processes that read ahead: signals go to the whole group, and the training still needs their rows; killed, it
    takes them along. torch only looks whether their parent changes, and so leaves those for ever that were still
    starting."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
