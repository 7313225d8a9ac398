"""The training step of a ControlNet, beside the way of diffusers' example script over the same networks.

    python benchmarks/train_step.py [--device cpu] [--precision fp32] [--size 256] [--batch 1] [--steps 3]
    python benchmarks/train_step.py --device cuda --precision bf16 --size 512 --batch 32 --steps 30 --fast

The networks have Stable Diffusion 1.5's shapes and random weights, which cost as much as trained ones. The reference
does in each step what the script does with its flags set well: it encodes picture and text anew, draws noise and
timesteps, joins the residuals, steps AdamW as PyTorch makes it unless asked, and reads the loss. Its pictures are
decoded and its prompts tokenized beforehand, so nothing of reading files is counted. Ours begins from encoded
pictures and texts, as the cache gives them, draws every number from its row's own generator, and leaves the loss on
the device. `--fast` adds channels_last to both and torch.compile to ours. One side is timed after the other, so that
each has the memory to itself.
"""

import argparse
import contextlib
import platform
import statistics
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import torch
import transformers

from controlkit.diffusion.schedules import from_scheduler_config
from controlkit.models.controlnets import make_controlnet
from controlkit.models.quiet import quiet_libraries
from controlkit.training.batches import Batch
from controlkit.training.config import TrainConfig
from controlkit.training.noise import draw_noise
from controlkit.training.objective import Models, row_losses
from controlkit.training.optimizers import make_optimizer
from controlkit.training.speed import choose_arithmetic, compiled, lay_out

SCHEDULER = {"_class_name": "DDPMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPES = {
    "sd15": {
        "unet": {"cross_attention_dim": 768, "sample_size": 64},  # the rest are diffusers' defaults, which are SD's
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    },
    "tiny": {  # to see whether the script runs
        "unet": {"cross_attention_dim": 32, "block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8},
        "vae": {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 8},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    },
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_networks(shapes, device, dtype):
    """UNet, VAE and text encoder, locked; the ControlNet in float32."""
    quiet_libraries()
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**shapes["unet"])
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        **shapes["vae"],
    )
    text_encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(**shapes["text"]))
    locked = [part.to(device, dtype).eval().requires_grad_(False) for part in (unet, vae, text_encoder)]
    controlnet = make_controlnet(unet, vae_factor=8, latent_channels=4, seed=0).to(device, torch.float32)
    return *locked, controlnet


class Rows:
    """Rows of a dataset, decoded; and encoded, as the cache holds them: what `ours` reads of them is `cached`."""

    def __init__(self, count, size, vae, text_encoder, device, dtype):
        random = torch.Generator().manual_seed(1)
        self.count, self.latent_shape = count, (4, size // 8, size // 8)
        self.pixels = (torch.rand(count, 3, size, size, generator=random) * 2 - 1).to(device)
        self.control = (torch.rand(count, 3, size, size, generator=random) > 0.9).float().to(device)
        self.tokens = torch.randint(text_encoder.config.vocab_size - 2, (count, 77), generator=random).to(device)
        with torch.no_grad():
            self.texts = text_encoder(self.tokens)[0]
            posteriors = [vae.encode(picture[None].to(dtype)).latent_dist for picture in self.pixels]
        self.mean = torch.cat([each.mean for each in posteriors]).float().cpu()
        self.std = torch.cat([each.std for each in posteriors]).float().cpu()
        self.scale = vae.config.scaling_factor

    def numbers(self, step, batch):
        return [(step * batch + place) % self.count for place in range(batch)]

    def cached(self, config, step, device):
        """A batch and what the cache gives beside it: latents and texts."""
        numbers = self.numbers(step, config.batch_size)
        draws = [
            draw_noise(config.objective, (config.seed, step, number), self.latent_shape, 1000) for number in numbers
        ]
        drawn = {key: torch.stack([draw[key] for draw in draws]) for key in draws[0]}
        x_0 = (self.mean[numbers] + self.std[numbers] * drawn["vae_noise"]) * self.scale
        nothing = torch.empty(0)
        batch = Batch(nothing, self.control[numbers], [], nothing, **drawn, sizes=nothing)
        return batch.to(device), x_0.to(device), {"encoder_hidden_states": self.texts[numbers]}


def ours(config, networks, rows, device, autocast):
    """The step of train_controlnet.py, from the cache on."""
    unet, _, _, controlnet = networks
    lay_out(config, unet, controlnet)
    choose_arithmetic(config)
    optimizer = make_optimizer(config, list(controlnet.parameters()))
    called = compiled(config, controlnet), compiled(config, unet)

    def under_autocast(*arguments, **named):
        with autocast():
            return called[0](*arguments, **named)

    models = Models(
        base=SimpleNamespace(prediction_type="epsilon"),
        pipeline=SimpleNamespace(unet=unet),
        controlnet=under_autocast,
        unet=called[1],
        scheduler=SCHEDULER,
        alpha_bar=from_scheduler_config(SCHEDULER).alpha_bar.float().to(device),
    )
    losses = []

    def step(number):
        batch, x_0, text = rows.cached(config, number, device)
        loss = row_losses(models, batch, x_0, text).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())

    return step


