"""The training step of `controlkit base train`, beside a plain diffusers loop over the same network.

    python benchmarks/base_train.py [--device cpu] [--steps 12] [--batch 32] [--size 32]

The reference does what diffusers' unconditional example does in a step: pictures from memory, global random numbers,
`add_noise`, MSE, AdamW, a moving average by EMAModel. Ours draws every number from its row's own generator and
averages the weights too. Steps of both are interleaved; the median of each is compared.
"""

import argparse
import copy
import platform
import statistics
import time
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch
from diffusers.training_utils import EMAModel

from controlkit.config import build
from controlkit.data.rows import load_pictures, read_dataset
from controlkit.toybox.make import make
from controlkit.training.base_config import BaseConfig
from controlkit.training.base_tasks import make_task
from controlkit.training.draws import positions
from controlkit.training.loop import follow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    options = parser.parse_args()
    device = torch.device(options.device)
    config = build(BaseConfig, None, [f"data.size={options.size}", f"batch_size={options.batch}"])
    with TemporaryDirectory() as folder:
        make(Path(folder), "circles", count=256, size=options.size)
        rows = read_dataset(Path(folder))
        pictures = load_pictures(rows, options.size)
        task = make_task(config, rows, rows[:1], device).to(device)

    average = {"unet": copy.deepcopy(task.unet)}
    optimizer = torch.optim.AdamW(task.parameters(), lr=config.lr, fused=device.type == "cuda")
    stream = positions(0, len(rows), 0)
    step_number = 0

    def ours() -> None:
        nonlocal step_number
        step_number += 1
        task(list(islice(stream, options.batch)), device).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        follow(average, {"unet": task.unet}, config.ema, step_number)

    network = copy.deepcopy(task.unet)
    their_average = EMAModel(network.parameters(), decay=config.ema)
    their_optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr, fused=device.type == "cuda")
    scheduler = diffusers.DDPMScheduler()
    stored = torch.from_numpy(pictures).permute(0, 3, 1, 2)

    def reference() -> None:
        pixels = stored[torch.randint(len(stored), (options.batch,))].to(device).float() / 127.5 - 1
        noise = torch.randn_like(pixels)
        t = torch.randint(1000, (options.batch,), device=device)
        loss = torch.nn.functional.mse_loss(network(scheduler.add_noise(pixels, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        their_optimizer.step()
        their_optimizer.zero_grad()
        their_average.step(network.parameters())

    def seconds(step) -> float:
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for step in (ours, reference):  # warm both
        seconds(step)
    pairs = [(seconds(ours), seconds(reference)) for _ in range(options.steps)]
    medians = [statistics.median(times) for times in zip(*pairs, strict=True)]
    name = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{name} · torch {torch.__version__} · diffusers {diffusers.__version__}")
    size = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    print(f"{options.size} px, batch {options.batch}, {size:.1f} M parameters")
    for label, median in zip(("controlkit", "plain diffusers loop"), medians, strict=True):
        print(f"{label:22s} {options.batch / median:8.1f} images/s")
    print(f"ratio: {statistics.median(theirs / mine for mine, theirs in pairs):.2f}")


if __name__ == "__main__":
    main()
