"""What a step minimises: the error of the locked base, under the ControlNet, in what it predicts of a noised latent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from controlkit.diffusion.forward import q_sample
from controlkit.diffusion.losses import min_snr_weight, per_item
from controlkit.diffusion.prediction import target
from controlkit.diffusion.schedules import from_scheduler_config
from controlkit.models.devices import able
from controlkit.training.objective_config import ObjectiveConfig, training_scheduler

if TYPE_CHECKING:
    from controlkit.models.bases import Base
    from controlkit.training.batches import Batch


@dataclass
class Models:
    """The networks of a run. `pipeline` holds the base, in the very object that will sample from it; `controlnet` and
    `unet` are called in training: as accelerate wraps them, where they learn."""

    base: Base
    pipeline: Any
    controlnet: torch.nn.Module
    unet: torch.nn.Module
    scheduler: dict[str, Any]  # config of the schedule trained on and sampled with
    alpha_bar: torch.Tensor  # (T,)
    weights: torch.Tensor | None = None  # (T,), of the loss
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    @staticmethod
    def of(
        base: Base,
        pipeline: Any,
        controlnet: torch.nn.Module,
        device: torch.device,
        objective: ObjectiveConfig | None = None,
        unet: torch.nn.Module | None = None,
    ) -> Models:
        objective = objective or ObjectiveConfig()
        scheduler = training_scheduler(base.scheduler, objective)
        schedule = from_scheduler_config(scheduler)
        weights = None
        if objective.min_snr_gamma is not None:
            weights = min_snr_weight(base.prediction_type, schedule.snr, objective.min_snr_gamma)
            weights = weights.to(torch.float32).to(device)
        # Computed in float64; devices without it (mps) hold the nearest float32.
        alpha_bar = schedule.alpha_bar.to(torch.float32).to(device)
        unet = pipeline.unet if unet is None else unet
        return Models(base, pipeline, controlnet, unet, scheduler, alpha_bar, weights, objective)

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.pipeline.unet.conv_in.weight.dtype  # of the part that is locked in any case
        return dtype


def control_loss(models: Models, batch: Batch) -> torch.Tensor:
    """The loss of a batch (ControlNet, Eq. 5), in the base's own parameterisation."""
    return row_losses(models, batch, latents(models, batch), encode_texts(models, batch)).mean()


def row_losses(models: Models, batch: Batch, x_0: torch.Tensor, text: dict[str, Any]) -> torch.Tensor:
    """(B,): each row's loss, of latents and texts that are encoded."""
    return losses_of(models, batch, x_0, predict_noised(models, batch, x_0, text))


def predict_noised(models: Models, batch: Batch, x_0: torch.Tensor, text: dict[str, Any]) -> torch.Tensor:
    """The prediction for latents that are hidden under the noise of the batch."""
    shown = batch.noise if batch.perturbation is None else batch.noise + batch.perturbation
    x_t = q_sample(x_0, shown, models.alpha_bar[batch.timesteps])
    return predict(models, x_t, batch.timesteps, batch.control, text)


def losses_of(models: Models, batch: Batch, x_0: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """(B,): how far off each row's prediction is, as the objective measures and weighs it."""
    objective, alpha_bar_t = models.objective, models.alpha_bar[batch.timesteps]
    wanted = target(models.base.prediction_type, x_0, batch.noise, alpha_bar_t)
    losses = per_item(objective.loss, predicted.float(), wanted, delta=objective.huber_delta, weight=batch.mask)
    return losses if models.weights is None else losses * models.weights[batch.timesteps]


def predict(
    models: Models, x_t: torch.Tensor, timesteps: torch.Tensor, control: torch.Tensor, text: dict[str, Any]
) -> torch.Tensor:
    """The base's prediction with the ControlNet's residuals joined in."""
    # What learns is kept in float32 (autocast where that is on); what is locked computes in its own precision.
    down, middle = models.controlnet(
        x_t, timesteps, controlnet_cond=control, return_dict=False, **_cast(text, x_t.dtype)
    )
    prediction: torch.Tensor = models.unet(
        x_t.to(models.dtype),
        timesteps,
        down_block_additional_residuals=[residual.to(models.dtype) for residual in down],
        mid_block_additional_residual=middle.to(models.dtype),
        return_dict=False,
        **_cast(text, models.dtype),
    )[0]
    return prediction


def latents(models: Models, batch: Batch) -> torch.Tensor:
    """x_0 (B, C, h, w) float32 of a batch, from the cache or from its pixels."""
    vae = models.pipeline.vae
    if batch.moments is not None:
        return draw_latents(vae, batch.moments, batch.vae_noise)
    assert batch.pixels is not None, "a batch has pixels or what the VAE made of them"
    return encode_pictures(vae, batch.pixels, batch.vae_noise)


def encode_pictures(vae: Any, pixels: torch.Tensor, vae_noise: torch.Tensor) -> torch.Tensor:
    """x_0 of pictures (B, 3, H, W) in [-1, 1]."""
    return draw_latents(vae, posterior_moments(vae, pixels), vae_noise)


@torch.no_grad()
def posterior_moments(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 2C, h, w): mean and log-variance of the VAE's posterior, as it gives them. This is what a cache keeps, so
    that the draw stays random."""
    with able(vae):
        moments: torch.Tensor = vae.encode(pixels.to(vae.dtype)).latent_dist.parameters
    return moments


def draw_latents(vae: Any, moments: torch.Tensor, vae_noise: torch.Tensor) -> torch.Tensor:
    """x_0 (B, C, h, w) float32: a draw from the VAE's posterior with the noise given, scaled as for the base."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution  # those that only read ahead go without

    posterior = DiagonalGaussianDistribution(moments)
    drawn = posterior.mean.float() + posterior.std.float() * vae_noise
    x_0: torch.Tensor = (drawn - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
    return x_0


def encode_texts(models: Models, batch: Batch) -> dict[str, Any]:
    """What UNet and ControlNet read beside the latents, from the cache or by the pipeline's own encoding.

    An emptied prompt becomes what the pipeline uses for "no prompt": the encoded empty text, or zeros where the base
    asks for them (SDXL).
    """
    text = batch.encoded_texts or encode_prompts(models, batch.texts, batch.noise.device)
    hidden = text["hidden"]
    if not models.base.is_xl:
        return {"encoder_hidden_states": hidden}
    pooled = text["pooled"]
    if models.pipeline.config.force_zeros_for_empty_prompt:
        hidden = hidden.masked_fill(batch.emptied[:, None, None], 0)
        pooled = pooled.masked_fill(batch.emptied[:, None], 0)
    return {
        "encoder_hidden_states": hidden,
        "added_cond_kwargs": {"text_embeds": pooled, "time_ids": batch.sizes},
    }


@torch.no_grad()
def encode_prompts(models: Models, texts: list[str], device: torch.device) -> dict[str, torch.Tensor]:
    """`hidden` (B, tokens, width), for SDXL `pooled` (B, width) too, by the pipeline's own encoding, which is that of
    inference."""
    if not models.base.is_xl:
        hidden, _ = models.pipeline.encode_prompt(texts, device, 1, False)
        return {"hidden": hidden}
    hidden, _, pooled, _ = models.pipeline.encode_prompt(
        texts, device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return {"hidden": hidden, "pooled": pooled}


def _cast(text: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {key: _cast(value, dtype) if isinstance(value, dict) else value.to(dtype) for key, value in text.items()}
