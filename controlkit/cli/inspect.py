"""`controlkit inspect`: what a model file is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output

_LONGEST = 200  # characters of a metadata value; training tools write whole dictionaries into one


@click.command()
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
@common_options(answers=True)
def command(file: Path, output: Output) -> int:
    """Say what a model file is: kind, family, prediction, precision, ranks, metadata, SHA-256.

    Any .safetensors, .ckpt, .pth, .pt or .bin, told by its bytes and never by its name. Nothing in it is executed.
    """
    from controlkit.errors import RequestError
    from controlkit.generation.settings import weights_sha256
    from controlkit.models.formats.inspect import inspect_file

    if file.is_dir():
        raise RequestError(f"{file} is a folder; expected a model file")
    about = inspect_file(file)
    about["sha256"] = weights_sha256(file)
    output.answer("\n".join(_lines(about)), about)
    return 0


def _lines(about: dict[str, Any]) -> list[str]:
    dtypes = ", ".join(f"{name} ({count})" for name, count in about["dtypes"].items())
    lines = [
        f"{about['path']}: {about['kind']} · {about['container']} · {about['bytes'] / 1e6:.1f} MB",
        f"  family       {about['family'] or 'not told'}",
        f"  tensors      {about['tensors']} with {about['parameters']:,} numbers: {dtypes or 'none'}",
        f"  SHA-256      {about['sha256']}",
    ]
    if "problem" in about:
        lines.append(f"  problem      {about['problem']}")
    if "prediction" in about:
        guessed = "guessed from " if about["prediction_guessed"] else ""
        lines.append(f"  prediction   {about['prediction']} ({guessed}{about['prediction_from']})")
        lines += ["  inpainting   yes"] if about["inpaints"] else []
        lines += ["  also holds   averaged weights (EMA), which are left alone"] if about["averaged_weights"] else []
    if about.get("condition"):
        lines.append(f"  trained on   {about['condition']}")
    if "ranks" in about:
        ranks = ", ".join(f"{rank} ({count})" for rank, count in about["ranks"].items())
        lines.append(f"  ranks        {ranks}")
    for name, value in {**about["facts"], **about["metadata"]}.items():
        text = " ".join(str(value).split())
        lines.append(f"  {name}: {text[:_LONGEST]}{' …' if len(text) > _LONGEST else ''}")
    return lines
