"""The loop that trains from scratch: a task learns, whatever it is; its run resumes exactly."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import torch

from controlkit.models.quiet import quiet_libraries
from controlkit.processes import Processes
from controlkit.training.checkpoints import (
    State,
    drop_old_checkpoints,
    load_checkpoint,
    optimizer_state,
    save_checkpoint,
)
from controlkit.training.draws import positions
from controlkit.training.guard import Guard
from controlkit.training.launch import make_accelerator
from controlkit.training.optimizers import learning_rate
from controlkit.training.run import Run, StepLog, due
from controlkit.training.samples import grid, save_png
from controlkit.training.sharding import OptimizerState, local
from controlkit.training.stopping import Stopper, leave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from controlkit.training.loop_config import LoopConfig

AVERAGE = "_ema"


class Task(Protocol):
    """A module whose forward is the loss of a batch, so that whatever wraps modules (DDP, autocast) wraps all of it.

    A batch names rows by (epoch, number), from which every draw follows.
    """

    result: str
    """The folder inside the run's that it hands over."""

    def __call__(self, keys: list[tuple[int, int]], device: torch.device) -> torch.Tensor: ...

    def to(self, device: torch.device) -> Task: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def networks(self) -> dict[str, Any]:
        """What learns, by the name it is saved under."""
        ...

    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> list[list[NDArray[np.uint8]]]:
        """Rows of pictures that show how far these networks have come."""
        ...

    def hand_over(self, networks: Mapping[str, Any], folder: Path, device: torch.device) -> None:
        """Write `result` into the run's folder."""
        ...


def train_task(
    config: LoopConfig,
    make_task: Callable[[torch.device], Task],
    count: int,
    *,
    resumed_with: tuple[str, ...],
    sheet_every: int,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train a task on `count` rows and return what it hands over. `resumed_with` names the settings that make another
    run if they change."""
    quiet_libraries()
    processes = Processes.launched()
    accelerator = make_accelerator(config.mixed_precision)
    run = Run(config, resumed_with, resume=resume)
    accelerator.wait_for_everyone()  # nobody writes into the folder before all have looked into it

    # The task, and the moving averages of its networks.
    device = accelerator.device
    task = make_task(device).to(device)
    networks = task.networks()
    averages = {name: copy.deepcopy(net).requires_grad_(False).eval() for name, net in networks.items() if config.ema}
    optimizer = torch.optim.AdamW(
        [parameter for net in networks.values() for parameter in net.parameters()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    saved = {**networks, **{name + AVERAGE: net for name, net in averages.items()}}
    state = load_checkpoint(run.checkpoint, saved) if run.checkpoint else State()
    wrapped, prepared_optimizer = accelerator.prepare(task, optimizer)
    if run.checkpoint:
        OptimizerState(optimizer).take(optimizer_state(run.checkpoint))
    if state.scaler and accelerator.scaler:
        accelerator.scaler.load_state_dict(state.scaler)

    if processes.first:
        run.begin(state.step)
        size = sum(parameter.numel() for net in networks.values() for parameter in net.parameters()) / 1e6
        say(f"{count} pictures, {config.batch_size * processes.count} a step; {size:.2f} M parameters learn")
        if state.step:
            say(f"resumed at step {state.step} from {run.checkpoint}")
        progress(state.step, config.steps)
    log = StepLog(run, accelerator, Guard(**state.guard))
    together = config.batch_size * processes.count
    step, rows_seen = state.step, state.rows_seen
    stream = positions(config.seed, count, rows_seen)
    batches = (processes.slice([next(stream) for _ in range(together)]) for _ in range(config.steps - step))
    tell = say if processes.first else (lambda text: None)
    stopper = Stopper(accelerator, max_minutes=config.max_minutes, ask_every=config.log_every, say=tell)
    stopped = None

    # The loop.
    for keys in stopper.over(batches):
        loss = wrapped(keys, device)
        accelerator.backward(loss)
        log.add(loss)
        grad_norm = accelerator.clip_grad_norm_(task.parameters(), config.max_grad_norm)
        rate = learning_rate(config, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        prepared_optimizer.step()
        prepared_optimizer.zero_grad()
        step, rows_seen = step + 1, rows_seen + together
        follow(averages, networks, config.ema, step)
        log.end_step(step, rate, grad_norm)
        if processes.first:
            progress(step, config.steps)
        stopped = stopper.reason(step) if step < config.steps else None
        last = step == config.steps or stopped is not None
        # Behind a signal there is no time for samples.
        sampled_every = 0 if stopped in ("SIGINT", "SIGTERM") else sheet_every
        intervals = {"log": config.log_every, "save": config.checkpoint_every, "sample": sampled_every}
        now = due(step, last, intervals)
        if not now:
            continue

        # Log: before a checkpoint too, so that a resumed run finds every step that it does not make again.
        log.flush(together)

        # Save a checkpoint.
        if "save" in now and processes.first:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
            now_at = State(step, rows_seen, scaler, asdict(log.guard), log.guard.calm)
            save_checkpoint(run.checkpoints, now_at, saved, optimizer.state_dict())
            drop_old_checkpoints(run.checkpoints, config.keep_checkpoints)

        # Paint samples, of the averages where there are any.
        if "sample" in now and processes.first:
            rows = task.sheet({**networks, **averages}, device)
            save_png(run.folder / "samples" / f"step-{step:06d}.png", grid(rows))
        processes.wait()
        log.restart_clock()
        if stopped:
            break

    # Hand over, or leave.
    if processes.first and stopped in (None, "time"):
        task.hand_over({**networks, **averages}, run.folder, device)
    processes.wait()
    accelerator.end_training()
    if stopped:
        leave(stopped, step, config.steps, config.max_minutes, tell)
    return run.folder / task.result


@torch.no_grad()
def follow(averages: dict[str, Any], networks: dict[str, Any], decay: float, step: int) -> None:
    """The averages take a step towards the networks; early ones are larger, or the start would be remembered."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for name, average in averages.items():
        pairs = zip(average.parameters(), networks[name].parameters(), strict=True)
        kept, new = zip(*((kept, new) for kept, new in pairs if new.requires_grad), strict=True)
        torch._foreach_lerp_([local(each) for each in kept], [local(each) for each in new], share)
        for buffer, newer in zip(average.buffers(), networks[name].buffers(), strict=True):
            buffer.copy_(newer)
