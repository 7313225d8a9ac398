"""What a run says of itself: looks at held-out rows, the event that its control is acquired, or why it is not.

Beside the rows of the steps metrics.jsonl gets

    {"step": 200, "held_out_loss": …, "control_gain_share": …, …}                  a look (`watch.py`)
    {"step": 200, "fidelity": {"metric": "canny_f1_1px", "mean": …, …}}            the samples, annotated again
    {"step": 300, "event": "control acquired", "since": 200}
    {"step": 500, "event": "control not acquired", "diagnosis": ["…"]}
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from controlkit.training.diagnosis import diagnose
from controlkit.training.map_facts import ROWS, MapFacts, map_problems
from controlkit.training.watch import acquired_at, looks_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlkit.data.rows import Row
    from controlkit.processes import Processes
    from controlkit.training.batches import ControlRows
    from controlkit.training.config import TrainConfig
    from controlkit.training.run import Run
    from controlkit.training.watch import Watch

ACQUIRED, NOT_ACQUIRED = "control acquired", "control not acquired"


class Telemetry:
    """All processes look; the first one writes and says."""

    def __init__(
        self,
        run: Run,
        config: TrainConfig,
        watch: Watch | None,
        maps: list[MapFacts],
        say: Callable[[str], None],
        *,
        first: bool,
    ) -> None:
        self.run, self.config, self.watch, self.maps, self.say, self.first = run, config, watch, maps, say, first
        rows = run.metrics() if first else []
        self.looks = looks_in(rows)
        self.events = [row["event"] for row in rows if "event" in row]
        if first:
            for problem in map_problems(maps):
                say(f"look at the maps before you go on: {problem}")

    def look(self, step: int, nets: dict[str, Any]) -> None:
        """Look at the networks by name, as they are to be handed over; write what is seen, and say what it means."""
        if self.watch is None:
            return
        begun = time.monotonic()
        seen = self.watch.look(step, nets)
        if not self.first:
            return
        self.run.append("metrics.jsonl", [seen])
        self.run.append("timing.jsonl", [{"step": step, "look_seconds": round(time.monotonic() - begun, 3)}])
        self.looks.append(seen)
        if ACQUIRED not in self.events:
            self._judge(step)

    def fidelity(self, step: int, scores: list[dict[str, Any]]) -> None:
        """How well the samples follow their maps, type by type."""
        for score in scores if self.first else ():
            self.run.append("metrics.jsonl", [{"step": step, "fidelity": score}])
            beside = ", ".join(f"{name} {score[name]:.2f}" for name in ("chance", "real") if name in score)
            self.say(f"step {step}: the samples have {score['metric']} {score['mean']:.2f} ({beside})")

    def _judge(self, step: int) -> None:
        since = acquired_at(self.looks)
        if since is not None:
            gain = self.looks[-1]["map_gain_share"]["mean"]
            self.say(f"{ACQUIRED} at step {since}: a row's own map beats another's by {gain:z.1%} of the held-out loss")
            self._write({"step": step, "event": ACQUIRED, "since": since})
            return
        by = self.config.watch.expect_by
        expected = by is not None and step >= by and NOT_ACQUIRED not in self.events
        if expected or step == self.config.steps:
            steps = [row for row in self.run.metrics() if "loss" in row]
            reasons = diagnose(self.config, self.maps, self.looks, steps)
            self.say("\n    ".join([f"{NOT_ACQUIRED} by step {step}", *reasons]))
            self._write({"step": step, "event": NOT_ACQUIRED, "diagnosis": reasons})

    def _write(self, event: dict[str, Any]) -> None:
        self.run.append("metrics.jsonl", [event])
        self.events.append(event["event"])


def choose_watched(kept_back: list[Row], learned: list[Row], count: int, say: Callable[[str], None]) -> list[Row]:
    """The rows to look at: held-out ones, filled up with others where there are too few."""
    if len(kept_back) < count:
        say(f"only {len(kept_back)} rows are held out: some that are looked at are trained on too (data.held_out)")
    return (kept_back + learned)[:count]


def read_map_facts(data: ControlRows, rows: list[Row], processes: Processes) -> list[MapFacts]:
    """Of some of the rows, spread over them; every process reads its share."""
    chosen = rows[:: max(1, len(rows) // ROWS)][:ROWS]
    facts = []
    for row in processes.slice(chosen):
        picture, maps, _ = data.picture_and_maps(row)
        facts += [MapFacts.of(type, picture, control_map) for type, control_map in maps.items()]
    return processes.gather(facts)
