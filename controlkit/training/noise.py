"""What is drawn for a row beside its content: the noise that hides it, and how deeply."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from controlkit.training.draws import generator

if TYPE_CHECKING:
    from controlkit.training.objective_config import ObjectiveConfig


def draw_noise(
    objective: ObjectiveConfig, key: tuple[object, ...], latent_shape: tuple[int, int, int], timesteps: int
) -> dict[str, torch.Tensor]:
    """The fields of a `Batch` that are drawn, for one row; `key` is (seed, epoch, what the row holds)."""
    noise = torch.randn(latent_shape, generator=generator(*key, "noise"))
    if objective.noise_offset:
        shift = torch.randn((latent_shape[0], 1, 1), generator=generator(*key, "offset"))
        noise = noise + objective.noise_offset * shift
    drawn = {
        "noise": noise,
        "vae_noise": torch.randn(latent_shape, generator=generator(*key, "vae")),
        "timesteps": draw_timestep(objective, key, timesteps),
    }
    if objective.input_perturbation:
        more = torch.randn(latent_shape, generator=generator(*key, "perturbation"))
        drawn["perturbation"] = objective.input_perturbation * more
    return drawn


def draw_timestep(objective: ObjectiveConfig, key: tuple[object, ...], timesteps: int) -> torch.Tensor:
    """() int64 of the range that the objective allows.

    Cubic: the share of draws at or above t is (1 - t / T)^(1/3), T2I-Adapter's (arXiv:2302.08453).
    """
    last = timesteps - 1 if objective.last_timestep is None else objective.last_timestep
    count = last + 1 - objective.first_timestep
    random = generator(*key, "timestep")
    if objective.timesteps == "cubic":
        u = torch.rand((), generator=random, dtype=torch.float64)
        return last - (count * u**3).long()
    return objective.first_timestep + torch.randint(count, (), generator=random)
