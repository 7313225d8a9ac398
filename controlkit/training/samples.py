"""The sample grid of a run: control map, real picture, and what the net makes of the map. A row each."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from controlkit.diffusion.samplers import make_sampler
from controlkit.files import atomic_write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.processes import Processes
    from controlkit.training.batches import ControlRows
    from controlkit.training.config import SampleConfig
    from controlkit.training.objective import Models

GAP = 2


def sample_grid(
    models: Models,
    nets: dict[str, Any],
    data: ControlRows,
    rows: list[Row],
    config: SampleConfig,
    seed: int,
    processes: Processes,
) -> NDArray[np.uint8] | None:
    """The grid on the first process, None on the others; each process paints its share of the rows.

    `nets` are the parts of the pipeline that learn, by name, as they are to be shown.
    The noise of row i comes from seed + i alone, so that grids of one run differ by what was learned, and nothing here
    touches the random draws of the training.
    """
    from PIL import Image

    pipeline = models.pipeline
    pipeline.scheduler = make_sampler(config.sampler, models.scheduler, steps=config.steps)
    trained = {name: getattr(pipeline, name) for name in nets}
    for name, net in nets.items():
        setattr(pipeline, name, for_use(net, models.dtype))
    cells = []
    for number, row in processes.slice(list(enumerate(rows))):
        picture, control, _ = data.picture_and_map(row)
        made = pipeline(
            prompt=row.captions[0],
            image=Image.fromarray(control),
            num_inference_steps=config.steps,
            guidance_scale=config.cfg,
            generator=torch.Generator().manual_seed(seed + number),
            output_type="np",
        ).images[0]
        cells.append([control, picture, (np.clip(made, 0, 1) * 255).round().astype(np.uint8)])
    for name, net in trained.items():
        setattr(pipeline, name, net)
    gathered = processes.gather(cells)
    return grid(gathered) if processes.first else None


def for_use(net: Any, dtype: torch.dtype) -> Any:
    """The net as others will run it, all of it in one precision. What learns is kept in float32, what does not may not
    be; and what learns may run through wrappers that sampling does not want. Tensors of that precision are shared."""
    with torch.device("meta"):
        plain = type(net).from_config(net.config)
    plain.load_state_dict({key: value.to(dtype) for key, value in net.state_dict().items()}, assign=True)
    return plain.eval()


def grid(cells: list[list[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Rows of pictures on white, a gap between them; each has the room of the largest."""
    height, width = (max(cell.shape[axis] for row in cells for cell in row) for axis in (0, 1))
    sheet = np.full((len(cells) * (height + GAP) - GAP, len(cells[0]) * (width + GAP) - GAP, 3), 255, np.uint8)
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            top, left = y * (height + GAP), x * (width + GAP)
            sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """The picture as PNG, whole or not at all."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    atomic_write_bytes(path, buffer.getvalue())
