"""Three ways to paint what is masked, side by side: RePaint, a model that reads masks, a ControlNet that reads holes.

    python benchmarks/inpaint.py [--num 4] [--device cpu] [--sheet sheet.png]
    python benchmarks/inpaint.py --num 200 --model runs/toybox-9ch/pipeline --controlnet runs/toybox-inpaint/controlnet

Pictures of the drawn world `rooms` that no training saw, each under four kinds of masks: narrow (strokes), wide (boxes
and strokes), half, and expand (all but a box). All ways paint the same pictures with the same captions, seeds and steps
of DDIM at 64 pixels; RePaint walks T = 20, j = 5, r = 5 with eta 1, which are 80 calls of the network, and beside it
stands plain replacement, which never goes back (r = 1).

    hole error   mean absolute difference to the picture in the hole, of 255: other paintings fit too, so never 0
    seam         mean step from the hole's rim to its neighbour outside, over that of the picture: 1 is no seam
    fidelity     share of the pictures in which things, colours and number are those of the caption
    outside      largest difference to the picture outside the hole: 0 is promised

A way whose weights are nowhere is left out, and that is said. With --keep FOLDER what is painted lies there, and a run
that was stopped, or one with other weights, paints only what is missing. The last line is the hole error of plain
replacement over that of RePaint.
"""

import argparse
import platform
import tempfile
import time
from collections import defaultdict
from itertools import product
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

import controlkit.toybox.register  # noqa: F401  (the world's readers)
from annotators import ANNOTATORS
from controlkit.errors import RequestError
from controlkit.files import atomic_write_bytes
from controlkit.generation.batches import Batch, Job
from controlkit.generation.generate import load_models, paint
from controlkit.generation.options import request_of
from controlkit.generation.plan import make_plan
from controlkit.generation.settings import encode_picture, read_settings, weights_sha256
from controlkit.generation.sheet import draw_sheet
from controlkit.toybox.classifier import Contents
from controlkit.toybox.lessons import load_network
from controlkit.toybox.measure import UNSEEN, fidelity, judge
from controlkit.toybox.worlds import find_world
from controlkit.training.samples import HOLE, save_png

SIZE = 64
WAYS = ("plain", "repaint", "model", "controlnet")
KINDS = {
    "narrow": {"shapes": "strokes", "least": 0.05, "most": 0.15},
    "wide": {"shapes": "mixed", "least": 0.3, "most": 0.5},
    "half": {"shapes": "half", "least": 0.5, "most": 0.5},
    "expand": {"shapes": "expand", "least": 0.75, "most": 0.75},
}
SHOWN = 2  # pictures of each kind on the sheet
LARGER = np.ones((2, 2, 1), np.uint8)  # pixels of the sheet for each of a picture


def options_of(arguments):
    """Of each way the options of `controlkit generate` that name it."""
    walk = {"inpaint": "repaint", "jump-length": 5, "jump-window": "0:1"}
    ways = {"plain": {**walk, "jump-samples": 1}, "repaint": {**walk, "jump-samples": 5}}
    ways["model"] = {"inpaint": "model", "sampler": "ddim"} | ({"base": arguments.model} if arguments.model else {})
    net = {"controlnet": f"inpaint={arguments.controlnet}"} if arguments.controlnet else {}
    ways["controlnet"] = {"inpaint": "controlnet", "sampler": "ddim", **net}
    return ways


def draw_scenes(num, folder):
    """Files of the pictures and their masks, captions and what they speak of."""
    plans = [find_world("rooms").plan(UNSEEN, index) for index in range(num)]
    scenes = []
    for number, plan in enumerate(plans):
        picture = plan.draw(SIZE).image
        image = folder / f"{number}.png"
        Image.fromarray(picture).save(image)
        masks = {}
        for kind, shape in KINDS.items():
            masks[kind] = folder / f"{number}-{kind}.png"
            Image.fromarray(ANNOTATORS.create("inpaint", **shape)(picture)).save(masks[kind])
        scenes.append((picture, image, masks, plan.caption, Contents.of(plan.facts)))
    return scenes


def plan_of(scene, kind, options):
    _, image, masks, caption, _ = scene
    given = {"image": str(image), "mask": str(masks[kind]), "prompt": caption}
    return make_plan(request_of({**given, **options}), lambda text: None)


def refusal(scene, options):
    """Why these options cannot paint, or None."""
    try:
        plan_of(scene, "half", options)
    except RequestError as reason:
        return reason
    return None


def seam(image, hole):
    """Mean step between neighbours of which one is in the hole."""
    steps = []
    for axis in (0, 1):
        crosses = np.diff(hole.astype(np.int8), axis=axis) != 0
        steps.append(np.abs(np.diff(image.astype(np.int16), axis=axis))[crosses].mean(axis=1))
    return float(np.concatenate(steps).mean())


