"""Small networks that learn what is known of drawn scenes, by the same loop as a base.

`controlkit toybox train --config NAME` makes them; RUN/network is what `load_network` reads and what is packed.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from annotators.contract import in_three_channels
from annotators.keypoints import People
from annotators.pose_drawing import draw
from controlkit.data.pictures import read_picture
from controlkit.data.rows import find_datasets, held_out, load_pictures, read_dataset
from controlkit.errors import RequestError
from controlkit.files import atomic_folder
from controlkit.models.locate import EMBEDDED_READERS, read_json
from controlkit.toybox.classifier import Contents, Reading, SceneClassifier, Targets
from controlkit.toybox.readers import SIDES, DepthReader, PoseReader, PoseTargets, people_in
from controlkit.training.draws import generator
from controlkit.training.loop import train_task
from controlkit.training.loop_config import LoopConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from controlkit.data.rows import Row

    Sheet = list[list[NDArray[np.uint8]]]

RESUMED_WITH = ("learn", "path", "size", "held_out", "width", "seed")


@dataclass(frozen=True, kw_only=True)
class LessonConfig(LoopConfig):
    learn: Literal["scenes", "depth", "pose"] = "scenes"
    path: str = "rooms"  # worlds, or folders that `toybox make` drew; `rooms:20000` says how many scenes
    size: int = 64
    held_out: float = 0.02
    width: int = 32  # channels of the first block
    output: str = "runs/lesson"
    sheet_every: int = 500  # steps between pictures of how it does on held-out scenes; 0: none

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.size < 32 or self.size % SIDES:
            yield f"size={self.size}: expected a multiple of {SIDES}, at least 32"
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
    lesson = LESSONS[config.learn]
    rows = [row for folder in find_datasets(config.path, say) for row in lesson.read(folder)]
    shown = [row for row in rows if held_out(row.content, config.held_out)]
    learned = [row for row in rows if not held_out(row.content, config.held_out)]
    if not shown or not learned:
        raise RequestError(f"path={config.path}: {len(rows)} scenes are too few for held_out={config.held_out:g}")

    def make_task(device: torch.device) -> Lesson:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return lesson(config, learned, shown)

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


class Lesson(nn.Module):
    """A network learns from clean pictures and from worse ones: what a base paints is never as crisp."""

    result = "network"
    makes: type[Any]

    def __init__(self, config: LessonConfig, rows: list[Any], shown: list[Any]) -> None:
        super().__init__()
        self.config, self.rows, self.shown = config, rows, shown
        self.pictures = load_pictures(rows, config.size)
        self.network = type(self).makes(config.width)

    @staticmethod
    @abstractmethod
    def read(folder: Path) -> list[Any]:
        """The rows of a drawn world."""

    @abstractmethod
    def loss(self, answer: Any, numbers: list[int], device: torch.device) -> torch.Tensor:
        """Of the network's answer to the pictures of these rows."""

    @abstractmethod
    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet: ...

    def networks(self) -> dict[str, Any]:
        return {"network": self.network}

    def forward(self, keys: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
        numbers = [number for _, number in keys]
        pixels = to_pixels(self.pictures[numbers]).to(device)
        blur, noise = (
            torch.tensor([torch.rand((), generator=self._generator(key, what)).item() for key in keys], device=device)
            for what in ("blur", "noise")
        )
        grain = torch.stack([torch.randn(pixels.shape[1:], generator=self._generator(key, "grain")) for key in keys])
        blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        # Half of the pictures are blurred, by another draw half are grained, each as much as its draw says.
        blur, noise = ((2 * each - 1).clamp(min=0)[:, None, None, None] for each in (blur, noise))
        worse = torch.lerp(pixels, blurred, blur) + 0.2 * noise * grain.to(device)
        return self.loss(self.network(worse), numbers, device)

    def hand_over(self, networks: Mapping[str, Any], folder: Path, device: torch.device) -> None:
        # In half precision: half the bytes, and readings that stay the same.
        with atomic_folder(folder / self.result) as unfinished:
            copy.deepcopy(networks["network"]).half().save_pretrained(unfinished, safe_serialization=True)

    def _generator(self, key: tuple[int, int], what: str) -> torch.Generator:
        epoch, number = key
        return generator(self.config.seed, epoch, self.rows[number].content, self.rows[number].file_name, what)


class SceneLesson(Lesson):
    """Which things of which colours a scene holds, how many, on what floor, before what wall."""

    makes = SceneClassifier

    def __init__(self, config: LessonConfig, rows: list[Row], shown: list[Row]) -> None:
        super().__init__(config, rows, shown)
        self.targets = Targets.of(_contents(rows))

    @staticmethod
    def read(folder: Path) -> list[Row]:
        return read_dataset(folder, label="scene")

    def loss(self, answer: Reading, numbers: list[int], device: torch.device) -> torch.Tensor:
        targets = self.targets[numbers]
        return answer.loss(Targets(*(each.to(device) for each in vars(targets).values())))

    @torch.no_grad()
    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet:
        """Held-out scenes: above, some that it reads rightly, below, some that it does not."""
        pictures = load_pictures(self.shown, self.config.size)
        read = networks["network"](to_pixels(pictures).to(device)).contents()
        right = [set(was.things) == set(seen.things) for was, seen in zip(_contents(self.shown), read, strict=True)]
        above = [picture for picture, yes in zip(pictures, right, strict=True) if yes][:16]
        below = [picture for picture, yes in zip(pictures, right, strict=True) if not yes][:16]
        white = np.full_like(pictures[0], 255)
        pairs = list(zip_longest(above, below, fillvalue=white))
        return [[one for one, _ in pairs], [other for _, other in pairs]]


class DepthLesson(Lesson):
    """How near everything is."""

    makes = DepthReader

    def __init__(self, config: LessonConfig, rows: list[Row], shown: list[Row]) -> None:
        super().__init__(config, rows, shown)
        self.maps = _depth_maps(rows, config)

    @staticmethod
    def read(folder: Path) -> list[Row]:
        return read_dataset(folder, "depth")

    def loss(self, answer: torch.Tensor, numbers: list[int], device: torch.device) -> torch.Tensor:
        wanted = torch.from_numpy(self.maps[numbers]).to(device).float() / 255
        off = answer[:, 0] - wanted
        return off.abs().mean() + off.square().mean()

    @torch.no_grad()
    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet:
        """Held-out scenes, their depth, and what it reads."""
        shown = self.shown[:16]
        pictures, wanted = load_pictures(shown, self.config.size), _depth_maps(shown, self.config)
        read = (networks["network"](to_pixels(pictures).to(device))[:, 0] * 255).round().byte().cpu().numpy()
        grey = [[in_three_channels(each) for each in maps] for maps in (wanted, read)]
        return [list(pictures), *grey]


class PoseLesson(Lesson):
    """Where the joints of the dolls are."""

    makes = PoseReader

    def __init__(self, config: LessonConfig, rows: list[Row], shown: list[Row]) -> None:
        super().__init__(config, rows, shown)
        self.targets = PoseTargets(_people(rows, config))

    @staticmethod
    def read(folder: Path) -> list[Row]:
        return read_dataset(folder, "pose")

    def loss(self, answer: torch.Tensor, numbers: list[int], device: torch.device) -> torch.Tensor:
        return self.targets.loss(answer, numbers)

    @torch.no_grad()
    def sheet(self, networks: Mapping[str, Any], device: torch.device) -> Sheet:
        """Held-out scenes, their dolls' joints, and those it reads."""
        shown, size = self.shown[:16], self.config.size
        pictures = load_pictures(shown, size)
        answers = networks["network"](to_pixels(pictures).to(device)).cpu().numpy()
        rows = [_people(shown, self.config), [people_in(answer, size, size) for answer in answers]]
        return [list(pictures), *([draw(people, size, size) for people in row] for row in rows)]


LESSONS: dict[str, type[Lesson]] = {"scenes": SceneLesson, "depth": DepthLesson, "pose": PoseLesson}


def load_network(learn: str, folder: Path | None = None) -> Any:
    """The network of that lesson, from a folder or the one that comes with the package."""
    folder, expected = folder or EMBEDDED_READERS / learn, LESSONS[learn].makes
    if (found := read_json(folder / "config.json").get("_class_name")) != expected.__name__:
        raise RequestError(f"{folder} holds a {found}; expected a {expected.__name__}")
    return expected.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).requires_grad_(False)


