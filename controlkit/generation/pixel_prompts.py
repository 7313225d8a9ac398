"""A diffusion model in pixels that reads prompts. diffusers has a pipeline for each of its neighbours (DDPM without
text, Stable Diffusion in latents) and none for this one, so the folder's layout is diffusers' and its class is ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusers import DiffusionPipeline

from controlkit.generation.unguided import paint_pixels

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class PixelPromptPipeline(DiffusionPipeline):  # type: ignore[misc]
    """UNet2DConditionModel over pixels, CLIPTextModel, CLIPTokenizer and a scheduler."""

    def __init__(self, unet: Any, text_encoder: Any, tokenizer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler)

    def __call__(
        self, prompts: list[str], *, seeds: list[int], sampler: str, steps: int, eta: float = 0.0, cfg: float = 4.0
    ) -> list[NDArray[np.uint8]]:
        """A picture a prompt, together."""
        return paint_pixels(
            self.unet,
            self.scheduler.config,
            seeds=seeds,
            sampler=sampler,
            steps=steps,
            eta=eta,
            given={"encoder_hidden_states": self.encode(prompts)},
            empty={"encoder_hidden_states": self.encode([""] * len(prompts))},
            cfg=cfg,
        )

    def encode(self, prompts: list[str]) -> torch.Tensor:
        """(N, tokens, width)."""
        import torch

        with torch.no_grad():
            tokens = tokenize(self.tokenizer, prompts).to(self.text_encoder.device)
            states: torch.Tensor = self.text_encoder(tokens).last_hidden_state
        return states


def tokenize(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """(N, tokens), each padded or cut to the longest prompt that the tokenizer allows."""
    encoded = tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    tokens: torch.Tensor = encoded.input_ids
    return tokens
