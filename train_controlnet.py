"""Train a ControlNet: the run as a table of contents.

    accelerate launch train_controlnet.py [--config NAME_OR_FILE] [key=value …] [--dry-run] [--resume]

`controlkit train` is the same run in one process. Settings: `controlkit/training/config.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from controlkit.config import to_dict
from controlkit.data.rows import held_out
from controlkit.errors import RequestError
from controlkit.files import atomic_write_text
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.models.bases import find_base
from controlkit.models.controlnets import ControlNet, begin_controlnet
from controlkit.models.formats.convert import save_webui
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, make_batches, rows_to_come
from controlkit.training.cache import cache_rows
from controlkit.training.card import CURVES, model_card
from controlkit.training.checkpoints import (
    State,
    drop_old_checkpoints,
    load_checkpoint,
    optimizer_state,
    save_checkpoint,
)
from controlkit.training.config import (
    RESUMED_WITH,
    TrainConfig,
    check_against_base,
    control_dropout,
    fresh_maps,
    read_rows,
    resolution,
)
from controlkit.training.curves import draw_curves
from controlkit.training.encoders import let_encoders_rest
from controlkit.training.guard import Guard
from controlkit.training.handover import push_to_hub
from controlkit.training.launch import make_sharing_accelerator
from controlkit.training.learned import Learned, save_result
from controlkit.training.objective import Models, control_loss
from controlkit.training.optimizers import learning_rate, make_optimizer
from controlkit.training.reports import make_reports
from controlkit.training.run import Run, StepLog, due
from controlkit.training.samples import prepare_samples, sample_grid, save_png
from controlkit.training.sharding import whole_tensor
from controlkit.training.speed import choose_arithmetic, compiled, lay_out, precision
from controlkit.training.stopping import Stopper, leave
from controlkit.training.telemetry import Telemetry, choose_watched, read_map_facts
from controlkit.training.watch import Watch


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train as the config says and return the run's folder. `say` and `progress` are called on the first process."""
    from diffusers import DDPMScheduler

    # Everything that can be refused is refused before a weight is loaded.
    base = find_base(config.base, prediction=config.base_prediction, tokenizer=config.base_tokenizer)
    for guess in base.guesses:
        say(guess)
    check_against_base(config, base)
    processes = Processes.launched()
    rows = read_rows(config, say, processes)
    kept_back = [row for row in rows if held_out(row.content, config.data.held_out)]
    learned = [row for row in rows if not held_out(row.content, config.data.held_out)]
    if not learned:
        raise RequestError(f"data.path={config.data.path}: all {len(rows)} rows are held out; lower data.held_out")
    choose_arithmetic(config)
    accelerator = make_sharing_accelerator(config)
    run = Run(config, RESUMED_WITH, resume=resume)
    accelerator.wait_for_everyone()  # nobody writes into the folder before all have looked into it

    # Models: the base is locked, the ControlNet learns; the base's decoder too, where the config unlocks it.
    parts = load_parts(base, dtype=precision(config), device=accelerator.device, locked=True)
    types = config.data.condition
    own = begin_controlnet(base, parts["unet"], config.controlnet, config.seed, len(types))
    own = own.to(accelerator.device, torch.float32)
    lay_out(config, own, parts["unet"])
    nets = Learned(config, own, parts["unet"])
    optimizer = make_optimizer(config, nets.parameters())
    state = load_checkpoint(run.checkpoint, nets.saved()) if run.checkpoint else State()
    wrapped, prepared_optimizer = nets.prepare(accelerator, optimizer)
    if run.checkpoint:
        nets.optimizer.take(optimizer_state(run.checkpoint))
    if state.scaler and accelerator.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    pipeline = control_pipeline(base, parts, [own], DDPMScheduler.from_config(base.scheduler))
    controlnet = compiled(config, wrapped["controlnet"])
    unet = compiled(config, wrapped.get("unet", parts["unet"]))
    models = Models.of(base, pipeline, controlnet, accelerator.device, config.objective, unet)

    # Batches, from the row at which the run stands.
    size = resolution(config, base)
    data = ControlRows(
        learned,
        condition=types,
        resolution=size,
        latent_shape=(base.latent_channels, size // base.vae_factor, size // base.vae_factor),
        timesteps=len(models.alpha_bar),
        prompt_dropout=config.prompt_dropout,
        control_dropout=control_dropout(config),
        objective=config.objective,
        seed=config.seed,
        buckets=config.data.buckets,
        flip=config.data.flip,
        fresh=fresh_maps(config),
    )
    rows_a_step = config.batch_size * config.gradient_accumulation * processes.count
    span: dict[str, Any] = {
        "start": state.rows_seen,
        "count": (config.steps - state.step) * config.gradient_accumulation,
        "batch_size": config.batch_size,
        "processes": processes,
    }
    if config.cache == "disk":
        to_come = rows_to_come(data, **span)
        made = cache_rows(data, to_come, models, processes, dataset=config.data.path, say=say)
        if processes.first:
            say("cache: " + ", ".join(f"{count} {kind}" for kind, count in made.items()) + " made, the rest found")
    batches = make_batches(
        data,
        **span,
        workers=config.data.workers,
        pin=accelerator.device.type == "cuda",
    )

    if processes.first:
        run.begin(state.step)
        trainable = sum(parameter.numel() for parameter in nets.parameters())
        shares = f", in shares on {processes.count} processes ({nets.shared_by})" if nets.shared_by else ""
        learn = f"{trainable / 1e6:.1f} M parameters learn on {base.family}{shares}"
        say(f"{len(learned)} rows, {rows_a_step} a step; {learn}")
        if state.step:
            say(f"resumed at step {state.step} from {run.checkpoint}")
        run.reports = make_reports(config.report_to, run.folder, state.step, to_dict(config))
    tell = say if processes.first else (lambda text: None)

    # What tells whether it works: looks at held-out rows, and sample grids.
    looks_every = config.watch.interval(rows_a_step, len(types))
    watch = None
    if looks_every:
        watched = choose_watched(kept_back, learned, config.watch.rows, tell)
        watch = Watch(
            models,
            nets.result(),
            data,
            watched,
            batch_size=config.batch_size,
            processes=processes,
            accelerator=accelerator,
        )
    maps = read_map_facts(data, learned, processes)
    telemetry = Telemetry(run, config, watch, maps, tell, first=processes.first)
    shown, judges = prepare_samples(config, data, kept_back + learned, tell)
    if config.cache == "disk":
        let_encoders_rest(pipeline, accelerator.device)

    log = StepLog(run, accelerator, Guard(**state.guard))
    step, rows_seen = state.step, state.rows_seen
    if processes.first:
        progress(step, config.steps)

    stopper = Stopper(accelerator, max_minutes=config.max_minutes, ask_every=config.log_every, say=tell)
    stopped = None

    # The loop.
    for batch in stopper.over(batches):
        batch = batch.to(accelerator.device)
        with accelerator.accumulate(*wrapped.values()):
            lr = learning_rate(config, step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = control_loss(models, batch)
            accelerator.backward(loss)
            log.add(loss)
            rows_seen += config.batch_size * processes.count
            if accelerator.sync_gradients:
                grad_norm = whole_tensor(accelerator.clip_grad_norm_(nets.parameters(), config.max_grad_norm))
            prepared_optimizer.step()
            prepared_optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        step += 1
        nets.follow(step)
        log.end_step(step, lr, grad_norm)
        if processes.first:
            progress(step, config.steps)
        finished = step == config.steps
        stopped = None if finished else stopper.reason(step)
        now = due(step, finished or stopped is not None, {"log": config.log_every, "save": config.checkpoint_every})
        now |= due(step, finished, {"look": looks_every, "sample": config.samples.every})
        if not now:
            continue

        # What is written for this step stands before its checkpoint, so that a resumed run finds all that it does not
        # make again.
        log.flush(rows_a_step)
        result = nets.result() if now & {"look", "sample"} else {}
        if "look" in now:
            telemetry.look(step, result)
        if "sample" in now:
            painted = sample_grid(models, result, shown, judges, config, processes)
            if painted is not None:
                sheet, scores = painted
                save_png(run.folder / "samples" / f"step-{step:06d}.png", sheet)
                telemetry.fidelity(step, scores)
            if config.cache == "disk":
                let_encoders_rest(pipeline, accelerator.device)
        del result  # a copy, where weights lie in shares

        # Save a checkpoint.
        if "save" in now:
            saved, moments = nets.saved(here=processes.first), nets.optimizer.give(here=processes.first)
            if processes.first:
                scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
                now_at = State(step, rows_seen, scaler, asdict(log.guard), log.guard.calm)
                save_checkpoint(run.checkpoints, now_at, saved, moments)
                drop_old_checkpoints(run.checkpoints, config.keep_checkpoints)
            del saved, moments
            processes.wait()
        log.restart_clock()
        if stopped:
            break

    # Hand over, or leave.
    result = nets.result() if stopped in (None, "time") else {}
    if processes.first and result:
        notes = {"condition": types[0] if len(types) == 1 else list(types), "base": config.base, "step": step}
        save_result(result, run.folder, notes)
        if config.save_webui:
            handed_over = ControlNet("controlnet", run.folder / "controlnet")
            save_webui(handed_over, run.folder / f"control_{types[0]}.safetensors")
        samples = sorted((run.folder / "samples").glob("step-*.png"))
        metrics = run.metrics()
        if (curves := draw_curves(metrics)) is not None:
            save_png(run.folder / CURVES, curves)
        atomic_write_text(run.folder / "README.md", model_card(config, base, len(learned), metrics, samples))
    processes.wait()
    accelerator.end_training()
    if config.push_to_hub and processes.first and stopped is None:  # when nobody waits for it
        say(f"uploaded to {push_to_hub(run.folder, config.push_to_hub)}")
    if stopped:
        leave(stopped, step, config.steps, config.max_minutes, tell)
    return run.folder


if __name__ == "__main__":
    from controlkit.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
