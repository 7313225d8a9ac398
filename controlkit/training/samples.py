"""The sample grid of a run: control map, real picture, and what the net makes of the map. A row each."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch

from controlkit.diffusion.samplers import make_sampler
from controlkit.files import atomic_write_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from diffusers import ControlNetModel
    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.processes import Processes
    from controlkit.training.batches import ControlRows
    from controlkit.training.config import SampleConfig
    from controlkit.training.objective import Models

GAP = 2


def sample_grid(
    models: Models,
    controlnet: ControlNetModel,
    data: ControlRows,
    rows: list[Row],
    config: SampleConfig,
    seed: int,
    processes: Processes,
) -> NDArray[np.uint8] | None:
    """The grid on the first process, None on the others; each process paints its share of the rows.

    The noise of row i comes from seed + i alone, so that grids of one run differ by what was learned, and nothing here
    touches the random draws of the training.
    """
    from PIL import Image

    pipeline = models.pipeline
    pipeline.scheduler = make_sampler(config.sampler, models.base.scheduler, steps=config.steps)
    trained, pipeline.controlnet = pipeline.controlnet, _for_sampling(controlnet, models.dtype)
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
    pipeline.controlnet = trained
    controlnet.train()
    gathered = processes.gather(cells)
    return grid(gathered) if processes.first else None


def _for_sampling(controlnet: ControlNetModel, dtype: torch.dtype) -> ControlNetModel:
    """The net as `generate` will run it: in the base's precision. What learns is kept in float32."""
    if controlnet.dtype == dtype:
        return controlnet.eval()
    copy = type(controlnet).from_config(controlnet.config)
    copy.load_state_dict(controlnet.state_dict())
    return copy.to(controlnet.device, dtype).eval()


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
