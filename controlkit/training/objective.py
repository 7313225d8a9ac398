"""What a step minimises: the error of the locked base, under the ControlNet, in what it predicts of a noised latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch.nn import functional as F

from controlkit.diffusion.forward import q_sample
from controlkit.diffusion.prediction import target
from controlkit.diffusion.schedules import from_scheduler_config

if TYPE_CHECKING:
    from controlkit.models.bases import Base
    from controlkit.training.batches import Batch


@dataclass
class Models:
    """The networks of a run. `pipeline` holds the locked base, in the very object that will sample from it;
    `controlnet` is the one that learns, as accelerate wraps it."""

    base: Base
    pipeline: Any
    controlnet: torch.nn.Module
    alpha_bar: torch.Tensor  # (T,) float64

    @staticmethod
    def of(base: Base, pipeline: Any, controlnet: torch.nn.Module, device: torch.device) -> Models:
        alpha_bar = torch.as_tensor(from_scheduler_config(base.scheduler).alpha_bar, dtype=torch.float64)
        # Devices without float64 (mps) get the nearest float32.
        return Models(base, pipeline, controlnet, alpha_bar.to(torch.float32).to(device))

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.pipeline.unet.dtype
        return dtype


def control_loss(models: Models, batch: Batch) -> torch.Tensor:
    """Mean squared error of the prediction (ControlNet, Eq. 5), in the base's own parameterisation."""
    x_0 = latents(models, batch)
    alpha_bar_t = models.alpha_bar[batch.timesteps]
    x_t = q_sample(x_0, batch.noise, alpha_bar_t)
    predicted = predict(models, x_t, batch.timesteps, batch.control, encode_texts(models, batch))
    return F.mse_loss(predicted.float(), target(models.base.prediction_type, x_0, batch.noise, alpha_bar_t))


def predict(
    models: Models, x_t: torch.Tensor, timesteps: torch.Tensor, control: torch.Tensor, text: dict[str, Any]
) -> torch.Tensor:
    """The base's prediction with the ControlNet's residuals joined in."""
    # The ControlNet learns in float32 (autocast where that is on); the locked base computes in its own precision.
    down, middle = models.controlnet(
        x_t, timesteps, controlnet_cond=control, return_dict=False, **_cast(text, x_t.dtype)
    )
    prediction: torch.Tensor = models.pipeline.unet(
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
    dtype = vae.dtype
    overflows = dtype == torch.float16 and vae.config.force_upcast  # SDXL's first VAE gives NaN in half precision
    if overflows:
        vae.to(torch.float32)
    moments: torch.Tensor = vae.encode(pixels.to(vae.dtype)).latent_dist.parameters
    if overflows:
        vae.to(dtype)
    return moments


def draw_latents(vae: Any, moments: torch.Tensor, vae_noise: torch.Tensor) -> torch.Tensor:
    """x_0 (B, C, h, w) float32: a draw from the VAE's posterior with the noise given, scaled as for the base."""
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
