"""Prompts as embeddings, where diffusers' pipelines do not read them as asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def read_earlier_layer(parts: dict[str, Any], prompt: str, skip: int) -> torch.Tensor:
    """(1, tokens, width): a prompt as SD 1.x and 2.x read it, `skip` layers before the last.

    The pipelines' own `clip_skip` looks for the encoder's last norm where transformers 5 no longer has it.
    """
    import torch

    tokenizer, encoder = parts["tokenizer"], parts["text_encoder"]
    inputs = tokenizer(
        prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    masked = getattr(encoder.config, "use_attention_mask", None)
    with torch.no_grad():
        states = encoder(
            inputs.input_ids.to(encoder.device),
            attention_mask=inputs.attention_mask.to(encoder.device) if masked else None,
            output_hidden_states=True,
        ).hidden_states[-1 - skip]
        inner = getattr(encoder, "text_model", encoder)
        read: torch.Tensor = inner.final_layer_norm(states)
    return read
