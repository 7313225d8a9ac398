"""`controlkit generate --grid` and `--sweep`: single pictures, and one sheet that shows them all with labels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import click

from controlkit.cli.generate import Place, write, write_numbered

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from controlkit.cli.output import Output
    from controlkit.generation.execution import Execution
    from controlkit.generation.request import Request


def painted_sheet(
    request: Request,
    sweeps: tuple[str, ...],
    *,
    out: Path,
    device: str | None,
    dtype: str | None,
    execution: Execution,
    output: Output,
) -> int:
    """Paint the cells of a sweep, or the pictures of a request, and lay them on a sheet."""
    from controlkit.errors import RequestError
    from controlkit.generation.many import paint_many
    from controlkit.generation.plan import make_plan
    from controlkit.generation.sheet import draw_grid, draw_sheet
    from controlkit.generation.sweeps import Sweep, cells

    if out.suffix.lower() == ".png":
        raise RequestError(f"--out {out} is one file, a sheet has its pictures beside it; give a folder")
    parsed = [Sweep.parse(text) for text in sweeps]
    rows = cells(request, parsed) if parsed else [[request]]
    requests = [cell for row in rows for cell in row]
    said: set[str] = set()

    def say_once(text: str) -> None:
        if text not in said:
            output.say(text)
        said.add(text)

    for cell in requests:
        make_plan(cell, say_once)  # all that can be refused, before anything is painted
    place = Place.of(out, 1)

    from controlkit.models.devices import choose_device, choose_precision

    where = choose_device(device)
    precision = choose_precision(dtype, where)
    images, written = [], []
    with output.progress("generate", "pictures") as progress:
        # All cells share their models, so they come in their order.
        for picture in paint_many(
            requests,
            device=where,
            dtype=precision,
            execution=execution,
            there=set(),
            say=lambda text: None,
            progress=progress,
        ):
            images.append(picture.image)
            written.append(write(picture, place, output))
    if parsed:
        width = len(rows[0])
        laid = [images[start : start + width] for start in range(0, len(images), width)]
        sheet = draw_sheet(laid, [parsed[0].labels], parsed[1].labels if len(parsed) > 1 else None)
    else:
        sheet = draw_grid(images, [f"seed {seed}" for seed in request.seeds])
    path = write_numbered(out, "sheet", _png(sheet))
    if output.as_json:
        output.answer("", {"pictures": written, "sheet": str(path)})
    else:
        click.echo(str(path))
    return 0


def _png(sheet: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, format="PNG")
    return buffer.getvalue()
