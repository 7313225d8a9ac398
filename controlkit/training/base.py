"""The training of a base: one loop for the autoencoder, DDPM and IDDPM in pixels, Stable Diffusion in latents."""

from __future__ import annotations

import copy
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from controlkit.data.labelled import load_pictures, read_labelled
from controlkit.data.rows import find_dataset, held_out
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.models.quiet import quiet_libraries
from controlkit.processes import Processes
from controlkit.training.base_config import RESUMED_WITH, BaseConfig
from controlkit.training.base_networks import build_scheduler
from controlkit.training.base_tasks import LatentDiffusion, make_task
from controlkit.training.checkpoints import State, drop_old_checkpoints, load_checkpoint, save_checkpoint
from controlkit.training.draws import positions
from controlkit.training.run import Run, StepLog, due
from controlkit.training.samples import grid, save_png

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

AVERAGE = "_ema"


def train_base(
    config: BaseConfig,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train as the config says and return what can be loaded: `RUN/pipeline`, or `RUN/vae`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    quiet_libraries()

    # Everything that can be refused is refused before a network is built.
    if config.train == "unet" and config.samples.every:
        make_sampler(config.samples.sampler, build_scheduler(config), steps=config.samples.steps)
    rows = read_labelled(find_dataset(config.data.path), config.data.label)
    kept_back = [row for row in rows if held_out(row.content, config.data.held_out)]
    learned = [row for row in rows if not held_out(row.content, config.data.held_out)]
    if not learned:
        raise RequestError(f"data.path={config.data.path}: all {len(rows)} rows are held out; lower data.held_out")
    processes = Processes.launched()
    AcceleratorState._reset_state()  # a run before this one in the same process may have had another precision
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    run = Run(config, RESUMED_WITH, resume=resume)
    accelerator.wait_for_everyone()  # nobody writes into the folder before all have looked into it

    # The task, and the moving averages of its networks.
    device = accelerator.device
    task = make_task(config, learned, load_pictures(learned, config.data.size), device).to(device)
    networks = task.networks()
    averages = {name: copy.deepcopy(net).requires_grad_(False).eval() for name, net in networks.items() if config.ema}
    optimizer = torch.optim.AdamW(
        [parameter for net in networks.values() for parameter in net.parameters()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        fused=device.type == "cuda",
    )
    saved = {**networks, **{name + AVERAGE: net for name, net in averages.items()}}
    state = load_checkpoint(run.checkpoint, saved, optimizer) if run.checkpoint else State()
    wrapped, prepared_optimizer = accelerator.prepare(task, optimizer)
    if state.scaler and accelerator.scaler:
        accelerator.scaler.load_state_dict(state.scaler)

    # What the sample grids show: held-out pictures for the autoencoder, their captions for a text-conditional base.
    shown_rows = (kept_back + learned)[: config.samples.count]
    originals = load_pictures(shown_rows, config.data.size)
    shown: Any = [row.caption for row in shown_rows] if isinstance(task, LatentDiffusion) else originals

    if processes.first:
        run.begin(state.step)
        size = sum(parameter.numel() for net in networks.values() for parameter in net.parameters()) / 1e6
        say(f"{len(learned)} pictures, {config.batch_size * processes.count} a step; {size:.2f} M parameters learn")
        if state.step:
            say(f"resumed at step {state.step} from {run.checkpoint}")
        progress(state.step, config.steps)
    log = StepLog(run, accelerator)
    together = config.batch_size * processes.count
    step, rows_seen = state.step, state.rows_seen
    stream = positions(config.seed, len(learned), rows_seen)
    begun, out_of_time = time.monotonic(), False

    # The loop.
    while step < config.steps and not out_of_time:
        keys = processes.slice([next(stream) for _ in range(together)])
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
        _follow(averages, networks, config.ema, step)
        log.end_step(step, rate, grad_norm)
        if processes.first:
            progress(step, config.steps)
        if config.max_minutes is not None:
            minutes = torch.tensor((time.monotonic() - begun) / 60, device=device)
            out_of_time = bool(accelerator.reduce(minutes, "mean") >= config.max_minutes)
        last = step == config.steps or out_of_time
        intervals = {"log": config.log_every, "save": config.checkpoint_every, "sample": config.samples.every}
        now = due(step, last, intervals)
        if not now:
            continue

        # Log: before a checkpoint too, so that a resumed run finds every step that it does not make again.
        log.flush(together)

        # Save a checkpoint.
        if "save" in now:
            if processes.first:
                scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
                save_checkpoint(run.checkpoints, State(step, rows_seen, scaler), saved, optimizer)
                drop_old_checkpoints(run.checkpoints, config.keep_checkpoints)
            accelerator.wait_for_everyone()

        # Paint samples, of the averages where there are any.
        if "sample" in now and processes.first:
            made = task.sample({**networks, **averages}, shown, device)
            sheet = [list(originals[: len(made)]), made] if config.train == "vae" else _square(made)
            save_png(run.folder / "samples" / f"step-{step:06d}.png", grid(sheet))
        accelerator.wait_for_everyone()
        log.restart_clock()

    # Hand over.
    result = run.folder / ("vae" if config.train == "vae" else "pipeline")
    if processes.first:
        task.hand_over({**networks, **averages}, run.folder, device)
        if step < config.steps:
            say(f"stopped at step {step} of {config.steps} after {config.max_minutes:g} minutes; go on with --resume")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


def learning_rate(config: BaseConfig, step: int) -> float:
    """Of the step behind `step`: up from 0 in the warm-up, then constant or down a half cosine."""
    rate = config.lr * min(1, (step + 1) / max(1, config.warmup_steps))
    if config.lr_decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return rate


@torch.no_grad()
def _follow(averages: dict[str, Any], networks: dict[str, Any], decay: float, step: int) -> None:
    """The averages take a step towards the networks; early ones are larger, or the start would be remembered."""
    share = 1 - min(decay, (1 + step) / (10 + step))
    for name, average in averages.items():
        torch._foreach_lerp_(list(average.parameters()), list(networks[name].parameters()), share)
        for kept, new in zip(average.buffers(), networks[name].buffers(), strict=True):
            kept.copy_(new)


def _square(pictures: list[Any]) -> list[list[Any]]:
    """Rows of about as many as there are rows, the last filled with white."""
    side = math.ceil(len(pictures) ** 0.5)
    filled = pictures + [np.full_like(pictures[0], 255)] * (-len(pictures) % side)
    return [filled[start : start + side] for start in range(0, len(filled), side)]
