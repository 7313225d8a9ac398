"""Pictures a second from folder to folder: `controlkit annotate` beside a loop over controlnet_aux.

    python benchmarks/annotate.py [--device cpu] [--count N] [--size WxH] [--data DIR] [--repeats R]

canny: the reference opens with PIL, calls `controlnet_aux.CannyDetector` at the picture's own size and saves a PNG.
Ours runs in a process of its own with one and with two workers; what starting it takes is measured with an empty share
of the work and taken off, as the reference is a loop that has started already. The floors are what decoding, cv2.Canny
and writing the map's PNG take by themselves, one after the other in one thread; ours with one worker cannot beat their
sum. depth: a small random Depth-Anything, the pictures of a slice together and one by one. Median of R, interleaved.
"""

import argparse
import contextlib
import io
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
import transformers
from PIL import Image

from annotators import ANNOTATORS, annotate_many
from controlkit.data.folder import find_pictures
from controlkit.data.ledger import Entry, encode_map
from controlkit.data.pictures import decode_picture
from controlkit.files import atomic_write_bytes

BATCH = 8


def draw_photographs(folder: Path, count: int, width: int, height: int) -> None:
    """JPEGs with the smooth parts, edges and grain that photographs have: noise of many scales, shapes before it."""
    random = np.random.default_rng(0)
    for number in range(count):
        image = np.zeros((height, width, 3), np.float32)
        for scale in (4, 16, 64, 256):
            coarse = random.normal(0, 1, (2 + scale * height // 512, 2 + scale * width // 512, 3)).astype(np.float32)
            image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * 60 / scale**0.6
        image = np.clip(image + 120, 0, 255).astype(np.uint8)
        for _ in range(25):
            corners = random.integers(0, (width, height), (random.integers(3, 8), 2)).astype(np.int32)
            cv2.fillConvexPoly(image, cv2.convexHull(corners), random.integers(0, 256, 3).tolist(), cv2.LINE_AA)
        image = cv2.GaussianBlur(image, (0, 0), 0.7).astype(np.int16) + random.integers(-4, 5, image.shape)
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=92)


def canny_detector() -> type:
    """controlnet_aux's, also where the mediapipe that it imports has no `solutions`."""
    with contextlib.suppress(ImportError):
        import mediapipe

        if not hasattr(mediapipe, "solutions"):
            sys.modules["mediapipe"] = types.ModuleType("mediapipe")
            sys.modules["mediapipe"].solutions = None
    from controlnet_aux import CannyDetector

    return CannyDetector


def seconds(work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def reference(data: Path, names: list[str], out: Path, detector) -> None:
    for name in names:
        image = Image.open(data / name)
        side = min(image.size)
        target = out / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        detector(image, low_threshold=100, high_threshold=200, detect_resolution=side, image_resolution=side).save(
            target
        )


def command(data: Path, out: Path, workers: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    arguments = ["annotate", "--type", "canny", str(data), "--out", str(out), "--workers", str(workers), "--quiet"]
    subprocess.run([sys.executable, "-m", "controlkit", *arguments], check=True, capture_output=True)


def floors(data: Path, names: list[str], out: Path) -> dict[str, float]:
    """Seconds for each part of the work by itself."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    annotator = ANNOTATORS.create("canny")
    entry = Entry.of("canny", annotator, "0" * 64)
    spent = dict.fromkeys(("decode", "canny", "encode"), 0.0)
    for number, name in enumerate(names):
        begun = time.perf_counter()
        image = decode_picture(data / name, (data / name).read_bytes())
        decoded = time.perf_counter()
        edges = cv2.Canny(image, 100, 200)
        found = time.perf_counter()
        control_map = np.repeat(edges[:, :, None], 3, axis=2)
        ready = time.perf_counter()
        atomic_write_bytes(out / f"{number}.png", encode_map(control_map, entry, annotator.values))
        spent["decode"] += decoded - begun
        spent["canny"] += found - decoded
        spent["encode"] += time.perf_counter() - ready
    cv2.setNumThreads(threads)
    return spent


def random_depth(folder: Path, device: str, resolution: int):
    """Depth-Anything-V2 in its true architecture, a quarter as wide as the Small one, with random weights."""
    torch.manual_seed(0)
    backbone = transformers.Dinov2Config(
        hidden_size=96,
        num_hidden_layers=12,
        num_attention_heads=3,
        image_size=518,
        patch_size=14,
        out_indices=[3, 6, 9, 12],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=96,
        neck_hidden_sizes=[16, 24, 48, 96],
        fusion_hidden_size=16,
    )
    transformers.utils.logging.disable_progress_bar()
    transformers.DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    transformers.DPTImageProcessor(ensure_multiple_of=14, keep_aspect_ratio=True).save_pretrained(folder)
    return ANNOTATORS.create("depth", "depth-anything", weights=str(folder), device=device, resolution=resolution)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=120, help="photographs")
    parser.add_argument("--size", default="768x512", metavar="WxH")
    parser.add_argument("--data", type=Path, help="photographs of your own")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=70, help="of the depth network")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        run(options, Path(place))


def run(options: argparse.Namespace, place: Path) -> None:
    data, out = options.data or place / "photographs", place / "out"
    if options.data is None:
        data.mkdir()
        draw_photographs(data, options.count, *map(int, options.size.split("x")))
    names = find_pictures(data)[: options.count]
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{os.cpu_count()} cores"
    print(
        f"{platform.machine()}, {name} · Python {platform.python_version()} · OpenCV {cv2.__version__} · "
        f"Pillow {PIL.__version__} · torch {torch.__version__}\n"
        f"{len(names)} pictures{'' if options.data else f' of {options.size}'}, median of {options.repeats}\n"
    )
    work = place / "work"
    for each in names:
        (work / each).parent.mkdir(parents=True, exist_ok=True)
        (work / each).symlink_to((data / each).resolve())
    one = place / "one"
    (one / names[0]).parent.mkdir(parents=True)
    (one / names[0]).symlink_to((data / names[0]).resolve())
    with contextlib.redirect_stderr(io.StringIO()):
        detector = canny_detector()()
    reference(work, names[:2], out, detector)  # warm
    times: dict[str, list[float]] = {"reference": [], "start": [], "one": [], "two": [], "floors": []}
    parts: list[dict[str, float]] = []
    for _ in range(options.repeats):
        times["reference"].append(seconds(lambda: reference(work, names, place / "theirs", detector)))
        times["start"].append(seconds(lambda: command(one, out, 1)))
        times["one"].append(seconds(lambda: command(work, out, 1)))
        times["two"].append(seconds(lambda: command(work, out, 2)))
        parts.append(floors(work, names, place / "floors"))
        times["floors"].append(sum(parts[-1].values()))
    median = {key: statistics.median(values) for key, values in times.items()}
    one_worker, two_workers = median["one"] - median["start"], median["two"] - median["start"]

    print(f"{'canny':34s} {'pictures/s':>10s}")
    for label, took in (
        ("controlnet_aux, PIL loop", median["reference"]),
        ("controlkit, 1 worker", one_worker),
        ("controlkit, 2 workers", two_workers),
        ("floors: decode + Canny + encode", median["floors"]),
    ):
        print(f"{label:34s} {len(names) / took:10.1f}")
    share = {key: statistics.median(part[key] for part in parts) / len(names) * 1000 for key in parts[0]}
    print("  " + ", ".join(f"{key} {milliseconds:.1f} ms" for key, milliseconds in share.items()))
    print(f"{'start of the command':34s} {median['start']:9.2f} s")
    print(f"1 worker over the floors: {median['floors'] / one_worker:.2f}")
    print(f"2 workers over 1: {one_worker / two_workers:.2f}")
    print(f"2 workers over controlnet_aux: {median['reference'] / two_workers:.2f}\n")

    annotator = random_depth(place / "depth", options.device, options.resolution)
    images = [decode_picture(work / each, (work / each).read_bytes()) for each in names[: 2 * BATCH]]
    images = [cv2.resize(image, (512, 512)) for image in images]
    annotator.batch(images[:1])
    together, alone = [], []
    for _ in range(options.repeats):
        together.append(seconds(lambda: [annotate_many(annotator, images[k : k + BATCH]) for k in (0, BATCH)]))
        alone.append(seconds(lambda: [annotator(image) for image in images]))
    batched, single = len(images) / statistics.median(together), len(images) / statistics.median(alone)
    print(f"{'random Depth-Anything':34s} {'pictures/s':>10s}    at {options.resolution} px on {options.device}")
    print(f"{f'{BATCH} together':34s} {batched:10.1f}\n{'one by one':34s} {single:10.1f}")
    print(f"together over one by one: {batched / single:.2f}\n")
    print(f"ratio: {median['reference'] / two_workers:.2f}")


if __name__ == "__main__":
    main()