class Painter:
    """One way, whose pictures are kept with the seconds that they took; those that are there are not painted again."""

    def __init__(self, way, options, device, folder):
        self.way, self.options, self.device, self.folder = way, options, device, folder
        self.models, self.weights = None, []

    def paint(self, scenes, cells):
        """The pictures of (number, kind), painted together, and the seconds of each."""
        plans = [plan_of(scenes[number], kind, {**self.options, "seed": number}) for number, kind in cells]
        self.weights = self.weights or [weights_sha256(each.folder) for each in (plans[0].base, *plans[0].nets)]
        made_with = {"options": self.options, "weights": self.weights, "together": len(cells)}
        paths = [self.folder / f"{number:05d}-{kind}-{self.way}.png" for number, kind in cells]
        kept = [read_settings(path) if path.exists() else {} for path in paths]
        if all(settings.items() >= made_with.items() for settings in kept):
            return [(np.asarray(Image.open(path)), each["seconds"]) for path, each in zip(paths, kept, strict=True)]
        self.models = self.models or load_models(plans[0], device=self.device, dtype=torch.float32)
        batch = Batch(tuple(Job(plan, plan.request.seed) for plan in plans), mixed=True)
        begun = time.perf_counter()
        made = list(paint(plans[0], self.models, device=self.device, batches=[batch]))
        seconds = (time.perf_counter() - begun) / len(made)
        for path, each in zip(paths, made, strict=True):
            atomic_write_bytes(path, encode_picture(each.image, {**made_with, "seconds": seconds}))
        return [(each.image, seconds) for each in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=4, help="pictures")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--model", help="a base that reads masks [default: toybox-9ch, where it comes along]")
    parser.add_argument("--controlnet", help="a ControlNet for inpainting [default: toybox-inpaint, likewise]")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures painted together")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="these alone")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what is painted here, and go on from it")
    parser.add_argument("--sheet", type=Path, help="a PNG: for each kind the hole, what each way painted, the picture")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    measured = defaultdict(lambda: defaultdict(list))
    sheet = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        scenes = draw_scenes(arguments.num, Path(folder))
        painters = []
        for way, named in options_of(arguments).items():
            if way not in arguments.ways:
                continue
            options = {"base": "toybox", "steps": arguments.steps, "cfg": arguments.cfg, "feather": 0, **named}
            if (reason := refusal(scenes[0], options)) is not None:
                print(f"{way} is left out: {reason}")
                continue
            painters.append(Painter(way, options, device, arguments.keep or Path(folder)))
        cells = list(product(range(arguments.num), KINDS))
        painted = {}
        for start, painter in product(range(0, len(cells), arguments.batch_size), painters):
            together = cells[start : start + arguments.batch_size]
            for (number, kind), made in zip(together, painter.paint(scenes, together), strict=True):
                painted[number, kind, painter.way] = made
        for number, kind, painter in product(range(arguments.num), KINDS, painters):
            picture, _, masks, *_ = scenes[number]
            image, seconds = painted[number, kind, painter.way]
            hole = np.asarray(Image.open(masks[kind]).convert("L")) > HOLE
            difference = np.abs(image.astype(np.int16) - picture)
            figures = measured[kind, painter.way]
            figures["picture"].append(image)
            figures["error"].append(difference[hole].mean())
            figures["seam"].append(seam(image, hole) / max(seam(picture, hole), 1))
            figures["outside"].append(difference[~hole].max())
            figures["seconds"].append(seconds)
            if number < SHOWN:
                begin = [np.where(hole[:, :, None], HOLE, picture).astype(np.uint8)]
                sheet[kind, number] = [*(sheet[kind, number] or begin), image]

    network = load_network("scenes")
    captions, asked = [scene[3] for scene in scenes], [scene[4] for scene in scenes]
    gpu = device.type == "cuda"
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    print(f"{machine} · torch {torch.__version__} · diffusers {diffusers.__version__}")
    size = f"{SIZE} px, {arguments.batch_size} together"
    print(f"{arguments.num} pictures, {size}, {arguments.steps} steps of ddim, cfg {arguments.cfg:g}")
    print(f"{'':22s}{'hole error':>12s}{'seam':>8s}{'fidelity':>10s}{'outside':>9s}{'seconds':>9s}")
    for (kind, way), each in measured.items():
        share = fidelity(captions, asked, judge(network, each["picture"]))["prompt_fidelity"].mean
        print(
            f"{kind + ', ' + way:22s}{np.mean(each['error']):12.1f}{np.mean(each['seam']):8.2f}{share:10.1%}"
            f"{max(each['outside']):9d}{np.median(each['seconds']):9.2f}"
        )
    if arguments.sheet:
        shown = sorted(sheet.items(), key=lambda each: each[0][1])
        rows = [[np.kron(cell, LARGER) for cell in (*cells, scenes[number][0])] for (_, number), cells in shown]
        above = [["hole", *(painter.way for painter in painters), "picture"]]
        save_png(arguments.sheet, draw_sheet(rows, above, [kind for (kind, _), _ in shown]))
    if {"plain", "repaint"} <= {painter.way for painter in painters}:
        plain, repaint = (np.mean([measured[kind, way]["error"] for kind in KINDS]) for way in ("plain", "repaint"))
        print(f"ratio: {plain / repaint:.2f}")


if __name__ == "__main__":
    main()
