"""Two small networks that read a drawn scene: how near everything is, and where the joints of the dolls are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from annotators.keypoints import BODY, People, Person

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SIDES = 8
"""Both sides of a picture must be multiples of this."""

CELL = 2
"""Pixels a side of one cell of the pose reader's answer."""

_REACH = 1.5  # cells around a doll's middle that answer for it
_UNIT = 8.0  # pixels: the answers are about this large


class Body(nn.Module):
    """(N, 3, H, W) -> (N, width, H / 2, W / 2): down to cells of 8 pixels and up again, each level seen twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.Sequential(_block(3, width, 2), _block(width, width, 1))
        self.middle = nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width, 1))
        self.coarse = nn.Sequential(
            _block(2 * width, 3 * width, 2), _block(3 * width, 3 * width, 1), _block(3 * width, 3 * width, 1)
        )
        self.to_middle = _block(5 * width, 2 * width, 1)
        self.to_fine = nn.Sequential(_block(3 * width, width, 1), _block(width, width, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        fine = self.fine(pixels)
        middle = self.middle(fine)
        up = torch.cat([middle, F.interpolate(self.coarse(middle), scale_factor=2.0)], dim=1)
        answer: torch.Tensor = self.to_fine(
            torch.cat([fine, F.interpolate(self.to_middle(up), scale_factor=2.0)], dim=1)
        )
        return answer


class DepthReader(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Pictures (N, 3, H, W) in [-1, 1] -> nearness (N, 1, H, W), 0 to 1 as the maps of `rooms` have it."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = Body(width)
        self.nearness = nn.Conv2d(width, CELL**2, 3, padding=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(F.pixel_shuffle(self.nearness(self.body(pixels)), CELL))


class PoseReader(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Pictures (N, 3, H, W) in [-1, 1] -> (N, 1 + 3 x 18, H / 2, W / 2).

    For each cell a logit that it lies in the middle of a doll, and of that doll each joint's place from the cell, x and
    y, and a logit that it is seen.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = Body(width)
        self.dolls = nn.Conv2d(width, 1 + 3 * BODY, 3, padding=1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.dolls(self.body(pixels))
        return answer


class PoseTargets:
    """What the pose reader should answer: (N, …) of the cells; where `owned` is 0 only `middle` is asked."""

    def __init__(self, everybody: Sequence[People]) -> None:
        shape = (len(everybody), everybody[0].height // CELL, everybody[0].width // CELL)
        self.middle, self.owned = np.zeros(shape, np.float32), np.zeros(shape, bool)
        self.places = np.zeros((*shape, BODY, 2), np.float32)
        self.seen = np.zeros((*shape, BODY), np.float32)
        for number, people in enumerate(everybody):
            self._add(number, people)

    def _add(self, number: int, people: People) -> None:
        nearest = np.full(self.middle.shape[1:], np.inf)
        centres = cell_centres(*self.middle.shape[1:])
        for person in people.persons:
            seen = person.body[:, 2] > 0
            if not seen.any():
                continue
            distance = np.linalg.norm(centres - middle_of(person.body), axis=2) / CELL
            heat = np.exp(-np.square(distance) / 2)
            self.middle[number] = np.maximum(self.middle[number], heat)
            mine = (distance <= _REACH) & (distance < nearest)
            nearest[mine] = distance[mine]
            self.owned[number] |= mine
            self.places[number][mine] = (person.body[None, :, :2] - centres[mine][:, None]) / _UNIT
            self.seen[number][mine] = seen

    def loss(self, answer: torch.Tensor, numbers: list[int]) -> torch.Tensor:
        """Of the answers for these pictures."""
        middle, owned, places, seen = (
            torch.from_numpy(each[numbers]).to(answer.device)
            for each in (self.middle, self.owned, self.places, self.seen)
        )
        cells = answer.permute(0, 2, 3, 1)
        # Few cells are the middle of anything: each counts by how far off it is (focal loss, arXiv:1708.02002).
        off = (torch.sigmoid(cells[..., 0]) - middle).abs().square()
        loss = (off * F.binary_cross_entropy_with_logits(cells[..., 0], middle, reduction="none")).sum() / len(numbers)
        if owned.any():
            joints = cells[..., 1:][owned].view(-1, BODY, 3)
            wanted, visible = places[owned], seen[owned]
            off_place = (joints[..., :2] - wanted).abs().sum(dim=-1) * visible
            loss = loss + off_place.sum() / visible.sum().clamp(min=1)
            loss = loss + F.binary_cross_entropy_with_logits(joints[..., 2], visible)
        return loss


def people_in(answer: NDArray[np.float32], width: int, height: int, least: float = 0.3) -> People:
    """Everybody that the pose reader found in a picture of that size: (1 + 3 x 18, rows, columns) -> points.

    A middle is a cell that is surer than its neighbours and at least as sure as `least`. A joint's confidence is how
    sure the reader is of the doll times how sure it is to see the joint.
    """
    rows, columns = answer.shape[1:]
    sure = _sigmoid(answer[0])
    around = np.pad(sure, 2, constant_values=-1)
    windows = np.lib.stride_tricks.sliding_window_view(around, (5, 5)).max(axis=(2, 3))
    centres = cell_centres(rows, columns)
    persons = []
    for row, column in np.argwhere((sure >= windows) & (sure >= least)).tolist():
        joints = answer[1:, row, column].reshape(BODY, 3).astype(np.float64)
        places = centres[row, column] + joints[:, :2] * _UNIT
        confidence = sure[row, column] * _sigmoid(joints[:, 2])
        inside = ((places >= -0.5) & (places < [width - 0.5, height - 0.5])).all(axis=1)
        persons.append(Person(np.column_stack([places, confidence * inside * (confidence >= least / 2)])))
    return People(width, height, tuple(persons))


def middle_of(body: NDArray[np.float64]) -> NDArray[np.float64]:
    """The middle (x, y) of the points that are seen."""
    seen = body[body[:, 2] > 0, :2]
    middle: NDArray[np.float64] = (seen.min(axis=0) + seen.max(axis=0)) / 2
    return middle


def cell_centres(rows: int, columns: int) -> NDArray[np.float64]:
    """(rows, columns, 2) of x and y in pixels, whole numbers at the centres of pixels."""
    y, x = np.mgrid[:rows, :columns] * CELL + (CELL - 1) / 2
    return np.stack([x, y], axis=2)


def _sigmoid(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _block(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride=stride, padding=1), nn.GroupNorm(8, outside), nn.SiLU())
