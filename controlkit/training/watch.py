"""Is it working? A run looks at held-out rows now and then, always under the same noise at the same timesteps.

    silent   the loss of the base alone
    own      the loss under the ControlNet with the row's own map
    other    the loss under the ControlNet with the map of another row

    control gain   silent - own      what the ControlNet brings
    map gain       other - own       what the map brings: 0 as long as the map is not read

A ControlNet can gain without reading its map, by learning how these pictures look. The map gain tells the two apart.
Shares are of the silent loss, each row's averaged over the ranges of timesteps; the `Score` over the rows says how sure
they are. Of a net for several types each is looked at alone too, with the maps of the others black. Losses are what
the run minimises, at the timesteps it trains on, under plain noise. Where the base's decoder learns, the silent loss is
that of the decoder as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from controlkit.evaluation.scores import Score
from controlkit.models.map_hint import channels_of
from controlkit.training.batches import collate
from controlkit.training.draws import generator
from controlkit.training.dropout import ControlDropout
from controlkit.training.objective import encode_texts, latents, losses_of, predict_noised
from controlkit.training.speed import autocast
from controlkit.training.watch_config import BINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator

    from controlkit.data.rows import Row
    from controlkit.processes import Processes
    from controlkit.training.batches import Batch, ControlRows
    from controlkit.training.objective import Models

_EPOCH = -1  # of the rows looked at; those of the training begin at 0
_DIGITS = 6

ACQUIRED_SHARE = 0.01
"""Of the silent loss: with 95 % confidence both gains lie above it where control is acquired."""

ALONE = "by_type"
"""In a look: the gains of each of several types alone."""

ACQUIRED_LOOKS = 2
"""Looks in a row that must agree."""


@dataclass(frozen=True)
class _Trial:
    """Rows of one size at timesteps, as many as a training batch holds; everything but the ControlNet's answer is
    known. Maps stay on the CPU."""

    batch: Batch  # with the rows' own maps
    other: torch.Tensor
    x_0: torch.Tensor
    text: dict[str, Any]
    silent: torch.Tensor | None = None  # the base's prediction alone, where it stays what it is


class Watch:
    """Looks at `rows` through `data`, which reads them. Every process takes its share of the trials.

    `nets` are the networks that learn, by name, as they are to be handed over. They may be copies: each look is told
    anew.
    """

    def __init__(
        self,
        models: Models,
        nets: dict[str, Any],
        data: ControlRows,
        rows: list[Row],
        *,
        batch_size: int,
        processes: Processes,
        accelerator: Accelerator,
    ) -> None:
        self.rows, self.processes, self.accelerator = rows, processes, accelerator
        self.models, self.base_learns = models, "unet" in nets
        self.edges = _edges(models.objective.first_timestep, models.objective.last_timestep, data.timesteps)
        seen = copy.copy(data)
        seen.rows, seen.prompt_dropout, seen.control_dropout, seen.flip = rows, 0.0, ControlDropout(), False
        self.alone = data.types if len(data.types) > 1 else ()
        sizes = seen.sizes(processes)
        trials: list[list[tuple[int, int]]] = []
        for size in dict.fromkeys(sizes):
            alike = [row for row in range(len(rows)) if sizes[row] == size]
            places = list(itertools.product(alike, range(len(self.edges) - 1)))
            trials += [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
        self.places = [place for trial in trials for place in trial]
        self.trials = [self._prepare(self._with(nets), seen, places) for places in processes.slice(trials)]

    def look(self, step: int, nets: dict[str, Any]) -> dict[str, Any]:
        """What is seen of the networks behind that step, as a line of metrics.jsonl; the same on every process."""
        models = self._with(nets)
        losses = self.processes.gather([loss for trial in self.trials for loss in self._losses(models, trial)])
        by_place = [loss for _, loss in sorted(zip(self.places, losses, strict=True))]
        bins = len(self.edges) - 1
        values = torch.tensor(by_place, dtype=torch.float64)
        silent, own, other, moved, size, *alone = values.view(-1, bins, values.shape[1]).unbind(dim=2)
        # Under min-SNR weights a timestep of pure noise may have the weight 0.
        of_silent = silent.clamp(min=torch.finfo(silent.dtype).tiny)

        def share(gain: torch.Tensor) -> dict[str, Any]:
            return asdict(Score.of_values((gain / of_silent).mean(dim=1).numpy()))

        found: dict[str, Any] = {
            "step": step,
            "held_out_loss": own.mean().item(),
            "held_out_loss_silent": silent.mean().item(),
            "held_out_loss_other_map": other.mean().item(),
            "control_gain": (silent - own).mean().item(),
            "control_gain_share": share(silent - own),
            "map_gain_share": share(other - own),
            "influence": (moved.sum() / size.sum()).sqrt().item(),
            "by_timestep": {
                f"{first}-{end - 1}": {
                    "loss": own[:, part].mean().item(),
                    "silent": silent[:, part].mean().item(),
                    "other_map": other[:, part].mean().item(),
                }
                for part, (first, end) in enumerate(itertools.pairwise(self.edges))
            },
            "zero_convolutions": dict(zero_convolutions(models.controlnet)),
        }
        for place, type in enumerate(self.alone):
            with_own, with_other = alone[2 * place : 2 * place + 2]
            gains = {"control_gain_share": share(silent - with_own), "map_gain_share": share(with_other - with_own)}
            found.setdefault(ALONE, {})[type] = gains
        rounded: dict[str, Any] = _rounded(found)
        return rounded

    def _with(self, nets: dict[str, Any]) -> Models:
        unet = nets.get("unet", self.models.pipeline.unet)
        return dataclasses.replace(self.models, controlnet=nets["controlnet"], unet=unet)

    @torch.no_grad()
    def _prepare(self, models: Models, data: ControlRows, places: list[tuple[int, int]]) -> _Trial:
        count = len(self.rows)
        read = {row: data[_EPOCH, row] for row in {row for row, _ in places}}
        others, noise, timesteps = [], [], []
        for row, part in places:
            named = generator(*data.key(_EPOCH, row), "watch", part)
            timesteps.append(torch.randint(self.edges[part], self.edges[part + 1], (), generator=named))
            noise.append(torch.randn(read[row]["noise"].shape, generator=named))
            height, width = read[row]["control"].shape[-2:]
            others.append(data.hint(self.rows[(row + 1) % count], (width, height)))
        batch = dataclasses.replace(
            collate([read[row] for row, _ in places]),
            noise=torch.stack(noise),
            timesteps=torch.stack(timesteps),
            perturbation=None,
        )
        own, batch = batch.control, batch.to(self.accelerator.device)
        x_0, text = latents(models, batch), encode_texts(models, batch)
        kept = dataclasses.replace(batch, pixels=None, control=own)
        trial = _Trial(kept, torch.stack(others), x_0, text)
        return trial if self.base_learns else dataclasses.replace(trial, silent=self._silent(models, trial))

    def _silent(self, models: Models, trial: _Trial) -> torch.Tensor:
        silenced = dataclasses.replace(models, controlnet=_Silenced(models.controlnet))
        return self._predict(silenced, trial, trial.batch.control)

    def _predict(self, models: Models, trial: _Trial, control: torch.Tensor) -> torch.Tensor:
        batch = dataclasses.replace(trial.batch, control=control.to(trial.x_0.device))
        with autocast(trial.x_0.device, models.dtype):
            return predict_noised(models, batch, trial.x_0, trial.text).float()

    @torch.no_grad()
    def _losses(self, models: Models, trial: _Trial) -> list[list[float]]:
        """For each row of a trial the losses silent, own and other, the squares of how far the control moves the
        prediction and of the prediction, and the losses own and other of each type alone."""
        silent = self._silent(models, trial) if trial.silent is None else trial.silent
        own, other = (self._predict(models, trial, control) for control in (trial.batch.control, trial.other))
        alone = [
            self._predict(models, trial, _alone(control, place))
            for place, _ in enumerate(self.alone)
            for control in (trial.batch.control, trial.other)
        ]
        seen, of_each = (
            [losses_of(models, trial.batch, trial.x_0, each) for each in predicted]
            for predicted in ((silent, own, other), alone)
        )
        rows: list[list[float]] = torch.stack([*seen, _square(own - silent), _square(silent), *of_each], dim=1).tolist()
        return rows


class _Silenced(nn.Module):
    """A ControlNet of which nothing is heard: zeros in the shapes of its residuals."""

    def __init__(self, controlnet: nn.Module) -> None:
        super().__init__()
        self.controlnet = controlnet

    def forward(self, *args: Any, **options: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        down, middle = self.controlnet(*args, **options)
        return [torch.zeros_like(each) for each in down], torch.zeros_like(middle)


def zero_convolutions(controlnet: nn.Module) -> Iterator[tuple[str, float]]:
    """The root mean square of the weights of each convolution that began at zero, by name."""
    for name, parameter in controlnet.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")):
            block, _, kind = name.rpartition(".")
            if kind == "weight":
                yield block.removeprefix("controlnet_"), parameter.detach().float().square().mean().sqrt().item()


def looks_in(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that a look wrote."""
    return [row for row in metrics if "map_gain_share" in row]


