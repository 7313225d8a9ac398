"""What a step of the ControlNet's training minimises, as settings: the loss, its weights, the noise, the timesteps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    loss: Literal["l2", "l1", "huber"] = "l2"
    huber_delta: float = 0.1  # loss=huber: squared up to this error, straight beyond, so that outliers pull less
    min_snr_gamma: float | None = None  # cap of the signal-to-noise weight (arXiv:2303.09556); 5 is usual
    noise_offset: float = 0.0  # standard deviation of a shift of the noise, one a channel: teaches overall brightness
    input_perturbation: float = 0.0  # more noise on the input than on the target (arXiv:2301.11706); 0.1 is usual
    timesteps: Literal["uniform", "cubic"] = "uniform"  # cubic: more often noisy ones, where the layout is decided
    first_timestep: int = 0
    last_timestep: int | None = None  # null: the last of the base's schedule
    zero_terminal_snr: bool = False  # rescale the schedule to end in pure noise; for a base that was trained so

    def problems(self) -> Iterator[str]:
        for name in ("huber_delta", "min_snr_gamma"):
            if (value := getattr(self, name)) is not None and not value > 0:
                yield f"objective.{name}={value:g}: expected more than 0"
        for name in ("noise_offset", "input_perturbation"):
            if (value := getattr(self, name)) < 0:
                yield f"objective.{name}={value:g}: expected 0 (none) or more"
        if self.first_timestep < 0:
            yield f"objective.first_timestep={self.first_timestep}: expected at least 0"
        if self.last_timestep is not None and self.last_timestep < self.first_timestep:
            yield (
                f"objective.last_timestep={self.last_timestep} is below objective.first_timestep={self.first_timestep}"
            )


def training_scheduler(base_scheduler: Mapping[str, Any], objective: ObjectiveConfig) -> dict[str, Any]:
    """The scheduler config that a run trains on and samples with: the base's, its betas rescaled where asked for."""
    if not objective.zero_terminal_snr:
        return dict(base_scheduler)
    from controlkit.diffusion.schedules import source_scheduler

    # Written out under a class that knows rescaling; not all do, and what a config leaves to its class would be lost.
    stated = {key: value for key, value in source_scheduler(base_scheduler).config.items() if not key.startswith("_")}
    # Steps are counted from the end, or the first of a sampling would miss the level that is pure noise.
    rescaled = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {**stated, **rescaled, "_class_name": "DDIMScheduler"}
