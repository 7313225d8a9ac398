"""Rows become batches: pictures, maps and texts, with all that is random about them drawn beside them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from annotators import ANNOTATORS
from annotators.contract import resize_map
from controlkit.data.pictures import cover, read_picture, resize_picture
from controlkit.training.draws import generator, positions, uniform
from controlkit.training.stopping import stay_for_the_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.processes import Processes


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads. B rows, H x W pixels, h x w latent cells."""

    pixels: torch.Tensor  # (B, 3, H, W) in [-1, 1]
    control: torch.Tensor  # (B, 3, H, W) in [0, 1]
    texts: list[str]  # emptied where `emptied`
    emptied: torch.Tensor  # (B,) bool
    noise: torch.Tensor  # (B, C, h, w), eps of q(x_t | x_0)
    vae_noise: torch.Tensor  # (B, C, h, w), of the VAE's posterior
    timesteps: torch.Tensor  # (B,) int64
    sizes: torch.Tensor  # (B, 6): original height, width, crop top, left, target height, width (SDXL)

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        tensors: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return dataclasses.replace(self, **tensors)


class ControlRows(Dataset[dict[str, Any]]):
    """Row `number` as it is seen in `epoch`."""

    def __init__(
        self,
        rows: list[Row],
        *,
        condition: str,
        resolution: int,
        latent_shape: tuple[int, int, int],
        timesteps: int,
        prompt_dropout: float,
        seed: int,
    ) -> None:
        self.rows = rows
        self.values = ANNOTATORS[condition].values if condition in ANNOTATORS else None
        self.resolution = resolution
        self.latent_shape = latent_shape
        self.timesteps = timesteps
        self.prompt_dropout = prompt_dropout
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, number = key
        row = self.rows[number]
        pixels, control, sizes = self.picture_and_map(row)
        # Rows of equal content are told apart by their names, lest copies train on the same noise.
        draw = (self.seed, epoch, row.content, row.file_name)
        emptied = uniform(*draw, "prompt") < self.prompt_dropout
        caption = row.captions[int(uniform(*draw, "caption") * len(row.captions))]
        return {
            "pixels": torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1,
            "control": torch.from_numpy(control).permute(2, 0, 1).float() / 255,
            "texts": "" if emptied else caption,
            "emptied": torch.tensor(emptied),
            "noise": torch.randn(self.latent_shape, generator=generator(*draw, "noise")),
            "vae_noise": torch.randn(self.latent_shape, generator=generator(*draw, "vae")),
            "timesteps": torch.randint(self.timesteps, (), generator=generator(*draw, "timestep")),
            "sizes": torch.tensor(sizes),
        }

    def picture_and_map(self, row: Row) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[int, ...]]:
        """Both at the resolution, under one geometry: scaled to cover the square, its middle cut out."""
        image, control = read_picture(row.picture), read_picture(row.control)
        height, width = image.shape[:2]
        to, window = cover(width, height, self.resolution)
        image, control = resize_picture(image, to), resize_map(control, *to, self.values)
        top, left = window[0].start, window[1].start
        return (
            image[window].copy(),
            control[window].copy(),
            (height, width, top, left, self.resolution, self.resolution),
        )


class _Order:
    """The batches of this process. Of the rows that all see together a process takes its share, so that N processes at
    batch B see what one sees at N * B."""

    def __init__(self, seed: int, rows: int, start: int, count: int, batch_size: int, processes: Processes) -> None:
        self.seed, self.rows, self.start, self.count = seed, rows, start, count
        self.batch_size, self.processes = batch_size, processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        stream = positions(self.seed, self.rows, self.start)
        together = self.batch_size * self.processes.count
        for _ in range(self.count):
            yield self.processes.slice([next(stream) for _ in range(together)])


def make_batches(
    dataset: ControlRows, *, start: int, count: int, batch_size: int, workers: int, processes: Processes, pin: bool
) -> Iterable[Batch]:
    """`count` batches from the `start`-th row of the stream on."""
    order: Any = _Order(dataset.seed, len(dataset), start, count, batch_size, processes)
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=stay_for_the_parent,
    )


def collate(rows: list[dict[str, Any]]) -> Batch:
    texts = [row.pop("texts") for row in rows]
    tensors: dict[str, Any] = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    return Batch(texts=texts, **tensors)