def acquired_at(looks: list[dict[str, Any]]) -> int | None:
    """The step from which on the control is obeyed: the first of enough looks in a row at which both gains are clearly
    above zero; of several types those of each alone too."""
    agreeing: list[int] = []
    for look in looks:
        clear = all(is_clear(gains) for gains in (look, *look.get(ALONE, {}).values()))
        agreeing = [*agreeing, look["step"]] if clear else []
        if len(agreeing) == ACQUIRED_LOOKS:
            return agreeing[0]
    return None


def is_clear(gains: dict[str, Any]) -> bool:
    """Whether control and map gain, of a look or of one type in it, are surely above zero."""
    return all(gains[name]["low"] > ACQUIRED_SHARE for name in ("control_gain_share", "map_gain_share"))


def _alone(control: torch.Tensor, place: int) -> torch.Tensor:
    """The hints with the maps of one type, the others black."""
    alone = torch.zeros_like(control)
    alone[:, channels_of(place)] = control[:, channels_of(place)]
    return alone


def _edges(first: int, last: int | None, steps: int) -> list[int]:
    """Where the ranges of timesteps begin, and behind the last the end: `BINS` of them, fewer where there are fewer
    timesteps."""
    count = (steps if last is None else last + 1) - first
    bins = min(BINS, count)
    return [first + count * part // bins for part in range(bins + 1)]


def _square(values: torch.Tensor) -> torch.Tensor:
    return values.square().flatten(1).mean(dim=1)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
