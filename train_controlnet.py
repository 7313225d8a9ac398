"""Train a ControlNet: the run as a table of contents.

    accelerate launch train_controlnet.py [--config NAME_OR_FILE] [key=value …] [--dry-run] [--resume]

`controlkit train` is the same run in one process. Settings: `controlkit/training/config.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from controlkit.config import to_dict
from controlkit.data.rows import find_datasets, held_out, read_dataset
from controlkit.errors import RequestError
from controlkit.files import atomic_write_text
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet, save_controlnet
from controlkit.models.webui import save_webui
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, make_batches
from controlkit.training.card import CURVES, model_card
from controlkit.training.checkpoints import State, drop_old_checkpoints, load_checkpoint, save_checkpoint
from controlkit.training.config import RESUMED_WITH, TrainConfig, check_against_base, resolution
from controlkit.training.curves import draw_curves
from controlkit.training.guard import Guard
from controlkit.training.handover import push_to_hub
from controlkit.training.launch import make_accelerator
from controlkit.training.objective import Models, control_loss
from controlkit.training.reports import make_reports
from controlkit.training.run import Run, StepLog, due
from controlkit.training.samples import prepare_samples, sample_grid, save_png
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
    base = find_base(config.base)
    check_against_base(config, base)
    rows = [
        row for folder in find_datasets(config.data.path, say) for row in read_dataset(folder, config.data.condition)
    ]
    kept_back = [row for row in rows if held_out(row.content, config.data.held_out)]
    learned = [row for row in rows if not held_out(row.content, config.data.held_out)]
    if not learned:
        raise RequestError(f"data.path={config.data.path}: all {len(rows)} rows are held out; lower data.held_out")
    processes = Processes.launched()
    accelerator = make_accelerator(config.mixed_precision, config.gradient_accumulation)
    run = Run(config, RESUMED_WITH, resume=resume)
    accelerator.wait_for_everyone()  # nobody writes into the folder before all have looked into it

    # Models: the base is locked, the ControlNet learns.
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
    parts = load_parts(base, dtype=dtype, device=accelerator.device, locked=True)
    own = make_controlnet(
        parts["unet"], vae_factor=base.vae_factor, latent_channels=base.latent_channels, seed=config.seed
    ).to(accelerator.device, torch.float32)
    optimizer = torch.optim.AdamW(
        own.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=accelerator.device.type == "cuda"
    )
    state = load_checkpoint(run.checkpoint, {"controlnet": own}, optimizer) if run.checkpoint else State()
    controlnet, prepared_optimizer = accelerator.prepare(own, optimizer)
    if state.scaler and accelerator.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    pipeline = control_pipeline(base, parts, [own], DDPMScheduler.from_config(base.scheduler))
    models = Models.of(base, pipeline, controlnet, accelerator.device)

    # Batches, from the row at which the run stands.
    size = resolution(config, base)
    data = ControlRows(
        learned,
        condition=config.data.condition,
        resolution=size,
        latent_shape=(base.latent_channels, size // base.vae_factor, size // base.vae_factor),
        timesteps=len(models.alpha_bar),
        prompt_dropout=config.prompt_dropout,
        seed=config.seed,
    )
    batches = make_batches(
        data,
        start=state.rows_seen,
        count=(config.steps - state.step) * config.gradient_accumulation,
        batch_size=config.batch_size,
        workers=config.data.workers,
        processes=processes,
        pin=accelerator.device.type == "cuda",
    )
    rows_a_step = config.batch_size * config.gradient_accumulation * processes.count

    if processes.first:
        run.begin(state.step)
        trainable = sum(parameter.numel() for parameter in own.parameters())
        say(f"{len(learned)} rows, {rows_a_step} a step; {trainable / 1e6:.1f} M parameters learn on {base.family}")
        if state.step:
            say(f"resumed at step {state.step} from {run.checkpoint}")
        run.reports = make_reports(config.report_to, run.folder, state.step, to_dict(config))
    tell = say if processes.first else (lambda text: None)

    # What tells whether it works: looks at held-out rows, and sample grids.
    looks_every = config.watch.interval(rows_a_step)
    watch = None
    if looks_every:
        watched = choose_watched(kept_back, learned, config.watch.rows, tell)
        watch = Watch(
            models, own, data, watched, batch_size=config.batch_size, processes=processes, accelerator=accelerator
        )
    maps = read_map_facts(data, learned, config.data.condition, processes)
    telemetry = Telemetry(run, config, watch, maps, tell, first=processes.first)
    shown, judge = prepare_samples(config, data, kept_back + learned, tell)

    log = StepLog(run, accelerator, Guard(**state.guard))
    step, rows_seen = state.step, state.rows_seen
    if processes.first:
        progress(step, config.steps)

    stopper = Stopper(accelerator, max_minutes=config.max_minutes, ask_every=config.log_every, say=tell)
    stopped = None

    # The loop.
    for batch in stopper.over(batches):
        batch = batch.to(accelerator.device)
        with accelerator.accumulate(controlnet):
            loss = control_loss(models, batch)
            accelerator.backward(loss)
            log.add(loss)
            rows_seen += config.batch_size * processes.count
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(controlnet.parameters(), config.max_grad_norm)
                lr = config.lr * min(1, (step + 1) / max(1, config.warmup_steps))
                for group in optimizer.param_groups:
                    group["lr"] = lr
            prepared_optimizer.step()
            prepared_optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue
        step += 1
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
        if "look" in now:
            telemetry.look(step)
        if "sample" in now:
            painted = sample_grid(models, own, shown, judge, config.samples, config.seed, processes)
            if painted is not None:
                sheet, score = painted
                save_png(run.folder / "samples" / f"step-{step:06d}.png", sheet)
                telemetry.fidelity(step, score)

        # Save a checkpoint.
        if "save" in now:
            if processes.first:
                scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
                now_at = State(step, rows_seen, scaler, asdict(log.guard), log.guard.calm)
                save_checkpoint(run.checkpoints, now_at, {"controlnet": own}, optimizer)
                drop_old_checkpoints(run.checkpoints, config.keep_checkpoints)
            accelerator.wait_for_everyone()
        log.restart_clock()
        if stopped:
            break

    # Hand over, or leave.
    if processes.first and stopped in (None, "time"):
        notes = {"condition": config.data.condition, "base": config.base, "step": step}
        save_controlnet(own, run.folder / "controlnet", notes)
        if config.save_webui:
            save_webui(own.state_dict(), own.config, run.folder / f"control_{config.data.condition}.safetensors", notes)
        samples = sorted((run.folder / "samples").glob("step-*.png"))
        metrics = run.metrics()
        if (curves := draw_curves(metrics)) is not None:
            save_png(run.folder / CURVES, curves)
        atomic_write_text(run.folder / "README.md", model_card(config, base, len(learned), metrics, samples))
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if config.push_to_hub and processes.first and stopped is None:  # when nobody waits for it
        say(f"uploaded to {push_to_hub(run.folder, config.push_to_hub)}")
    if stopped:
        leave(stopped, step, config.steps, config.max_minutes, tell)
    return run.folder


if __name__ == "__main__":
    from controlkit.cli.main import main

    sys.exit(main(["train", *sys.argv[1:]]))
