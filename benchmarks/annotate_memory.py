"""Memory of `controlkit annotate --type canny` over many pictures.

    python benchmarks/annotate_memory.py [--count N]

Small pictures are made on the spot; the runner works over them in this process while its resident memory is read. What
grows with the number of pictures is a name and a row each. The ratio is the memory at a tenth of the pictures over that
at the end: 1.00 is flat.
"""

import argparse
import platform
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

from annotators import ANNOTATORS
from controlkit.data.annotate import Job, annotate
from controlkit.processes import Processes

SIDE = 24


def draw(folder: Path, count: int) -> None:
    """Noise; each picture has its number in its first pixel, so that no two are equal."""
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for number in range(count):
        image[0, 0] = number % 256, number // 256 % 256, number // 65536
        (folder / f"{number // 1000:04d}").mkdir(exist_ok=True)
        (folder / f"{number // 1000:04d}" / f"{number:07d}.bmp").write_bytes(cv2.imencode(".bmp", image)[1].tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="canny needs no other")
    parser.add_argument("--count", type=int, default=100_000, help="pictures")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        draw(Path(place), options.count)
        process, marks, done = psutil.Process(), [], 0

        def look(total: int) -> None:
            nonlocal done
            if done and done % (total // 10) == 0:
                marks.append(process.memory_info().rss / 1e6)
            done += 1

        job = Job(data=Path(place), annotators={"canny": ANNOTATORS.create("canny")}, workers=options.workers)
        begun = time.perf_counter()
        report = annotate(job, Processes(), look)
        took = time.perf_counter() - begun
    print(f"{platform.machine()} · Python {platform.python_version()} · OpenCV {cv2.__version__}")
    print(f"{report.made} pictures of {SIDE}x{SIDE}, {options.workers} workers: {report.made / took:.0f} a second")
    for tenth, megabytes in enumerate(marks, start=1):
        print(f"after {tenth * report.made // 10:>9,} pictures {megabytes:8.1f} MB")
    print(f"ratio: {marks[0] / marks[-1]:.2f}")


if __name__ == "__main__":
    main()
