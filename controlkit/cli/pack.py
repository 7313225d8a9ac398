"""`controlkit pack`: weights in half precision, as the embedded ones are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--beside", metavar="BASE", help="Leave out what BASE has too, all but the UNet; it is taken from there.")
@click.option("--weight", type=click.FloatRange(min=0, min_open=True),
              help="Of a ControlNet: at weight 1 it does what it did at this one.")  # fmt: skip
@common_options(answers=True)
def command(source: Path, out: Path, beside: str | None, weight: float | None, output: Output) -> int:
    """Write a pipeline or a ControlNet to OUT in half precision.

    SOURCE is a folder in diffusers' layout. What comes out takes half the bytes, and every tool reads it as float32.
    """
    from controlkit.models.pack import pack

    size = pack(source, out, beside, weight)
    output.answer(f"{out}: {size / 1e6:.1f} MB", {"out": str(out), "bytes": size})
    return 0
