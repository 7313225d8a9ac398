"""What a base can be trained to do: the tasks of the loop in `training.loop`."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from controlkit.data.rows import load_pictures
from controlkit.diffusion.forward import q_sample
from controlkit.diffusion.losses import l_hybrid, min_snr_weight, per_item
from controlkit.diffusion.prediction import check_prediction, target
from controlkit.diffusion.schedules import from_scheduler_config
from controlkit.errors import RequestError
from controlkit.files import atomic_folder, atomic_write_text
from controlkit.generation.pixel_prompts import PixelPromptPipeline, tokenize
from controlkit.generation.unguided import LABELS, class_inputs, paint_pixels, paint_prompts, to_pictures
from controlkit.models.locate import NOTES
from controlkit.training.base_networks import (
    build_pixel_unet,
    build_prompt_unet,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_vae,
)
from controlkit.training.draws import generator, uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.training.base_config import BaseConfig

Keys = list[tuple[int, int]]  # (epoch, row number)
Sheet = list[list["NDArray[np.uint8]"]]


class Task(nn.Module):
    """Pictures are given as uint8 (N, S, S, 3); a batch names rows and epochs, from which every draw follows."""

    result: str

    def __init__(self, config: BaseConfig, rows: list[Row], pictures: NDArray[np.uint8], shown: list[Row]) -> None:
        super().__init__()
        self.config, self.rows, self.shown = config, rows, shown
        self.pictures = torch.from_numpy(pictures)

    def networks(self) -> dict[str, Any]:
        """What learns, by the name it is saved under."""
        raise NotImplementedError

    def pixels(self, keys: Keys, device: torch.device) -> torch.Tensor:
        """(B, 3, S, S) in [-1, 1]."""
        chosen = self.pictures[[number for _, number in keys]]
        return chosen.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def draw(self, keys: Keys, what: str, shape: tuple[int, ...]) -> torch.Tensor:
        """(B, *shape) from N(0, 1)."""
        return torch.stack([torch.randn(shape, generator=generator(*self._key(key), what)) for key in keys])

    def emptied(self, keys: Keys) -> torch.Tensor:
        """(B,) bool: whose prompt or class is dropped."""
        return torch.tensor([uniform(*self._key(key), "prompt") < self.config.dropout for key in keys])

    def _key(self, key: tuple[int, int]) -> tuple[object, ...]:
        epoch, number = key
        return self.config.seed, epoch, self.rows[number].content, self.rows[number].file_name


class Autoencoder(Task):
    """Pictures to latents and back: L1 + L2 of the pixels, and a little KL that keeps the latents near N(0, 1)."""

    result = "vae"

    def __init__(self, config: BaseConfig, rows: list[Row], pictures: NDArray[np.uint8], shown: list[Row]) -> None:
        super().__init__(config, rows, pictures, shown)
        self.vae = build_vae(config)

    def networks(self) -> dict[str, Any]:
        return {"vae": self.vae}

    def forward(self, keys: Keys, device: torch.device) -> torch.Tensor:
        pixels = self.pixels(keys, device)
        # One call of the whole network, so that DDP sees every parameter used.
        posterior = self.vae.encode(pixels).latent_dist
        noise = self.draw(keys, "vae", tuple(posterior.mean.shape[1:])).to(device)
        made = self.vae.decode(posterior.mean + posterior.std * noise).sample
        difference = made - pixels
        kl = self.config.vae.kl_weight * posterior.kl().mean()
        loss: torch.Tensor = difference.abs().mean() + difference.square().mean() + kl
        return loss

    @torch.no_grad()
    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet:
        """Pictures that it has not seen, and below them what comes back."""
        originals = load_pictures(self.shown, self.config.data.size)
        pixels = torch.from_numpy(originals).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        vae = networks["vae"]
        return [list(originals), to_pictures(vae.decode(vae.encode(pixels).latent_dist.mean).sample)]

    @torch.no_grad()
    def hand_over(self, networks: Mapping[str, Any], folder: Path, device: torch.device) -> None:
        """vae/ with the scaling factor that gives its latents variance 1, as Stable Diffusion's has."""
        vae = networks["vae"]
        drawn = []
        for start in range(0, min(len(self.pictures), 2048), 64):
            keys = [(0, number) for number in range(start, min(start + 64, len(self.pictures)))]
            posterior = vae.encode(self.pixels(keys, device)).latent_dist
            drawn.append(
                posterior.mean + posterior.std * self.draw(keys, "scale", tuple(posterior.mean.shape[1:])).to(device)
            )
        vae.register_to_config(scaling_factor=float(1 / torch.cat(drawn).std()))
        with atomic_folder(folder / "vae") as unfinished:
            vae.save_pretrained(unfinished, safe_serialization=True)


