"""Small networks that learn what is known of drawn scenes, by the same loop as a base.

`controlkit toybox train --config NAME` makes them; RUN/network is what `load_network` reads and what is packed.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from controlkit.data.labelled import load_pictures, read_labelled
from controlkit.data.rows import find_datasets, held_out
from controlkit.errors import RequestError
from controlkit.files import atomic_folder
from controlkit.models.locate import EMBEDDED_WEIGHTS, read_json
from controlkit.toybox.classifier import Contents, Reading, SceneClassifier, Targets
from controlkit.training.draws import generator
from controlkit.training.loop import train_task
from controlkit.training.loop_config import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from controlkit.data.labelled import LabelledRow

NETWORKS: dict[str, type[Any]] = {"scenes": SceneClassifier}

RESUMED_WITH = ("learn", "path", "size", "held_out", "width", "seed")


@dataclass(frozen=True, kw_only=True)
class LessonConfig(LoopConfig):
    learn: Literal["scenes"] = "scenes"
    path: str = "rooms, circles"  # worlds, or folders that `toybox make` drew; `rooms:20000` says how many scenes
    size: int = 64
    held_out: float = 0.02
    width: int = 32  # channels of the first block
    output: str = "runs/lesson"
    sheet_every: int = 500  # steps between pictures of how it does on held-out scenes; 0: none

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.size < 32:
            yield f"size={self.size}: expected at least 32"
        if not 0 < self.held_out < 1:
            yield f"held_out={self.held_out:g}: expected a share between 0 and 1"
        if self.width < 8 or self.width % 8:
            yield f"width={self.width}: expected a multiple of 8"


def train_lesson(
    config: LessonConfig,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Train as the config says and return RUN/network."""
    rows = [row for folder in find_datasets(config.path, say) for row in read_labelled(folder, "scene")]
    shown = [row for row in rows if held_out(row.content, config.held_out)]
    learned = [row for row in rows if not held_out(row.content, config.held_out)]
    if not shown or not learned:
        raise RequestError(f"path={config.path}: {len(rows)} scenes are too few for held_out={config.held_out:g}")

    def make_task(device: torch.device) -> SceneLesson:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return SceneLesson(config, learned, shown)

    return train_task(
        config,
        make_task,
        len(learned),
        resumed_with=RESUMED_WITH,
        sheet_every=config.sheet_every,
        resume=resume,
        say=say,
        progress=progress,
    )


class SceneLesson(nn.Module):
    """Read what a scene holds, from clean pictures and from worse ones: what a base paints is never as crisp."""

    result = "network"

    def __init__(self, config: LessonConfig, rows: list[LabelledRow], shown: list[LabelledRow]) -> None:
        super().__init__()
        self.config, self.rows, self.shown = config, rows, shown
        self.pictures = load_pictures(rows, config.size)
        self.targets = Targets.of(_contents(rows))
        self.network = SceneClassifier(config.width)

    def networks(self) -> dict[str, Any]:
        return {"network": self.network}

    def forward(self, keys: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
        numbers = [number for _, number in keys]
        pixels = to_pixels(self.pictures[numbers]).to(device)
        targets = self.targets[numbers]
        blur = torch.tensor([self._uniform(key, "blur") for key in keys], device=device)[:, None, None, None]
        noise = torch.tensor([self._uniform(key, "noise") for key in keys], device=device)[:, None, None, None]
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        grain = torch.stack([torch.randn(pixels.shape[1:], generator=self._generator(key, "grain")) for key in keys])
        worse = torch.lerp(pixels, blurred, (2 * blur - 1).clamp(min=0)) + 0.2 * (2 * noise - 1).clamp(
            min=0
        ) * grain.to(device)
        reading: Reading = self.network(worse)
        return reading.loss(Targets(*(each.to(device) for each in vars(targets).values())))

    @torch.no_grad()
    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> list[list[NDArray[np.uint8]]]:
        """Held-out scenes: above, some that it reads rightly, below, some that it does not."""
        pictures = load_pictures(self.shown, self.config.size)
        read = networks["network"](to_pixels(pictures).to(device)).contents()
        right = [set(was.things) == set(seen.things) for was, seen in zip(_contents(self.shown), read, strict=True)]
        above = [picture for picture, yes in zip(pictures, right, strict=True) if yes][:16]
        below = [picture for picture, yes in zip(pictures, right, strict=True) if not yes][:16]
        white = np.full_like(pictures[0], 255)
        pairs = list(zip_longest(above, below, fillvalue=white))
        return [[one for one, _ in pairs], [other for _, other in pairs]]

    def hand_over(self, networks: Mapping[str, Any], folder: Path, device: torch.device) -> None:
        # In half precision: half the bytes, and readings that stay the same.
        with atomic_folder(folder / self.result) as unfinished:
            copy.deepcopy(networks["network"]).half().save_pretrained(unfinished, safe_serialization=True)

    def _uniform(self, key: tuple[int, int], what: str) -> float:
        return torch.rand((), generator=self._generator(key, what)).item()

    def _generator(self, key: tuple[int, int], what: str) -> torch.Generator:
        epoch, number = key
        return generator(self.config.seed, epoch, self.rows[number].content, self.rows[number].file_name, what)


def load_network(learn: str, folder: Path | None = None) -> Any:
    """The network of that lesson, from a folder or the one that comes with the package."""
    folder = folder or EMBEDDED_WEIGHTS / f"toybox-{learn}"
    expected = NETWORKS[learn]
    if (found := read_json(folder / "config.json").get("_class_name")) != expected.__name__:
        raise RequestError(f"{folder} holds a {found}; expected a {expected.__name__}")
    return expected.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).requires_grad_(False)


def to_pixels(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """(N, H, W, 3) of 0 to 255 -> (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _contents(rows: list[LabelledRow]) -> list[Contents]:
    return [Contents.of(json.loads(row.label or "")) for row in rows]
