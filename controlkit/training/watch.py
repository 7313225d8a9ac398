"""Is it working? A run looks at held-out rows now and then, always under the same noise at the same timesteps.

    silent   the loss of the base alone
    own      the loss under the ControlNet with the row's own map
    other    the loss under the ControlNet with the map of another row

    control gain   silent - own      what the ControlNet brings
    map gain       other - own       what the map brings: 0 as long as the map is not read

A ControlNet can gain without reading its map, by learning how these pictures look. The map gain tells the two apart.
Shares are of the silent loss, each row's averaged over the ranges of timesteps; the `Score` over the rows says how sure
they are.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from controlkit.diffusion.forward import q_sample
from controlkit.diffusion.prediction import target
from controlkit.evaluation.scores import Score
from controlkit.training.batches import collate
from controlkit.training.draws import generator
from controlkit.training.objective import encode_pictures, encode_texts, predict
from controlkit.training.watch_config import BINS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from accelerate import Accelerator

    from controlkit.data.rows import Row
    from controlkit.processes import Processes
    from controlkit.training.batches import ControlRows
    from controlkit.training.objective import Models

_EPOCH = -1  # of the rows looked at; those of the training begin at 0
_DIGITS = 6

ACQUIRED_SHARE = 0.01
"""Of the silent loss: with 95 % confidence both gains lie above it where control is acquired."""

ACQUIRED_LOOKS = 2
"""Looks in a row that must agree."""


@dataclass(frozen=True)
class _Trial:
    """Rows at timesteps, as many as a training batch holds; everything but the ControlNet's answer is known."""

    x_t: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor
    own: torch.Tensor  # control maps
    other: torch.Tensor
    text: dict[str, Any]
    silent: torch.Tensor  # the base's prediction alone


class Watch:
    """Looks at `rows` through `data`, which reads them. Every process takes its share of the trials."""

    def __init__(
        self,
        models: Models,
        controlnet: nn.Module,
        data: ControlRows,
        rows: list[Row],
        *,
        batch_size: int,
        processes: Processes,
        accelerator: Accelerator,
    ) -> None:
        self.rows, self.processes, self.accelerator = rows, processes, accelerator
        self.controlnet = controlnet
        self.models = dataclasses.replace(models, controlnet=controlnet)
        self.steps = data.timesteps
        seen = copy.copy(data)
        seen.rows, seen.prompt_dropout = rows, 0.0
        places = [(row, part) for row in range(len(rows)) for part in range(BINS)]
        trials = [places[start : start + batch_size] for start in range(0, len(places), batch_size)]
        self.trials = [self._prepare(seen, places) for places in processes.slice(trials)]

    def look(self, step: int) -> dict[str, Any]:
        """What is seen behind that step, as a line of metrics.jsonl; the same on every process."""
        losses = self.processes.gather([loss for trial in self.trials for loss in self._losses(trial)])
        silent, own, other, moved, size = torch.tensor(losses, dtype=torch.float64).view(-1, BINS, 5).unbind(dim=2)
        edges = [self.steps * part // BINS for part in range(BINS + 1)]
        found = {
            "step": step,
            "held_out_loss": own.mean().item(),
            "held_out_loss_silent": silent.mean().item(),
            "held_out_loss_other_map": other.mean().item(),
            "control_gain": (silent - own).mean().item(),
            "control_gain_share": asdict(Score.of_values(((silent - own) / silent).mean(dim=1).numpy())),
            "map_gain_share": asdict(Score.of_values(((other - own) / silent).mean(dim=1).numpy())),
            "influence": (moved.sum() / size.sum()).sqrt().item(),
            "by_timestep": {
                f"{edges[part]}-{edges[part + 1] - 1}": {
                    "loss": own[:, part].mean().item(),
                    "silent": silent[:, part].mean().item(),
                    "other_map": other[:, part].mean().item(),
                }
                for part in range(BINS)
            },
            "zero_convolutions": dict(zero_convolutions(self.controlnet)),
        }
        rounded: dict[str, Any] = _rounded(found)
        return rounded

    @torch.no_grad()
    def _prepare(self, data: ControlRows, places: list[tuple[int, int]]) -> _Trial:
        device = self.accelerator.device
        count = len(self.rows)
        read = {row: data[_EPOCH, row] for row, _ in places}
        others = [data.picture_and_map(self.rows[(row + 1) % count])[1] for row, _ in places]
        noise, timesteps = [], []
        for row, part in places:
            named = generator(data.seed, _EPOCH, self.rows[row].content, self.rows[row].file_name, "watch", part)
            first, last = self.steps * part // BINS, self.steps * (part + 1) // BINS
            timesteps.append(torch.randint(first, last, (), generator=named))
            noise.append(torch.randn(data.latent_shape, generator=named))
        batch = collate([dict(read[row]) for row, _ in places])
        batch = dataclasses.replace(batch, noise=torch.stack(noise), timesteps=torch.stack(timesteps)).to(device)
        x_0 = encode_pictures(self.models.pipeline.vae, batch.pixels, batch.vae_noise)
        alpha_bar_t = self.models.alpha_bar[batch.timesteps]
        other = torch.stack([torch.from_numpy(each).permute(2, 0, 1).float() / 255 for each in others])
        trial = _Trial(
            x_t=q_sample(x_0, batch.noise, alpha_bar_t),
            timesteps=batch.timesteps,
            target=target(self.models.base.prediction_type, x_0, batch.noise, alpha_bar_t),
            own=batch.control.cpu(),
            other=other,
            text=encode_texts(self.models, batch),
            silent=torch.empty(0),
        )
        return dataclasses.replace(trial, silent=self._silent(trial))

    def _silent(self, trial: _Trial) -> torch.Tensor:
        silenced = dataclasses.replace(self.models, controlnet=_Silenced(self.controlnet))
        return self._predict(silenced, trial, trial.own)

    def _predict(self, models: Models, trial: _Trial, control: torch.Tensor) -> torch.Tensor:
        with self.accelerator.autocast():
            control = control.to(trial.x_t.device)
            return predict(models, trial.x_t, trial.timesteps, control, trial.text).float()

    @torch.no_grad()
    def _losses(self, trial: _Trial) -> list[list[float]]:
        """For each row of a trial the losses silent, own and other, and the squares of how far the control moves the
        prediction and of the prediction."""
        learns = any(parameter.requires_grad for parameter in self.models.pipeline.unet.parameters())
        silent = self._silent(trial) if learns else trial.silent
        own, other = (self._predict(self.models, trial, control) for control in (trial.own, trial.other))
        numbers = [_square(each - trial.target) for each in (silent, own, other)]
        rows: list[list[float]] = torch.stack([*numbers, _square(own - silent), _square(silent)], dim=1).tolist()
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
    above zero."""
    agreeing: list[int] = []
    for look in looks:
        gains = (look["control_gain_share"], look["map_gain_share"])
        clear = all(gain["low"] > ACQUIRED_SHARE for gain in gains)
        agreeing = [*agreeing, look["step"]] if clear else []
        if len(agreeing) == ACQUIRED_LOOKS:
            return agreeing[0]
    return None


def _square(values: torch.Tensor) -> torch.Tensor:
    return values.square().flatten(1).mean(dim=1)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
