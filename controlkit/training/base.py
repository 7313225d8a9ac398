"""The training of a base: the autoencoder, DDPM and IDDPM in pixels, Stable Diffusion, or one that learns further."""

from __future__ import annotations

from typing import TYPE_CHECKING

from controlkit.data.rows import held_out, read_datasets
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.models.bases import find_base
from controlkit.training.base_config import RESUMED_WITH, BaseConfig
from controlkit.training.base_further import check_base, make_further
from controlkit.training.base_networks import build_scheduler
from controlkit.training.base_tasks import make_task
from controlkit.training.loop import train_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def train_base(
    config: BaseConfig,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train as the config says and return what can be loaded: `RUN/pipeline`, or `RUN/vae`."""
    # Everything that can be refused is refused before a network is built.
    base = find_base(config.base) if config.base else None
    if base:
        check_base(config, base)
        for guess in base.guesses:
            say(guess)
    if config.train == "unet" and config.samples.every:
        scheduler = base.scheduler if base else build_scheduler(config)
        make_sampler(config.samples.sampler, scheduler, steps=config.samples.steps)
    rows = read_datasets(config.data.path, label=config.data.label, say=say)
    kept_back = [row for row in rows if held_out(row.content, config.data.held_out)]
    learned = [row for row in rows if not held_out(row.content, config.data.held_out)]
    if not learned:
        raise RequestError(f"data.path={config.data.path}: all {len(rows)} rows are held out; lower data.held_out")
    shown = (kept_back + learned)[: config.samples.count]
    return train_task(
        config,
        lambda device: (
            make_further(config, base, learned, shown, device) if base else make_task(config, learned, shown, device)
        ),
        len(learned),
        resumed_with=RESUMED_WITH,
        sheet_every=config.samples.every,
        resume=resume,
        say=say,
        progress=progress,
    )
