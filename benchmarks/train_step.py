"""The training step of a ControlNet, beside the way of diffusers' example scripts over the same networks.

    python benchmarks/train_step.py [--device cpu] [--shape sd15] [--size 256] [--batch 1] [--steps 5]
    python benchmarks/train_step.py --device cuda --shape sd15 --batch 32          # bf16 at 512 px, 30 steps, compiled
    python benchmarks/train_step.py --device cuda --shape sdxl --batch 4           # at 1024 px

The networks have the family's true shapes and random weights, which cost as much as trained ones; the pictures are
noise. Ours is what train_controlnet.py does: rows from its index, batches from the real cache on the disk (filled
before the clock starts, and the time of that told), accelerate, fused AdamW, losses left on the device. The reference
does in each step what the scripts do with their flags set well: it encodes the pictures anew (with sd15 the prompts
too; the SDXL script encodes those beforehand), draws noise and timesteps, steps AdamW as PyTorch makes it unless asked,
and reads the loss. Its pictures are decoded and its prompts tokenized beforehand. On a GPU both are laid out as
channels_last and ours is compiled (`--no-compile`); the peak of its memory stands beside each. One side is timed after
the other.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path

import cv2
import diffusers
import numpy as np
import torch
import transformers

from controlkit.config import build
from controlkit.data.rows import read_datasets
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.models.bases import Base, find_base
from controlkit.models.controlnets import begin_controlnet
from controlkit.models.map_hint import to_control
from controlkit.models.quiet import quiet_libraries
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, make_batches, rows_to_come, to_pixels
from controlkit.training.cache import cache_rows
from controlkit.training.config import TrainConfig
from controlkit.training.encoders import let_encoders_rest
from controlkit.training.launch import make_accelerator
from controlkit.training.objective import Models, control_loss
from controlkit.training.optimizers import make_optimizer
from controlkit.training.speed import choose_arithmetic, compiled, lay_out, precision

VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
BIG_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
SMALL_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_VAE = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 8}
# What is not named is diffusers' default, which is that of SD 1.x.
SHAPES = {
    "sd15": {"unet": {"cross_attention_dim": 768, "sample_size": 64}, "vae": VAE, "text_encoder": CLIP_L},
    "sdxl": {
        "unet": {
            **XL, "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20),
            "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048, "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 6 * 256 + 1280,
        },
        "vae": VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": {**BIG_G, "hidden_act": "gelu", "projection_dim": 1280},
    },
    # To see whether the script runs:
    "tiny": {
        "unet": {
            "cross_attention_dim": 32, "block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8, "sample_size": 8,
        },
        "vae": SMALL_VAE,
        "text_encoder": SMALL_TEXT,
    },
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class RandomBase(Base):
    """A base of those shapes, made where it is loaded."""

    shapes: dict = field(kw_only=True)

    @cached_property
    def index(self):
        return {"_class_name": f"StableDiffusion{'XL' if self.is_xl else ''}Pipeline"}

    @cached_property
    def unet(self):
        with torch.device("meta"):
            return dict(diffusers.UNet2DConditionModel(**self.shapes["unet"]).config)

    @cached_property
    def vae(self):
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        with torch.device("meta"):
            return dict(diffusers.AutoencoderKL(latent_channels=4, **blocks, **self.shapes["vae"]).config)

    @cached_property
    def scheduler(self):
        return SCHEDULER

    def load(self, component, **options):
        torch.manual_seed(0)
        if component.startswith("tokenizer"):
            return find_base("random-sd15").load("tokenizer")
        if component == "unet":
            model = diffusers.UNet2DConditionModel(**self.shapes["unet"])
        elif component == "vae":
            model = diffusers.AutoencoderKL.from_config(self.vae)
        else:
            kind = transformers.CLIPTextModelWithProjection if component.endswith("_2") else transformers.CLIPTextModel
            model = kind(transformers.CLIPTextConfig(**self.shapes[component]))
        return model.to(options["torch_dtype"])

    def tensors(self, component):
        """The copy that learns begins as any other would."""
        return self.load(component, torch_dtype=torch.float32).state_dict()


def draw_dataset(folder: Path, count: int, size: int) -> None:
    """Pictures of noise with canny maps, as `annotate` leaves them."""
    random = np.random.default_rng(0)
    (folder / "conditions/canny").mkdir(parents=True)
    lines = []
    for number in range(count):
        coarse = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
        name, control = f"{number}.png", f"conditions/canny/{number}.png.png"
        cv2.imwrite(str(folder / name), picture)
        cv2.imwrite(str(folder / control), cv2.Canny(picture, 50, 100))
        lines.append(json.dumps({"file_name": name, "text": f"picture {number}", "canny_file_name": control}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def ours(config, base, accelerator, models, data, own, steps):
    """The step of train_controlnet.py over its own batches."""
    optimizer = make_optimizer(config, list(own.parameters()))
    wrapped, prepared = accelerator.prepare(own, optimizer)
    models.controlnet, models.unet = compiled(config, wrapped), compiled(config, models.pipeline.unet)
    span = {"start": 0, "count": steps, "batch_size": config.batch_size, "processes": Processes()}
    begun = time.perf_counter()
    to_come = rows_to_come(data, **span)
    cache_rows(data, to_come, models, Processes(), dataset=config.data.path)
    let_encoders_rest(models.pipeline, accelerator.device)
    print(f"the cache took {(time.perf_counter() - begun) / len(to_come):.3f} s a picture")
    batches = iter(make_batches(data, **span, workers=config.data.workers, pin=accelerator.device.type == "cuda"))
    losses = []

    def step(number):
        batch = next(batches).to(accelerator.device)
        with accelerator.accumulate(wrapped):
            loss = control_loss(models, batch)
            accelerator.backward(loss)
            losses.append(loss.detach())
            accelerator.clip_grad_norm_(own.parameters(), config.max_grad_norm)
            prepared.step()
            prepared.zero_grad()

    return step


def reference(config, base, accelerator, models, data, own, steps):
    """A step as diffusers' example scripts do it."""
    pipeline, device, low = models.pipeline, accelerator.device, precision(config)
    optimizer = torch.optim.AdamW(own.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    scheduler = diffusers.DDPMScheduler.from_config(SCHEDULER)
    seen = [data.picture_and_maps(row) for row in data.rows]
    pixels = torch.stack([to_pixels(picture) for picture, _, _ in seen]).to(device)
    control = torch.stack([to_control(maps["canny"]) for _, maps, _ in seen]).to(device)
    tokens = pipeline.tokenizer(
        [row.caption for row in data.rows], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids.to(device)
    beforehand = {}
    if base.is_xl:
        with torch.no_grad():
            encoded = pipeline.encode_prompt(
                [row.caption for row in data.rows], device=device, do_classifier_free_guidance=False
            )
        beforehand = {"text": encoded[0], "pooled": encoded[2]}
        sizes = torch.tensor([sizes for _, _, sizes in seen]).to(device)
    for name in ("vae", "text_encoder"):
        getattr(pipeline, name).to(device)

    def step(number):
        numbers = [(number * config.batch_size + place) % len(data) for place in range(config.batch_size)]
        more = {}
        with torch.no_grad():
            latents = pipeline.vae.encode(pixels[numbers].to(low)).latent_dist.sample()
            latents = latents.float() * pipeline.vae.config.scaling_factor
            if base.is_xl:
                text = beforehand["text"][numbers]
                pooled = beforehand["pooled"][numbers]
                more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes[numbers]}
            else:
                text = pipeline.text_encoder(tokens[numbers], return_dict=False)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(numbers),), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(device.type, low) if low != torch.float32 else contextlib.nullcontext():
            down, middle = own(noisy, timesteps, text, control[numbers], return_dict=False, **more)
        predicted = pipeline.unet(
            noisy.to(low),
            timesteps,
            text,
            down_block_additional_residuals=[residual.float().to(low) for residual in down],
            mid_block_additional_residual=middle.float().to(low),
            return_dict=False,
            **more,
        )[0]
        loss = torch.nn.functional.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.detach().item()

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
    parser.add_argument("--shape", choices=SHAPES, default="sd15")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="[default: bf16 on a GPU, else fp32]")
    parser.add_argument("--size", type=int, help="[default: the family's own on a GPU, else 256]")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, help="[default: 30 on a GPU, else 5]")
    parser.add_argument("--workers", type=int, help="[default: 4 on a GPU, else 0]")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, on both sides")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="[default: on a GPU]")
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    if not on_gpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    with tempfile.TemporaryDirectory() as place:
        os.environ["CONTROLKIT_CACHE"] = place
        compare(options, on_gpu, Path(place))


