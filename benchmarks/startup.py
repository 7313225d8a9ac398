"""How long `controlkit --help` takes, beside an interpreter that only imports torch.

    python benchmarks/startup.py [--device cpu]

What a command loads before it is needed is time that everybody waits, at every call.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time


def seconds(*command: str, runs: int) -> float:
    """Median of the wall-clock seconds of a process, after one run that warms the disk."""
    times = []
    for number in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        if number:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="starting up uses no other")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    print(f"{platform.machine()} · Python {platform.python_version()} · median of {options.runs} runs")
    cases = {
        "python -c pass": ("-c", "pass"),
        "controlkit --help": ("-m", "controlkit", "--help"),
        "controlkit annotate --help": ("-m", "controlkit", "annotate", "--help"),
        "import torch (reference)": ("-c", "import torch"),
    }
    times = {name: seconds(sys.executable, *arguments, runs=options.runs) for name, arguments in cases.items()}
    for name, time_taken in times.items():
        print(f"{name:28s} {time_taken:6.3f} s")
    print(f"ratio: {times['import torch (reference)'] / times['controlkit --help']:.2f}")


if __name__ == "__main__":
    main()
