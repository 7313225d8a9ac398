"""Rows become batches: pictures, maps and texts, with all that is random about them drawn beside them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from annotators import ANNOTATORS
from annotators.contract import resize_map
from controlkit.data.geometry import Geometry, fit_map, sizes_of
from controlkit.data.mirroring import may_mirror
from controlkit.data.pictures import read_picture, resize_picture
from controlkit.data.rows import types_of
from controlkit.models.inpaint_hint import INPAINT, inpaint_hint
from controlkit.models.map_hint import channels_of, map_hint
from controlkit.training.draws import positions, positions_alike, uniform
from controlkit.training.dropout import ControlDropout
from controlkit.training.noise import draw_noise
from controlkit.training.objective_config import ObjectiveConfig
from controlkit.training.stopping import live_with_the_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from controlkit.data.fresh_maps import FreshMaps
    from controlkit.data.geometry import Size
    from controlkit.data.readable import Readable
    from controlkit.data.rows import Row
    from controlkit.processes import Processes


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads. B rows, H x W pixels, h x w latent cells. What the locked networks make of a row is
    there from the cache, or is made of `pixels` and `texts`."""

    control: torch.Tensor  # (B, 3 * types, H, W) in [0, 1]; -1 where a picture that is to be inpainted has its hole
    texts: list[str]  # emptied where `emptied`
    emptied: torch.Tensor  # (B,) bool
    noise: torch.Tensor  # (B, C, h, w), eps of q(x_t | x_0)
    vae_noise: torch.Tensor  # (B, C, h, w), of the VAE's posterior
    timesteps: torch.Tensor  # (B,) int64
    sizes: torch.Tensor  # (B, 6): original height, width, crop top, left, target height, width (SDXL)
    pixels: torch.Tensor | None = None  # (B, 3, H, W) in [-1, 1]
    moments: torch.Tensor | None = None  # (B, 2C, h, w), mean and log-variance of the VAE's posterior
    encoded_texts: dict[str, torch.Tensor] | None = None  # (B, …) each: hidden, for SDXL pooled
    perturbation: torch.Tensor | None = None  # (B, C, h, w), added to the noise of the input alone
    mask: torch.Tensor | None = None  # (B, h, w) in [0, 1], how much each latent cell counts in the loss

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        if self.encoded_texts is not None:
            changed["encoded_texts"] = {name: change(value) for name, value in self.encoded_texts.items()}
        return dataclasses.replace(self, **changed)