def compare(options, on_gpu, place) -> None:
    quiet_libraries()
    base = RandomBase(options.shape, place, shapes=SHAPES[options.shape])
    size = options.size or (base.native_size if on_gpu else 256)
    steps = options.steps or (30 if on_gpu else 5)
    fast = on_gpu if options.compile is None else options.compile
    low = options.precision or ("bf16" if on_gpu else "fp32")
    warm = 3 if fast else 2  # compiles, makes the optimizer's state, settles in memory
    draw_dataset(place / "data", 2 * options.batch, size)
    workers = (4 if on_gpu else 0) if options.workers is None else options.workers
    config = build(
        TrainConfig,
        None,
        [
            f"data.path={place / 'data'}", f"data.resolution={size}", f"data.workers={workers}", "data.held_out=0",
            f"batch_size={options.batch}", f"mixed_precision={'no' if low == 'fp32' else low}",
            f"channels_last={str(on_gpu).lower()}", f"compile={str(fast).lower()}",
            f"gradient_checkpointing={str(options.checkpointing).lower()}",
        ],
    )  # fmt: skip
    choose_arithmetic(config)
    seconds, peaks = {}, {}
    for name, side in (("controlkit, cached", ours), ("as diffusers' example", reference)):
        accelerator = make_accelerator(config.mixed_precision)
        device = accelerator.device
        parts = load_parts(base, dtype=precision(config), device=device, locked=True)
        own = begin_controlnet(base, parts["unet"], None, 0).to(device, torch.float32)
        lay_out(config, own, parts["unet"])
        pipeline = control_pipeline(base, parts, [own], diffusers.DDPMScheduler.from_config(SCHEDULER))
        models = Models.of(base, pipeline, own, device)
        data = ControlRows(
            list(islice(read_datasets(config.data.path, "canny"), 2 * options.batch)),
            condition="canny",
            resolution=size,
            latent_shape=(4, size // base.vae_factor, size // base.vae_factor),
            timesteps=len(models.alpha_bar),
            prompt_dropout=config.prompt_dropout,
            seed=0,
        )
        step = side(config, base, accelerator, models, data, own, steps + warm)
        for number in range(warm):
            step(number)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds[name] = seconds_a_step(step, steps, on_gpu)
        peaks[name] = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else None
        learned = sum(parameter.numel() for parameter in own.parameters()) / 1e6
        del step, models, pipeline, parts, own, data, accelerator
        if on_gpu:
            torch.cuda.empty_cache()
    machine = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{machine} · torch {torch.__version__} · diffusers {diffusers.__version__}")
    more = ", ours compiled" if fast else ""
    print(f"{options.shape}, {size} px, batch {options.batch}, {low}{more}; a ControlNet of {learned:.1f} M parameters")
    for name, each in seconds.items():
        memory = f" {peaks[name]:8.2f} GB at most" if on_gpu else ""
        print(f"{name:22s} {options.batch / each:9.3f} images/s {each:8.2f} s a step{memory}")
    mine, theirs = seconds.values()
    print(f"ratio: {theirs / mine:.2f}")


if __name__ == "__main__":
    main()
