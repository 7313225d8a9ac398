"""What a run will take, for `--dry-run`: steps, memory and, once something was measured, time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.training.forecast import forecast

if TYPE_CHECKING:
    from controlkit.models.bases import Base
    from controlkit.training.config import TrainConfig


def plan(config: TrainConfig, base: Base, rows: int, processes: int, shared_by: str | None = None) -> dict[str, Any]:
    """The numbers; `images_per_second` and `hours` are None where the run's folder holds no measurement."""
    together = config.batch_size * config.gradient_accumulation * processes
    expected = forecast(config, base)
    if shared_by:
        expected = expected.in_shares(shared_by, processes)
    rate = measured_rate(Path(config.output).expanduser())
    return {
        "steps": config.steps,
        "rows_a_step": together,
        "epochs": round(config.steps * together / rows, 2),
        "memory": {**vars(expected), "total": expected.total},
        "images_per_second": rate,
        "hours": round(config.steps * together / rate / 3600, 2) if rate else None,
    }


def describe(plan: dict[str, Any]) -> str:
    """The same in two or three lines."""
    memory = plan["memory"]
    parts = " + ".join(f"{name} {size / 1e9:.2f}" for name, size in memory.items() if name != "total")
    lines = [
        f"{plan['steps']} steps of {plan['rows_a_step']} rows, {plan['epochs']:g} epochs",
        f"{memory['total'] / 1e9:.2f} GB a device and CUDA's own 0.5, estimated from shapes: {parts}",
    ]
    if plan["hours"] is not None:
        lines.append(f"{plan['hours']:g} hours at the {plan['images_per_second']:g} images/s measured in this folder")
    return "\n".join(lines)


def measured_rate(folder: Path) -> float | None:
    """Images/s of the run that is in the folder already, over its steps but those that were timed first: they hold
    what is done only once."""
    file = folder / "timing.jsonl"
    if not file.exists():
        return None
    timed = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in timed if "images_per_second" in row]  # looks are timed too
    rows = rows[1:] or rows
    seconds = sum(row["seconds"] for row in rows)
    return round(sum(row["images_per_second"] * row["seconds"] for row in rows) / seconds, 3) if seconds else None
