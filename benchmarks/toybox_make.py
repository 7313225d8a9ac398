"""How many scenes of the drawn worlds a core draws in a second.

    python benchmarks/toybox_make.py [--device cpu] [--count N] [--repeats R]

`rooms` is what the embedded models are trained on: 100 scenes of 64 pixels a second and core, with their exact depth
and pose maps, are 360,000 an hour. That bar is the reference. `dataset` is a whole folder, in one process: canny maps,
PNGs and captions too. Times are those of the processor, best of R, so that other work on the machine counts little.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from controlkit.toybox.make import make
from controlkit.toybox.worlds import WORLDS, draw

BAR = 100.0  # scenes of 64 pixels a second and core


def rate(work: Callable[[str, int, int], None], world: str, count: int, size: int, repeats: int) -> float:
    """Scenes a second of processor time, of the best run."""
    work(world, 1, size)  # what is computed once is not counted
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        work(world, count, size)
        times.append(time.process_time() - begun)
    return count / min(times)


def draw_all(world: str, count: int, size: int) -> None:
    for index in range(count):
        draw(world, 0, index, size)


def make_anew(world: str, count: int, size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), world, count=count, size=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="scenes are drawn without an accelerator")
    parser.add_argument("--count", type=int, default=200, help="scenes of 64 pixels in a run; an eighth at 256")
    parser.add_argument("--repeats", type=int, default=4)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores · Python {platform.python_version()} · NumPy {np.__version__} · "
        f"OpenCV {cv2.__version__}\n{options.count} scenes of seed 0, best of {options.repeats}, one process\n"
    )
    print(f"{'world':10s} {'what':10s} {'pixels':>7s} {'scenes/s/core':>14s}")
    rates = {}
    for world in WORLDS:
        for what, work in (("scenes", draw_all), ("dataset", make_anew)):
            for size in (64, 256):
                count = options.count if size == 64 else max(1, options.count // 8)
                rates[world, what, size] = rate(work, world, count, size, options.repeats)
                print(f"{world:10s} {what:10s} {size:7d} {rates[world, what, size]:14.1f}")
    print(f"\nbar: {BAR:.0f} scenes/s/core of rooms at 64 pixels")
    print(f"ratio: {rates['rooms', 'scenes', 64] / BAR:.2f}")


if __name__ == "__main__":
    main()