class Diffusion(Task):
    """What pixel and latent models share: the schedule and the loss."""

    unet: Any
    result = "pipeline"

    def __init__(
        self,
        config: BaseConfig,
        rows: list[Row],
        pictures: NDArray[np.uint8],
        shown: list[Row],
        scheduler: Any = None,
    ) -> None:
        """`scheduler` is that of a base which is there already."""
        super().__init__(config, rows, pictures, shown)
        self.scheduler = scheduler or build_scheduler(config)
        self.schedule = from_scheduler_config(self.scheduler)
        self.prediction = self.scheduler.config.prediction_type
        check_prediction(self.prediction, self.schedule)

    def timesteps(self, keys: Keys) -> torch.Tensor:
        steps = self.schedule.num_steps
        return torch.stack([torch.randint(steps, (), generator=generator(*self._key(key), "timestep")) for key in keys])

    def loss(self, output: torch.Tensor, x_0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        config = self.config
        if config.loss == "hybrid":
            # 256 levels: the last step is judged as the picture of 8 bits that it makes.
            losses = l_hybrid(output.float(), x_0, eps, t, self.schedule, prediction_type=self.prediction, levels=256)
            return losses.mean()
        wanted = target(self.prediction, x_0, eps, self.schedule.alpha_bar[t.cpu()])
        losses = per_item(config.loss, output.float(), wanted)
        if config.snr_gamma is not None:
            weights = min_snr_weight(self.prediction, self.schedule.snr[t.cpu()], config.snr_gamma)
            losses = losses * weights.to(losses)
        return losses.mean()


class PixelDiffusion(Diffusion):
    """DDPM and IDDPM: unconditional or by class."""

    def __init__(self, config: BaseConfig, rows: list[Row], pictures: NDArray[np.uint8], shown: list[Row]) -> None:
        super().__init__(config, rows, pictures, shown)
        self.classes = sorted({row.label for row in rows if row.label is not None})
        self.unet = build_pixel_unet(config, len(self.classes))
        numbers = {name: number for number, name in enumerate(self.classes)}
        self.labels = torch.tensor([numbers[row.label] for row in rows if row.label is not None])

    def networks(self) -> dict[str, Any]:
        return {"unet": self.unet}

    def forward(self, keys: Keys, device: torch.device) -> torch.Tensor:
        x_0 = self.pixels(keys, device)
        eps = self.draw(keys, "noise", tuple(x_0.shape[1:])).to(device)
        t = self.timesteps(keys).to(device)
        x_t = q_sample(x_0, eps, self.schedule.alpha_bar[t.cpu()])
        labels = None
        if self.classes:
            labels = self.labels[[number for _, number in keys]]
            labels = labels.masked_fill(self.emptied(keys), len(self.classes)).to(device)
        return self.loss(self.unet(x_t, t, class_labels=labels).sample, x_0, eps, t)

    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet:
        samples = self.config.samples
        given = empty = None
        if self.classes:
            labels = [number % len(self.classes) for number in range(samples.count)]
            given, empty = class_inputs(networks["unet"], labels)
        made = paint_pixels(
            networks["unet"],
            self.scheduler.config,
            seeds=[self.config.seed + number for number in range(samples.count)],
            sampler=samples.sampler,
            steps=samples.steps,
            given=given,
            empty=empty,
            cfg=samples.cfg if self.classes else 1.0,
        )
        return about_square(made)

    def hand_over(self, networks: Mapping[str, Any], folder: Path, device: torch.device) -> None:
        """pipeline/ for diffusers' DDPMPipeline; the classes' names lie beside it."""
        from diffusers import DDPMPipeline

        with atomic_folder(folder / "pipeline") as unfinished:
            DDPMPipeline(unet=networks["unet"], scheduler=self.scheduler).save_pretrained(unfinished)
            if self.classes:
                atomic_write_text(unfinished / LABELS, json.dumps(self.classes) + "\n")


class PromptDiffusion(Diffusion):
    """A UNet that reads a text encoder, which may learn along; in pixels.

    What it reads are captions, the names of classes, or always the empty prompt: one layout for all of them.
    """

    def __init__(
        self,
        config: BaseConfig,
        rows: list[Row],
        pictures: NDArray[np.uint8],
        shown: list[Row],
        channels: int = 3,
        factor: int = 1,
    ) -> None:
        super().__init__(config, rows, pictures, shown)
        whole = factor * 2 ** (len(config.unet.widths) - 1)
        if config.data.size % whole:
            raise RequestError(
                f"data.size={config.data.size} is not a multiple of {whole}, the VAE's and UNet's together"
            )
        captions = prompts_of(config, rows)
        self.tokenizer = build_tokenizer(config, captions)
        self.text_encoder = build_text_encoder(config, self.tokenizer).requires_grad_(config.text.train)
        self.unet = build_prompt_unet(config, channels, config.data.size // factor)
        self.tokens, self.empty = tokenize(self.tokenizer, captions), tokenize(self.tokenizer, [""])

    def networks(self) -> dict[str, Any]:
        return {"unet": self.unet, **({"text_encoder": self.text_encoder} if self.config.text.train else {})}

    def forward(self, keys: Keys, device: torch.device) -> torch.Tensor:
        x_0 = self._x_0(keys, device)
        eps = self.draw(keys, "noise", tuple(x_0.shape[1:])).to(device)
        t = self.timesteps(keys).to(device)
        x_t = q_sample(x_0, eps, self.schedule.alpha_bar[t.cpu()])
        tokens = self.tokens[[number for _, number in keys]]
        tokens = torch.where(self.emptied(keys)[:, None], self.empty, tokens).to(device)
        text = self.text_encoder(tokens).last_hidden_state
        return self.loss(self.unet(x_t, t, encoder_hidden_states=text).sample, x_0, eps, t)

    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet:
        cfg = 1.0 if self.config.condition == "none" else self.config.samples.cfg
        return prompt_sheet(self, self._paint, self._pipeline(networks), cfg)

    def hand_over(self, networks: Mapping[str, Any], folder: Path, device: torch.device) -> None:
        save_pipeline(self._pipeline(networks), folder, self.config)

    def _x_0(self, keys: Keys, device: torch.device) -> torch.Tensor:
        return self.pixels(keys, device)

    def _pipeline(self, networks: Mapping[str, Any]) -> Any:
        return PixelPromptPipeline(
            unet=networks["unet"],
            text_encoder=networks.get("text_encoder", self.text_encoder),
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
        )

    def _paint(self, pipeline: Any, prompts: list[str], **how: Any) -> list[NDArray[np.uint8]]:
        made: list[NDArray[np.uint8]] = pipeline(prompts, **how)
        return made


class LatentDiffusion(PromptDiffusion):
    """Stable Diffusion: the same in the latents of an autoencoder."""

    def __init__(
        self,
        config: BaseConfig,
        rows: list[Row],
        pictures: NDArray[np.uint8],
        shown: list[Row],
        device: torch.device,
    ) -> None:
        vae = _load_vae(config).to(device)
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        super().__init__(config, rows, pictures, shown, vae.config.latent_channels, factor)
        self._vae = [vae]  # in a list: it does not learn, and is no submodule
        self.mean, self.std = encode_all(self, vae, device)

    def _x_0(self, keys: Keys, device: torch.device) -> torch.Tensor:
        numbers = [number for _, number in keys]
        noise = self.draw(keys, "vae", tuple(self.mean.shape[1:]))
        return (self.mean[numbers] + self.std[numbers] * noise).to(device)

    def _pipeline(self, networks: Mapping[str, Any]) -> Any:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=self._vae[0],
            text_encoder=networks.get("text_encoder", self.text_encoder),
            tokenizer=self.tokenizer,
            unet=networks["unet"],
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def _paint(self, pipeline: Any, prompts: list[str], **how: Any) -> list[NDArray[np.uint8]]:
        return paint_prompts(pipeline, prompts, **how)


def prompts_of(config: BaseConfig, rows: list[Row]) -> list[str]:
    """What a network that reads prompts is given with these rows."""
    if config.condition == "none":
        return [""] * len(rows)
    prompts = [row.caption if config.condition == "text" else row.label or "" for row in rows]
    if config.condition == "text" and not any(prompts):
        raise RequestError(f"data.path={config.data.path}: no row has a caption; condition=text needs them")
    return prompts


@torch.no_grad()
def encode_all(task: Task, vae: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the latents of a task's pictures, once: the autoencoder does not change."""
    means, stds = [], []
    for start in range(0, len(task.pictures), 64):
        keys = [(0, number) for number in range(start, min(start + 64, len(task.pictures)))]
        posterior = vae.encode(task.pixels(keys, device)).latent_dist
        means.append(posterior.mean.cpu() * vae.config.scaling_factor)
        stds.append(posterior.std.cpu() * vae.config.scaling_factor)
    return torch.cat(means), torch.cat(stds)


def make_task(
    config: BaseConfig, rows: list[Row], shown: list[Row], device: torch.device
) -> Autoencoder | PixelDiffusion | PromptDiffusion:
    """The task that the config asks for, its networks initialised from the seed; its sheets are about `shown`."""
    pictures = load_pictures(rows, config.data.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.train == "vae":
            return Autoencoder(config, rows, pictures, shown)
        if config.vae.path is None:
            by = PromptDiffusion if config.condition == "text" else PixelDiffusion
            return by(config, rows, pictures, shown)
        return LatentDiffusion(config, rows, pictures, shown, device)


def prompt_sheet(task: Task, paint: Callable[..., list[NDArray[np.uint8]]], pipeline: Any, cfg: float) -> Sheet:
    """What the pipeline paints for the prompts of the rows that are shown."""
    config = task.config
    made = paint(
        pipeline,
        prompts_of(config, task.shown),
        seeds=[config.seed + number for number in range(len(task.shown))],
        sampler=config.samples.sampler,
        steps=config.samples.steps,
        cfg=cfg,
    )
    return about_square(made)


def save_pipeline(pipeline: Any, folder: Path, config: BaseConfig) -> None:
    """A Stable Diffusion in `folder`/pipeline. One with prompts says with which guidance its maker looked at it."""
    with atomic_folder(folder / "pipeline") as unfinished:
        pipeline.save_pretrained(unfinished)
        if config.condition == "text":
            notes = {"cfg": config.samples.cfg}
            (unfinished / NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")


def about_square(pictures: list[NDArray[np.uint8]]) -> Sheet:
    """Rows of about as many as there are rows, the last filled with white."""
    side = math.ceil(len(pictures) ** 0.5)
    filled = pictures + [np.full_like(pictures[0], 255)] * (-len(pictures) % side)
    return [filled[start : start + side] for start in range(0, len(filled), side)]


def _load_vae(config: BaseConfig) -> Any:
    from diffusers import AutoencoderKL

    try:
        vae = AutoencoderKL.from_pretrained(config.vae.path, local_files_only=True)
    except (OSError, ValueError):
        raise RequestError(
            f"vae.path={config.vae.path}: no autoencoder in diffusers' layout; make one with train=vae"
        ) from None
    return vae.requires_grad_(False).eval()
