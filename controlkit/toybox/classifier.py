"""A small network that reads a drawn scene: which things of which colours, how many, on what floor, before what wall.

It judges pictures that a base made from captions: what was asked for is known, what is seen is read here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from controlkit.toybox.scene import COLOURS, GROUNDS
from controlkit.toybox.things import SOLIDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SHAPES = (*SOLIDS, "doll", "circle")
HUES = tuple(COLOURS)
SURROUNDINGS = (*GROUNDS, *COLOURS)
MOST_THINGS = 4
FEATURES = 64


@dataclass(frozen=True)
class Contents:
    """What a scene holds: (shape, colour) of each thing, floor and wall. The ground of a circle is both."""

    things: tuple[tuple[str, str], ...]
    floor: str
    wall: str

    @staticmethod
    def of(facts: dict[str, Any]) -> Contents:
        """From the facts that a world gives with a scene."""
        if "disc" in facts:
            return Contents((("circle", facts["disc"]),), facts["ground"], facts["ground"])
        things = tuple((thing["shape"], thing["colour"]) for thing in facts["objects"])
        return Contents(things, facts["floor"], facts["wall"])

    @property
    def colours(self) -> frozenset[str]:
        return frozenset(colour for _, colour in self.things)


@dataclass(frozen=True)
class Targets:
    """Contents as numbers, (N, …): what the network is trained towards."""

    things: torch.Tensor  # (N, SHAPES, HUES), 1 where there is one
    count: torch.Tensor  # (N,), the number of things less one
    floor: torch.Tensor  # (N,)
    wall: torch.Tensor  # (N,)

    @staticmethod
    def of(contents: Iterable[Contents]) -> Targets:
        listed = list(contents)
        things = torch.zeros(len(listed), len(SHAPES), len(HUES))
        for number, each in enumerate(listed):
            for shape, colour in each.things:
                things[number, SHAPES.index(shape), HUES.index(colour)] = 1
        return Targets(
            things,
            torch.tensor([len(each.things) - 1 for each in listed]),
            torch.tensor([SURROUNDINGS.index(each.floor) for each in listed]),
            torch.tensor([SURROUNDINGS.index(each.wall) for each in listed]),
        )

    def __getitem__(self, numbers: Sequence[int]) -> Targets:
        return Targets(self.things[numbers], self.count[numbers], self.floor[numbers], self.wall[numbers])


@dataclass(frozen=True)
class Reading:
    """Logits, (N, …), as `Targets` has them, and features (N, FEATURES)."""

    things: torch.Tensor
    count: torch.Tensor  # (N, MOST_THINGS)
    floor: torch.Tensor  # (N, SURROUNDINGS)
    wall: torch.Tensor
    features: torch.Tensor

    def loss(self, targets: Targets) -> torch.Tensor:
        things = (
            F.binary_cross_entropy_with_logits(self.things, targets.things, reduction="none").sum(dim=(1, 2)).mean()
        )
        return (
            things
            + F.cross_entropy(self.count, targets.count)
            + F.cross_entropy(self.floor, targets.floor)
            + F.cross_entropy(self.wall, targets.wall)
        )

    def contents(self) -> list[Contents]:
        """What is most probably there; things of one shape and colour are seen once, `counts` says how many in all."""
        floors, walls = self.floor.argmax(dim=1).tolist(), self.wall.argmax(dim=1).tolist()
        return [
            Contents(
                tuple((SHAPES[shape], HUES[colour]) for shape, colour in (logits > 0).nonzero().tolist()),
                SURROUNDINGS[floor],
                SURROUNDINGS[wall],
            )
            for logits, floor, wall in zip(self.things, floors, walls, strict=True)
        ]

    def counts(self) -> list[int]:
        numbers: list[int] = (self.count.argmax(dim=1) + 1).tolist()
        return numbers


class SceneClassifier(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Pictures (N, 3, H, W) in [-1, 1], H and W from 32 on, made for 64."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, width, 2),
            _block(width, 2 * width, 2),
            _block(2 * width, 2 * width, 1),
            _block(2 * width, 3 * width, 2),
            _block(3 * width, 3 * width, 1),
        )
        self.features = nn.Linear(6 * width, FEATURES)
        self.things = nn.Linear(FEATURES, len(SHAPES) * len(HUES))
        nn.init.constant_(self.things.bias, -3.5)  # most things are absent: begin by knowing that
        self.count = nn.Linear(FEATURES, MOST_THINGS)
        self.floor = nn.Linear(FEATURES, len(SURROUNDINGS))
        self.wall = nn.Linear(FEATURES, len(SURROUNDINGS))

    def forward(self, pixels: torch.Tensor) -> Reading:
        cells = self.body(pixels)
        # The mean tells how much of something there is, the largest that it is somewhere.
        features = self.features(torch.cat([cells.mean(dim=(2, 3)), cells.amax(dim=(2, 3))], dim=1))
        seen = F.silu(features)
        return Reading(
            self.things(seen).view(-1, len(SHAPES), len(HUES)),
            self.count(seen),
            self.floor(seen),
            self.wall(seen),
            features,
        )


def _block(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride=stride, padding=1), nn.GroupNorm(8, outside), nn.SiLU())
