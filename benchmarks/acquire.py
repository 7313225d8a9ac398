"""How soon a training reads its maps, beside one that starts from the ControlNet as diffusers makes it.

    python benchmarks/acquire.py [--condition canny] [--steps 600] [--seeds 1] [--device cpu]

Both are `controlkit train` on the base that comes with the package and drawn scenes, with one config, one seed and so
one order of rows, noises and timesteps; they differ in the hint encoder's first weights alone. diffusers leaves them as
PyTorch draws them, ours keep a map's strength on its way (`models/controlnets.py`). What is compared is the step at
which "control acquired" is said. The ratio is that of the reference over ours; where the reference does not come to it
within the steps, these are taken, and the ratio is a lower bound.
"""

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import ControlNetModel

from controlkit.cli.main import main as controlkit
from controlkit.models.bases import find_base
from controlkit.models.controlnets import hint_channels, save_controlnet

BASE = "toybox"


def reference_start(seed: int, condition: str, folder: Path) -> None:
    """The ControlNet that diffusers' example script begins with, for the VAE of this base."""
    base = find_base(BASE)
    torch.manual_seed(seed)
    channels = hint_channels(base.vae_factor)
    net = ControlNetModel.from_unet(base.load("unet").float(), conditioning_embedding_out_channels=channels)
    save_controlnet(net, folder, {"condition": condition})


def acquired(run: Path, settings: list[str]) -> int | None:
    """The step at which it was said."""
    if code := controlkit(["train", "--config", "toybox-canny", f"output={run}", "--quiet", *settings]):
        raise SystemExit(code)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next((line["step"] for line in lines if line.get("event") == "control acquired"), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", default="canny", help="canny, depth or pose")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--scenes", type=int, default=1500)
    parser.add_argument("--every", type=int, default=25, help="steps between two looks at held-out rows")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees none")

    said: dict[str, list[int | None]] = {"diffusers": [], "ours": []}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(options.seeds):
            start = Path(place) / f"start-{seed}"
            reference_start(seed, options.condition, start)
            common = [f"data.path=rooms:{options.scenes}", f"data.condition={options.condition}", f"seed={seed}"]
            common += [f"steps={options.steps}", f"watch.every={options.every}", "watch.fidelity=false"]
            common += [f"samples.every={options.steps}", f"checkpoint_every={options.steps}"]
            said["diffusers"].append(acquired(Path(place) / f"theirs-{seed}", [*common, f"controlnet={start}"]))
            said["ours"].append(acquired(Path(place) / f"ours-{seed}", common))

    print(f"{platform.machine()} · torch {torch.__version__} · diffusers {diffusers.__version__}")
    print(
        f"{options.condition}, {options.scenes} scenes, seeds 0 to {options.seeds - 1}, looked at every {options.every}"
    )
    for name, steps in said.items():
        words = ", ".join("not" if step is None else f"at step {step}" for step in steps)
        print(f"{name:12s} acquired {words} (within {options.steps})")
    theirs, ours = (statistics.mean(step or options.steps for step in said[name]) for name in ("diffusers", "ours"))
    print(f"ratio: {theirs / ours:.2f}")


if __name__ == "__main__":
    main()
