"""The denoising loop of `controlkit generate`, beside diffusers' pipeline as people call it.

    python benchmarks/generate.py [--device cpu] [--dtype float32] [--size 256] [--steps 5] [--pairs 3]
    python benchmarks/generate.py --device cuda --dtype float16 --size 512 --steps 20 --pairs 10

The networks have Stable Diffusion 1.5's shapes and random weights, which cost as much as trained ones; guidance is on.
Texts are encoded beforehand and latents stay undecoded, so that what is timed is the loop. Both sides share every
weight. Control ends at 60 % of the steps (diffusers computes it to the end, and the map at every step), is computed for
the half with the prompt alone, or both; or the ControlNet's answer stands for two steps. Where the pixels have to be
the same, that is asserted. Each round times all of them after the reference; the median of the rounds' ratios is
printed, the last line being that of both together.
"""

import argparse
import platform
import statistics
import time
from contextlib import nullcontext

import diffusers
import numpy as np
import torch
from PIL import Image

from controlkit.diffusion.samplers import make_sampler
from controlkit.generation.silent import asked_every, control_conditional_half, silenced
from controlkit.models.controlnets import make_controlnet
from controlkit.models.quiet import quiet_libraries

SCHEDULER = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPES = {
    "sd15": {"cross_attention_dim": 768, "sample_size": 64},  # the rest are diffusers' defaults, which are SD's
    "tiny": {"cross_attention_dim": 32, "block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8},  # does it run?
}
END = 0.6
SAME = f"control ends at {END:.0%}, map encoded once"  # the very pixels


def pipeline_over(unet, controlnet, sampler):
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        controlnet=controlnet,
        scheduler=make_sampler(sampler, SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def twin(controlnet):
    """Another network over the same weights."""
    with torch.device("meta"):
        other = diffusers.ControlNetModel.from_config(controlnet.config)
    other.load_state_dict(controlnet.state_dict(), assign=True)
    return other.eval()


def build_pipelines(shapes, device, dtype, sampler):
    """diffusers' own, ours, and ours with one half controlled."""
    quiet_libraries()
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**shapes).to(device, dtype).eval()
    theirs = make_controlnet(unet, vae_factor=8, latent_channels=4, seed=0)
    with torch.no_grad():  # an untrained ControlNet adds exactly nothing, and any two would paint alike
        for name, parameter in theirs.named_parameters():
            if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                parameter.normal_(std=0.02)
    theirs = theirs.to(device, dtype).eval()
    silent, half = (pipeline_over(unet, silenced([twin(theirs)]), sampler) for _ in range(2))
    control_conditional_half(half)
    return pipeline_over(unet, theirs, sampler), silent, half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--shapes", choices=SHAPES, default="sd15")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--sampler", default="dpmpp_2m_karras")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    shapes = SHAPES[options.shapes]
    reference, silent, half = build_pipelines(shapes, device, dtype, options.sampler)

    lines = np.zeros((options.size, options.size, 3), dtype=np.uint8)
    lines[:: options.size // 8] = 255
    edges = Image.fromarray(lines)
    texts = torch.randn(2, 1, 77, shapes["cross_attention_dim"], generator=torch.Generator().manual_seed(1))
    texts = texts.to(device, dtype)

    def paint(pipeline, end, every=1) -> tuple[torch.Tensor, float]:
        """The latents, and the seconds that they took."""
        start = time.perf_counter()
        with asked_every(pipeline, every) if every > 1 else nullcontext():
            latents = pipeline(
                image=edges,
                prompt_embeds=texts[0],
                negative_prompt_embeds=texts[1],
                num_inference_steps=options.steps,
                control_guidance_end=end,
                generator=torch.Generator().manual_seed(0),
                output_type="latent",
            ).images
        if device.type == "cuda":
            torch.cuda.synchronize()
        return latents, time.perf_counter() - start

    ways = {
        SAME: (silent, END),
        "one half controlled": (half, 1.0),
        "both": (half, END),
        "control to the end, asked in every 2nd step": (silent, 1.0, 2),
    }
    for pipeline in (reference, silent, half):  # warm all of them
        paint(pipeline, END)
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    times: list[float] = []
    for _ in range(options.pairs):
        expected, theirs = paint(reference, END)
        times.append(theirs)
        for name, way in ways.items():
            latents, ours = paint(*way)
            ratios[name].append(theirs / ours)
            assert name != SAME or torch.equal(latents, expected), "not the same pixels"

    gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{machine} · torch {torch.__version__} · diffusers {diffusers.__version__}")
    print(f"{options.size} px, batch 1, {options.dtype}, {options.steps} steps of {options.sampler}, cfg 7.5")
    print(f"{'diffusers itself':44s} {statistics.median(times):8.3f} s a picture")
    for name, each in ratios.items():
        print(f"{name:44s} {statistics.median(each):8.2f} times as many pictures/s")
    print(f"ratio: {statistics.median(ratios['both']):.2f}")


if __name__ == "__main__":
    main()
