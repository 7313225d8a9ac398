"""The run folder: what a run leaves on disk, and how a run that was stopped finds its place again.

RUN/
    config.yaml                     resolved
    metrics.jsonl                   a row a step, a row a look (`watch.py`), events; only what the run determines: a
                                    resumed run writes the same bytes
    timing.jsonl                    rates and times
    samples/step-000500.png         control | picture | made
    checkpoints/step-000500/
    controlnet/                     the result, in diffusers' layout
    curves.png, README.md           the model card
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from controlkit.config import build, to_dict, to_yaml
from controlkit.errors import RequestError
from controlkit.files import atomic_write_text, need_writable
from controlkit.training.checkpoints import newest_checkpoint
from controlkit.training.guard import Guard, RunError

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator

    class RunConfig(Protocol):
        """Any config of a run says where its folder is."""

        @property
        def output(self) -> str: ...


__all__ = ["Run", "RunError", "StepLog", "due"]


class Run:
    """The folder of a run. Only the main process writes. `same` names the settings that a resumed run must keep."""

    def __init__(self, config: RunConfig, same: tuple[str, ...], *, resume: bool) -> None:
        self.config, self.same = config, same
        self.reports: list[Callable[[dict[str, Any]], None]] = []  # called with each row of metrics.jsonl
        self.folder = Path(config.output).expanduser()
        self.checkpoints = self.folder / "checkpoints"
        need_writable(self.folder, "output")
        # Left by a run that was stopped before its first checkpoint, these hold nothing that could be lost.
        found = {path.name for path in self.folder.iterdir() if not path.name.startswith(".")}
        if found and not resume:
            raise RequestError(
                f"output={config.output} is not empty; pass --resume to go on with it, or choose another output=…"
            )
        self.checkpoint = newest_checkpoint(self.checkpoints) if resume else None
        if self.checkpoint:
            self._check_same_run()

    def begin(self, step: int) -> None:
        """Write the resolved config; cut the logs back to the step from which the run goes on."""
        atomic_write_text(self.folder / "config.yaml", to_yaml(self.config))
        for name in ("metrics.jsonl", "timing.jsonl"):
            path = self.folder / name
            rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            kept = [row for row in rows if _step(row) <= step]
            atomic_write_text(path, "".join(row + "\n" for row in kept))

    def append(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Add rows to one of the logs."""
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        if name == "metrics.jsonl":
            for report in self.reports:
                for row in rows:
                    report(row)

    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def _check_same_run(self) -> None:
        saved, now = _flat(to_dict(build(type(self.config), self.folder / "config.yaml"))), _flat(to_dict(self.config))
        changed = [f"{key}={saved[key]} there, {now[key]} now" for key in self.same if saved[key] != now[key]]
        if changed:
            raise RequestError(
                f"--resume: {self.folder} was begun with {'; '.join(changed)}; change it back, or begin another run "
                f"with output=…"
            )


class StepLog:
    """Losses stay on the device until `flush`, so that no step waits for the one before it."""

    def __init__(self, run: Run, accelerator: Accelerator, guard: Guard) -> None:
        self.run, self.accelerator, self.guard = run, accelerator, guard
        self.micro: list[torch.Tensor] = []
        self.rows: list[tuple[int, float, torch.Tensor, torch.Tensor]] = []
        self.begun = time.monotonic()

    def add(self, loss: torch.Tensor) -> None:
        """The loss of one forward pass."""
        self.micro.append(loss.detach())

    def end_step(self, step: int, lr: float, grad_norm: torch.Tensor) -> None:
        """The passes since the last call made one step of the optimizer."""
        self.rows.append((step, lr, torch.stack(self.micro).mean(), torch.as_tensor(grad_norm).detach()))
        self.micro = []

    def restart_clock(self) -> None:
        """What took time since the last flush (samples, a checkpoint) was not training."""
        self.begun = time.monotonic()

    def flush(self, rows_a_step: int) -> None:
        """Write what has gathered, averaged over the processes; stop the run if it cannot go on."""
        if not self.rows:
            return
        means = self.accelerator.reduce(torch.stack([loss.float() for _, _, loss, _ in self.rows]), "mean").tolist()
        norms = torch.stack([norm.float().to(self.accelerator.device) for *_, norm in self.rows]).tolist()
        # Under fp16 a step whose gradients overflow is left out, and the scale lowered: no fault.
        used = [norm if math.isfinite(norm) or not self.accelerator.scaler else None for norm in norms]
        rows = [
            {"step": step, "loss": loss, "grad_norm": norm, "lr": lr}
            for (step, lr, _, _), loss, norm in zip(self.rows, means, used, strict=True)
        ]
        seconds, self.begun = time.monotonic() - self.begun, time.monotonic()
        self.rows = []
        for row in rows:
            self.guard.see(row["step"], row["loss"], row["grad_norm"])
        if self.accelerator.is_main_process:
            self.run.append("metrics.jsonl", rows)
            rate = rows_a_step * len(rows) / seconds
            timing = {"step": rows[-1]["step"], "seconds": round(seconds, 3), "images_per_second": round(rate, 2)}
            self.run.append("timing.jsonl", [timing])


def due(step: int, last: bool, intervals: dict[str, int]) -> set[str]:
    """What is to be done behind this step, each every so many steps (0: never) and at the end."""
    return {what for what, every in intervals.items() if every and (last or step % every == 0)}


def _step(row: str) -> float:
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError):  # a line that was being written when the machine stopped
        return math.inf


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