class RowCache(Protocol):
    """What `training.cache` knows of rows, by their number, and of texts."""

    def picture(self, number: int, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The VAE's moments (2C, h, w), and the sizes of a `Batch`."""

    def pixels(self, number: int, mirrored: bool) -> NDArray[np.uint8]: ...

    def control(self, number: int, type: str, mirrored: bool) -> NDArray[np.uint8]: ...

    def mask(self, number: int, mirrored: bool) -> NDArray[np.uint8] | None: ...

    def text(self, text: str) -> dict[str, torch.Tensor]: ...


class ControlRows(Dataset[dict[str, Any]]):
    """Row `number` as it is seen in `epoch`. With a `cache` neither picture nor map is read.

    Of each type in `condition` a row has a map, or gets one of `fresh`. Of the condition inpaint the maps are masks,
    and what is seen of them is the picture with holes."""

    def __init__(
        self,
        rows: list[Row],
        *,
        condition: str | Sequence[str],
        resolution: int,
        latent_shape: tuple[int, int, int],
        timesteps: int,
        prompt_dropout: float,
        seed: int,
        control_dropout: ControlDropout = ControlDropout(),  # noqa: B008 (frozen)
        objective: ObjectiveConfig | None = None,
        buckets: int | None = None,
        flip: bool = False,
        fresh: Mapping[str, FreshMaps] | None = None,
    ) -> None:
        self.flip = flip
        self.fresh = fresh or {}
        self.types = types_of(condition)
        self.inpaints = self.types == (INPAINT,)
        self.rows = rows
        self.values = {type: ANNOTATORS[type].values if type in ANNOTATORS else None for type in self.types}
        self.resolution = resolution
        self.geometry = Geometry(resolution, buckets)
        self.latent_shape = latent_shape
        self.timesteps = timesteps
        self.prompt_dropout = prompt_dropout
        self.control_dropout = control_dropout
        self.objective = objective or ObjectiveConfig()
        self.seed = seed

    @property
    def rows(self) -> list[Row]:
        return self._rows

    @rows.setter
    def rows(self, rows: list[Row]) -> None:
        """Other rows have other numbers, by which a cache knew them."""
        self._rows, self._copies = rows, _copies(rows)
        self.masked = any(row.mask is not None for row in rows)
        self.cache: RowCache | None = None
        self._sizes: list[Size] | None = None

    def sizes(self, processes: Processes) -> list[Size]:
        """Width and height to which each row comes. All processes ask together."""
        if self._sizes is None:
            self._sizes = sizes_of(self.rows, self.geometry, processes)
        return self._sizes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, number = key
        row = self.rows[number]
        draw = self.key(epoch, number)
        emptied = uniform(*draw, "prompt") < self.prompt_dropout
        caption = row.captions[int(uniform(*draw, "caption") * len(row.captions))]
        text = "" if emptied else caption
        mirrored = self.mirrors(row) and uniform(*draw, "flip") < 0.5
        if self.cache is None:
            seen = self._read(row, mirrored, epoch)
        else:
            seen = self._recall(self.cache, number, mirrored, text, epoch)
        for type in self.control_dropout.emptied(self.types, *draw):
            seen["control"][channels_of(self.types.index(type))] = -1.0 if self.inpaints else 0.0
        latent_shape = self._latent_shape(seen["control"])
        if self.masked:
            seen["mask"] = _cells(seen["mask"], latent_shape)
        return {
            **seen,
            "texts": text,
            "emptied": torch.tensor(emptied),
            **draw_noise(self.objective, draw, latent_shape, self.timesteps),
        }

    def key(self, epoch: int, number: int) -> tuple[object, ...]:
        """What the draws of a row hang on."""
        return self.seed, epoch, self.rows[number].content, self._copies[number]

    def _latent_shape(self, control: torch.Tensor) -> tuple[int, int, int]:
        """`latent_shape` is that of the square."""
        channels, side, _ = self.latent_shape
        height, width = (pixels * side // self.resolution for pixels in control.shape[-2:])
        return channels, height, width

    def mirrors(self, row: Row) -> bool:
        """Whether the row is seen mirrored in half of the epochs."""
        return self.flip and may_mirror(row)

    def _read(self, row: Row, mirrored: bool, epoch: int) -> dict[str, Any]:
        image, maps, sizes = self.picture_and_maps(row, mirrored, epoch)
        read = {"pixels": to_pixels(image), "control": self._seen(image, maps), "sizes": torch.tensor(sizes)}
        height, width = sizes[:2]
        return {**read, "mask": self.mask(row, width, height, mirrored)} if self.masked else read

    def _recall(self, cache: RowCache, number: int, mirrored: bool, text: str, epoch: int) -> dict[str, Any]:
        moments, sizes = cache.picture(number, mirrored)
        row = self.rows[number]
        picture = cache.pixels(number, mirrored) if self.inpaints else None
        maps = {type: cache.control(number, type, mirrored) for type in row.controls}
        if picture is not None and not maps:
            maps[INPAINT] = self._drawn_mask(row, picture, epoch)
        elif len(maps) < len(self.types):
            maps |= self._fresh_maps(row, self._image(row, mirrored), epoch)
        recalled = {
            "moments": moments,
            "control": self._seen(picture, maps),
            "sizes": sizes,
            "encoded_texts": cache.text(text),
        }
        return {**recalled, "mask": cache.mask(number, mirrored)} if self.masked else recalled

    def picture_and_maps(
        self, row: Row, mirrored: bool = False, epoch: int = 0
    ) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.uint8]], tuple[int, ...]]:
        """All under one geometry, the maps by type, and the sizes of a `Batch`."""
        image = self._image(row, mirrored)
        picture, sizes = self._fitted(image)
        height, width = sizes[:2]
        maps = {type: self.control(row, type, width, height, mirrored) for type in row.controls}
        if self.inpaints and not maps:
            maps[INPAINT] = self._drawn_mask(row, picture, epoch)
        elif len(maps) < len(self.types):
            maps |= self._fresh_maps(row, image, epoch)
        return picture, {type: maps[type] for type in self.types}, sizes

    def hint(self, row: Row, size: Size | None = None) -> torch.Tensor:
        """What a ControlNet reads of a row: (3 * types, H, W), at its own size or another one."""
        picture, maps, _ = self.picture_and_maps(row)
        if size is not None:
            picture = fit_map(picture, size, None)
            maps = {type: fit_map(control_map, size, self.values[type]) for type, control_map in maps.items()}
        return self._seen(picture, maps)

    def _seen(self, picture: NDArray[np.uint8] | None, maps: Mapping[str, NDArray[np.uint8]]) -> torch.Tensor:
        if not self.inpaints:
            return map_hint(self.types, maps)
        assert picture is not None, "a mask hides something"
        return inpaint_hint(picture, maps[INPAINT])

    def picture(self, row: Row, mirrored: bool = False) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        """Scaled to cover its size, the middle cut out; and the sizes of a `Batch`."""
        return self._fitted(self._image(row, mirrored))

    def _image(self, row: Row, mirrored: bool) -> NDArray[np.uint8]:
        return _mirrored(read_picture(row.picture), mirrored)

    def _fitted(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
        height, width = image.shape[:2]
        to, window = self.geometry.cover(width, height)
        (top, bottom), (left, right) = ((side.start, side.stop) for side in window)
        sizes = (height, width, top, left, bottom - top, right - left)
        return resize_picture(image, to)[window].copy(), sizes

    def _drawn_mask(self, row: Row, picture: NDArray[np.uint8], epoch: int) -> NDArray[np.uint8]:
        """For the picture as it is seen: a mask is about none of its contents."""
        return self._made(INPAINT, row, picture, epoch)

    def _fresh_maps(self, row: Row, image: NDArray[np.uint8], epoch: int) -> dict[str, NDArray[np.uint8]]:
        """Made of the whole picture, as those on the disk are."""
        to, window = self.geometry.cover(image.shape[1], image.shape[0])
        return {
            type: resize_map(self._made(type, row, image, epoch), *to, self.values[type])[window].copy()
            for type in self.fresh
        }

    def _made(self, type: str, row: Row, image: NDArray[np.uint8], epoch: int) -> NDArray[np.uint8]:
        # Parameters of several types may have one name.
        of_type = (type,) if len(self.types) > 1 else ()
        return self.fresh[type].make(image, lambda name: uniform(self.seed, epoch, row.content, "map", *of_type, name))

    def control(self, row: Row, type: str, width: int, height: int, mirrored: bool = False) -> NDArray[np.uint8]:
        """The map on the disk under the geometry of its picture, which has that width and height."""
        return self._fitted_map(row.controls[type], width, height, mirrored, self.values[type])

    def mask(self, row: Row, width: int, height: int, mirrored: bool = False) -> NDArray[np.uint8] | None:
        """The mask under the geometry of its picture; None where the row has none and counts as a whole."""
        return None if row.mask is None else self._fitted_map(row.mask, width, height, mirrored, None)

    def _fitted_map(
        self, source: Readable, width: int, height: int, mirrored: bool, values: frozenset[int] | None
    ) -> NDArray[np.uint8]:
        to, window = self.geometry.cover(width, height)
        return resize_map(_mirrored(read_picture(source), mirrored), *to, values)[window].copy()


def _copies(rows: list[Row]) -> list[int]:
    """How many rows of the same content came before each: so copies do not train on the same noise, and a row draws the
    same whatever its file is called."""
    seen: Counter[str] = Counter()
    copies = []
    for row in rows:
        copies.append(seen[row.content])
        seen[row.content] += 1
    return copies


def _mirrored(image: NDArray[np.uint8], mirrored: bool) -> NDArray[np.uint8]:
    return np.ascontiguousarray(image[:, ::-1]) if mirrored else image


def to_pixels(image: NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) of 0 to 255 -> (3, H, W) in [-1, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1


def _cells(mask: NDArray[np.uint8] | None, latent_shape: tuple[int, int, int]) -> torch.Tensor:
    """(h, w) in [0, 1]: the share of each latent cell that counts."""
    if mask is None:
        return torch.ones(latent_shape[1:])
    share = torch.from_numpy(mask[:, :, 0]).float() / 255
    return torch.nn.functional.adaptive_avg_pool2d(share[None], latent_shape[1:])[0]


def rows_to_come(dataset: ControlRows, *, start: int, count: int, batch_size: int, processes: Processes) -> list[int]:
    """The numbers of the rows, each once, that are in `count` batches of all processes together."""
    if count * batch_size * processes.count >= 2 * len(dataset):
        return list(range(len(dataset)))  # a whole epoch is among them
    batches = islice(_together(dataset, start, batch_size, processes), count)
    return sorted({number for batch in batches for _, number in batch})


def make_batches(
    dataset: ControlRows, *, start: int, count: int, batch_size: int, workers: int, processes: Processes, pin: bool
) -> Iterable[Batch]:
    """`count` batches of this process, from the one on before which all have seen `start` rows."""
    order: Any = _Order(dataset, start, count, batch_size, processes)
    return DataLoader(
        dataset,
        batch_sampler=order,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=live_with_the_parent,
    )


class _Order:
    """The batches of this process. Of the rows that all see together a process takes its share, so that N processes at
    batch B see what one sees at N * B."""

    def __init__(self, dataset: ControlRows, start: int, count: int, batch_size: int, processes: Processes) -> None:
        self.dataset, self.start, self.count = dataset, start, count
        self.batch_size, self.processes = batch_size, processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        together = _together(self.dataset, self.start, self.batch_size, self.processes)
        return (self.processes.slice(batch) for batch in islice(together, self.count))


def _together(
    dataset: ControlRows, start: int, batch_size: int, processes: Processes
) -> Iterator[list[tuple[int, int]]]:
    """The endless batches of all processes together; in buckets, all of a batch have one size."""
    rows = batch_size * processes.count
    if dataset.geometry.step is not None:
        yield from positions_alike(dataset.seed, dataset.sizes(processes), rows, start)
    stream = positions(dataset.seed, len(dataset), start)
    while True:
        yield list(islice(stream, rows))


def collate(rows: list[dict[str, Any]]) -> Batch:
    return Batch(**{key: _stacked([row[key] for row in rows]) for key in rows[0]})


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    if isinstance(values[0], dict):
        return {key: torch.stack([value[key] for value in values]) for key in values[0]}
    return values