def reference(config, networks, rows, device, autocast):
    """A step as diffusers' example script does it."""
    unet, vae, text_encoder, controlnet = networks
    if config.channels_last:
        unet.to(memory_format=torch.channels_last)
        controlnet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scheduler = diffusers.DDPMScheduler.from_config(SCHEDULER)
    losses = []

    def step(number):
        numbers = rows.numbers(number, config.batch_size)
        with torch.no_grad():
            latents = vae.encode(rows.pixels[numbers].to(vae.dtype)).latent_dist.sample() * rows.scale
            text = text_encoder(rows.tokens[numbers], return_dict=False)[0]
        latents = latents.float()
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(numbers),), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with autocast():
            down, middle = controlnet(noisy, timesteps, text, rows.control[numbers], return_dict=False)
        predicted = unet(
            noisy.to(unet.dtype),
            timesteps,
            text,
            down_block_additional_residuals=[residual.float().to(unet.dtype) for residual in down],
            mid_block_additional_residual=middle.float().to(unet.dtype),
            return_dict=False,
        )[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(controlnet.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach().item())

    return step


def seconds_a_step(step, steps, on_gpu) -> float:
    """On a CPU the median; on a GPU all of them at once, since a step need not wait for the one before it."""
    if on_gpu:
        torch.cuda.synchronize()
    times = [time.perf_counter()]
    for number in range(steps):
        step(number)
        times.append(time.perf_counter())
    if on_gpu:
        torch.cuda.synchronize()
        return (time.perf_counter() - times[0]) / steps
    return statistics.median(later - earlier for earlier, later in pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--shapes", choices=SHAPES, default="sd15")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--fast", action="store_true", help="channels_last and torch.compile")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), DTYPES[options.precision]
    config = replace(
        TrainConfig(), batch_size=options.batch, channels_last=options.fast, compile=options.fast, max_grad_norm=1.0
    )
    low = dtype != torch.float32

    def autocast():
        return torch.autocast(device.type, dtype) if low else contextlib.nullcontext()

    networks = build_networks(SHAPES[options.shapes], device, dtype)
    rows = Rows(2 * options.batch, options.size, networks[1], networks[2], device, dtype)
    on_gpu = device.type == "cuda"
    seconds, peaks = {}, {}
    for name, side in (("controlkit, cached", ours), ("as diffusers' example", reference)):
        step = side(config, networks, rows, device, autocast)
        for number in range(3 if options.fast else 1):  # warms up, compiles, makes the optimizer's state
            step(number)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds[name] = seconds_a_step(step, options.steps, on_gpu)
        peaks[name] = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        del step
        if on_gpu:
            torch.cuda.empty_cache()
    machine = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{machine} · torch {torch.__version__} · diffusers {diffusers.__version__}")
    size = sum(parameter.numel() for parameter in networks[3].parameters()) / 1e6
    fast = ", channels_last, ours compiled" if options.fast else ""
    print(
        f"{options.size} px, batch {options.batch}, {options.precision}{fast}; a ControlNet of {size:.1f} M parameters"
    )
    for name, each in seconds.items():
        memory = f" {peaks[name]:8.2f} GB at most" if on_gpu else ""
        print(f"{name:22s} {options.batch / each:9.3f} images/s {each:8.2f} s a step{memory}")
    mine, theirs = seconds.values()
    print(f"ratio: {theirs / mine:.2f}")


if __name__ == "__main__":
    main()
