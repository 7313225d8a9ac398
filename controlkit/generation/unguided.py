"""Pictures of a base alone, without control: from pixels (DDPM, IDDPM, by class) or from prompts (Stable Diffusion)."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.diffusion.guidance import guide
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError, known

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from controlkit.generation.pixel_repaint import Known

LABELS = "labels.json"
"""Beside a class-conditional pipeline: the names of its classes; the number behind the last is "no class"."""


def paint_pixels(
    unet: Any,
    scheduler_config: Mapping[str, Any],
    *,
    seeds: list[int],
    sampler: str,
    steps: int,
    eta: float = 0.0,
    given: Mapping[str, torch.Tensor] | None = None,
    empty: Mapping[str, torch.Tensor] | None = None,
    cfg: float = 1.0,
    known: Known | None = None,
) -> list[NDArray[np.uint8]]:
    """One picture a seed, together. "ddpm" walks a respaced schedule by its own variance; any other sampler is
    diffusers', which takes the mean of a network that learns its variance.

    `given` is what the network takes beside picture and time (a class, a prompt), `empty` the same for "nothing". Where
    a part of the pictures is `known`, the rest is painted by RePaint.
    """
    import torch

    from controlkit.diffusion import ddpm
    from controlkit.diffusion.respacing import timestep_grid
    from controlkit.diffusion.schedules import from_scheduler_config

    grid = {"timestep_spacing": "linspace"} if known else {}  # all of the schedule, as the paper walks it
    scheduler = make_sampler(sampler, {**scheduler_config, **grid}, steps=steps, eta=eta)
    device, side = unet.device, unet.config.sample_size
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.stack([torch.randn((3, side, side), generator=each) for each in generators]).to(device)
    learned = unet.config.out_channels == 6

    @torch.no_grad()
    def model(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = unet(x_t, t, **(given or {})).sample
        if empty is not None and cfg != 1:
            without = unet(x_t, t, **empty).sample
            # The variance is the conditional one's: guidance is about the mean.
            output = torch.cat([guide(without[:, :3], output[:, :3], cfg), output[:, 3:]], dim=1)
        return output

    if sampler == "ddpm" and known is None:
        schedule = from_scheduler_config(scheduler_config)
        x = ddpm.sample(
            model,
            x,
            schedule,
            tau=timestep_grid(schedule.num_steps, steps, "linspace" if steps > 1 else "trailing"),
            prediction_type=scheduler_config["prediction_type"],
            variance=scheduler_config.get("variance_type", "fixed_small"),
            clip=1.0,
            generator=generators[0],
        )
    else:
        if known is not None:
            scheduler = known.walk_with(scheduler)
        scheduler.set_timesteps(steps, device=device)
        # Samplers that draw noise take a generator; without one they would draw from wherever the process stands.
        known_to_step = inspect.signature(scheduler.step).parameters
        extra: dict[str, Any] = {"generator": generators[0]} if "generator" in known_to_step else {}
        if eta:
            extra["eta"] = eta
        x = x * scheduler.init_noise_sigma if known is None else scheduler.begin(x)
        for t in scheduler.timesteps:
            output = model(scheduler.scale_model_input(x, t), t.expand(len(x)))
            mean = output[:, :3] if learned and sampler != "ddpm" else output  # which takes the variance too
            x = scheduler.step(mean, t, x, **extra).prev_sample
    return to_pictures(x)


def to_pictures(pixels: torch.Tensor) -> list[NDArray[np.uint8]]:
    """(B, 3, H, W) in [-1, 1] -> pictures, uint8 (H, W, 3)."""
    scaled = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return list(scaled.permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8))


def paint_prompts(
    pipeline: Any,
    prompts: list[str],
    *,
    seeds: list[int],
    sampler: str,
    steps: int,
    eta: float = 0.0,
    cfg: float,
    together: int = 1,
) -> list[NDArray[np.uint8]]:
    """One picture a prompt, by diffusers' StableDiffusionPipeline. Each has its own noise; computed `together`, it ends
    within rounding of what it is alone."""
    import torch

    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_sampler(sampler, pipeline.scheduler.config, steps=steps, eta=eta)
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    made = []
    for start in range(0, len(prompts), together):
        images = pipeline(
            prompts[start : start + together],
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=cfg,
            eta=eta,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + together]],
            output_type="np",
        ).images
        made += list((images * 255).round().astype(np.uint8))
    return made


def load_painter(
    folder: Path,
    *,
    class_name: str | None,
    prompt: str | None,
    cfg: float,
    device: str | None,
    known: Known | None = None,
) -> Callable[..., list[NDArray[np.uint8]]]:
    """A function (seeds, sampler, steps, eta) -> pictures for the pipeline in that folder, of either kind; with a model
    of pixels also where a part of the pictures is `known`."""
    from controlkit.models.devices import choose_device
    from controlkit.models.locate import read_json
    from controlkit.models.quiet import quiet_libraries

    kind = read_json(folder / "model_index.json").get("_class_name")
    if kind not in ("DDPMPipeline", "StableDiffusionPipeline", "PixelPromptPipeline"):
        raise RequestError(
            f"base {str(folder)!r} is a {kind}; expected a DDPMPipeline, PixelPromptPipeline or StableDiffusionPipeline"
        )
    if kind != "DDPMPipeline" and known is not None:
        raise RequestError(f"--mask: base {str(folder)!r} reads text; paint with controlkit generate --image --mask")
    if kind == "DDPMPipeline" and prompt is not None:
        raise RequestError(f"--prompt: base {str(folder)!r} reads no text; leave it out")
    if kind != "DDPMPipeline" and class_name is not None:
        raise RequestError(f"--class: base {str(folder)!r} knows no classes, it reads --prompt")
    number = None if class_name is None else class_number(folder, class_name)
    if kind == "StableDiffusionPipeline":
        stable = load_prompt_pipeline(folder, device)
        return lambda *, seeds, **how: paint_prompts(stable, [prompt or ""] * len(seeds), seeds=seeds, cfg=cfg, **how)
    quiet_libraries()
    if kind == "PixelPromptPipeline":
        from controlkit.generation.pixel_prompts import PixelPromptPipeline

        reads = PixelPromptPipeline.from_pretrained(folder, local_files_only=True).to(choose_device(device))
        return lambda *, seeds, **how: reads([prompt or ""] * len(seeds), seeds=seeds, cfg=cfg, **how)

    from diffusers import DDPMPipeline

    pixels = DDPMPipeline.from_pretrained(folder, local_files_only=True).to(choose_device(device))
    classes = pixels.unet.config.num_class_embeds
    if classes and number is None:
        number = classes - 1  # "no class"

    def paint(*, seeds: list[int], **how: Any) -> list[NDArray[np.uint8]]:
        given, empty = (None, None) if number is None else class_inputs(pixels.unet, [number] * len(seeds))
        weight = 1.0 if class_name is None else cfg
        return paint_pixels(
            pixels.unet, pixels.scheduler.config, seeds=seeds, given=given, empty=empty, cfg=weight, known=known, **how
        )

    return paint


def load_prompt_pipeline(folder: Path, device: str | None) -> Any:
    """diffusers' StableDiffusionPipeline in that folder, on that device."""
    from controlkit.models.devices import choose_device
    from controlkit.models.quiet import quiet_libraries

    quiet_libraries()
    from diffusers import StableDiffusionPipeline

    where = choose_device(device)
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True).to(where)


def class_inputs(unet: Any, labels: list[int]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """`given` and `empty` of `paint_pixels` for classes by number."""
    import torch

    given = torch.tensor(labels, device=unet.device)
    return {"class_labels": given}, {"class_labels": torch.full_like(given, unet.config.num_class_embeds - 1)}


def class_number(folder: Path, name: str) -> int:
    """The number of a class by its name, or by the number itself."""
    try:
        classes: list[str] = json.loads((folder / LABELS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"--class {name}: base {str(folder)!r} has no classes") from None
    if name in classes:
        return classes.index(name)
    if name.isdigit() and int(name) < len(classes):
        return int(name)
    raise RequestError(f"unknown class {name!r}: {known(name, classes)}")
