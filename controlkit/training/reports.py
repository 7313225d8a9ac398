"""Other places where the figures of a run go: TensorBoard where it is installed, wandb on request."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Report = Callable[[dict[str, Any]], None]

PLACES = ("auto", "none", "tensorboard", "wandb", "all")


def check_report_to(report_to: str) -> None:
    """Refuse a place that is not installed."""
    for name in ("tensorboard", "wandb"):
        if report_to in (name, "all") and not find_spec(name):
            raise RequestError(f"report_to={report_to}: {name} is not installed: pip install {name}")


def make_reports(report_to: str, folder: Path, step: int, config: dict[str, Any]) -> list[Report]:
    """What to call with each line of metrics.jsonl, from `step` on."""
    check_report_to(report_to)
    reports = []
    if report_to in ("tensorboard", "all") or (report_to == "auto" and find_spec("tensorboard")):
        reports.append(_tensorboard(folder / "tensorboard", step))
    if report_to in ("wandb", "all"):
        reports.append(_wandb(folder, config))
    return reports


def figures(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in a line of metrics.jsonl, inner ones as outer/inner."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from figures(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and prefix + key != "step":
            yield prefix + key, value


def _tensorboard(folder: Path, step: int) -> Report:
    from torch.utils.tensorboard import SummaryWriter

    # What a run that was stopped wrote behind its checkpoint is hidden by what the resumed one writes.
    writer: Any = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=30)

    def report(row: dict[str, Any]) -> None:
        for name, value in figures(row):
            writer.add_scalar(name, value, row["step"])
        if "event" in row:
            writer.add_text("event", row["event"], row["step"])
        writer.flush()

    return report


def _wandb(folder: Path, config: dict[str, Any]) -> Report:
    import wandb

    run: Any = wandb.init(project="controlkit", name=folder.name, dir=str(folder), config=config)

    def report(row: dict[str, Any]) -> None:
        run.log({**dict(figures(row)), **({"event": row["event"]} if "event" in row else {})}, step=row["step"])

    return report
