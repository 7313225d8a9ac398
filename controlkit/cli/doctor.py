"""`controlkit doctor`: what works here."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "controlnet-aux",
    "numpy",
    "pillow",
)


@click.command()
@common_options(answers=True)
def command(output: Output) -> int:
    """Say what works here: versions, devices, annotators, bases found, and what is wrong."""
    import controlkit.toybox.register  # noqa: F401  (its readers are backends too)
    from annotators import ANNOTATORS
    from controlkit import __version__
    from controlkit.cli.annotators import WORKS, state_of
    from controlkit.files import cache_folder, need_writable
    from controlkit.models.bases import embedded_bases
    from controlkit.models.controlnets import embedded_controlnets
    from controlkit.models.devices import device_names

    problems = []
    versions = {name: installed(name) for name in LIBRARIES}
    problems += [f"{name} is not installed: pip install {name}" for name, found in versions.items() if found is None]
    if problem := opencv_problem():
        problems.append(problem)
    annotators = {
        ANNOTATORS.name_of(name, backend): state_of(ANNOTATORS.create(name, backend))[0]
        for name in ANNOTATORS
        for backend in ANNOTATORS.backends(name)
    }
    working = [name for name, state in annotators.items() if state == WORKS]
    cache = cache_folder()
    try:
        need_writable(cache, "the cache folder")
    except ValueError as reason:
        problems.append(str(reason))
    report: dict[str, Any] = {
        "controlkit": __version__,
        "python": platform.python_version(),
        "versions": {**versions, "opencv-python": installed("opencv-python")},
        "devices": device_names() if versions["torch"] else [],
        "annotators": annotators,
        "bases": sorted(embedded_bases()),
        "controlnets": sorted(embedded_controlnets()),
        "cache": str(cache),
        "problems": problems,
    }
    lines = [
        f"controlkit {__version__} · Python {report['python']} · {platform.platform()}",
        "libraries:   " + ", ".join(f"{name} {found or 'missing'}" for name, found in report["versions"].items()),
        "devices:     " + ", ".join(report["devices"]),
        "annotators:  " + ", ".join(working),
        f"             {len(annotators) - len(working)} others lack weights or a package: controlkit annotators",
        "bases:       " + ", ".join(report["bases"]) + ", any folder or hub id of SD 1.x, 2.x, SDXL",
        "controlnets: " + (", ".join(report["controlnets"]) or "none come with the package; train one"),
        f"cache:       {cache}",
        *(f"problem:     {problem}" for problem in problems),
        "all is well" if not problems else f"{len(problems)} problems",
    ]
    output.answer("\n".join(lines), report)
    return 1 if problems else 0


def installed(name: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def opencv_problem() -> str | None:
    """opencv-python and opencv-python-headless put their files into one folder: the one installed last is what runs, so
    both must be of one version, and what runs must be that version."""
    found = {name: installed(name) for name in ("opencv-python", "opencv-python-headless")}
    versions = {name: each for name, each in found.items() if each}
    mend = "pip install --force-reinstall opencv-python==X opencv-python-headless==X with one X"
    if not versions:
        return "OpenCV is not installed: pip install opencv-python"
    if len(set(versions.values())) > 1:
        both = " and ".join(f"{name} {each}" for name, each in versions.items())
        return f"{both} share one folder and differ: {mend}"
    try:
        import cv2
    except ImportError as reason:
        return f"OpenCV cannot be imported ({reason}): {mend}"
    expected = next(iter(versions.values()))
    if not expected.startswith(cv2.__version__):
        return f"OpenCV says it is {cv2.__version__}, installed is {expected}: {mend}"
    return None