def to_pixels(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """(N, H, W, 3) of 0 to 255 -> (N, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _contents(rows: list[Row]) -> list[Contents]:
    return [Contents.of(json.loads(row.label or "")) for row in rows]


def _depth_maps(rows: list[Row], config: LessonConfig) -> NDArray[np.uint8]:
    """(N, size, size). A scene at another size has other maps, so these must have it already."""
    maps = np.stack([read_picture(path)[:, :, 0] for path in _controls(rows)])
    if maps.shape[1:] != (config.size, config.size):
        raise RequestError(f"path={config.path}: depth maps of {maps.shape[1:]}; expected size={config.size}")
    return maps


def _controls(rows: list[Row]) -> list[Path]:
    """A drawn world is a folder, and its maps are files."""
    return [row.control for row in rows if isinstance(row.control, Path)]


def _people(rows: list[Row], config: LessonConfig) -> list[People]:
    everybody = [People.from_json(json.loads(path.with_suffix(".json").read_text("utf-8"))) for path in _controls(rows)]
    if wrong := [people for people in everybody if (people.width, people.height) != (config.size, config.size)]:
        raise RequestError(
            f"path={config.path}: poses in {wrong[0].width} x {wrong[0].height} pixels; expected size={config.size}"
        )
    return everybody
