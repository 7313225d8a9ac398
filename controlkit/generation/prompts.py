"""Prompts as embeddings, where diffusers' pipelines do not read them as asked: weights, more than one chunk, and
earlier layers of the text encoder.

A weight w multiplies what the encoder made of a token; then the mean over the chunk is made what it was, so that
emphasis does not make the whole louder. This is the rule of webuis, whose prompts are what people copy. (compel and
ComfyUI go from the empty prompt's embedding w times the way, and their prompts look otherwise here.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from controlkit.generation.prompt_chunks import Chunk, chunks, empty_chunk
from controlkit.models.formats.embeddings import rewrite

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from controlkit.generation.plan import Plan
    from controlkit.generation.prompt_syntax import Prompt
    from controlkit.models.bases import Base
    from controlkit.models.formats.embeddings import Embedding

# A smaller share of the spread is what rounding leaves of 0 (a layer norm without bias), which nothing restores.
_NO_MEAN = 1e-4


def prompt_arguments(plan: Plan, pipeline: Any) -> dict[str, Any]:
    """Both prompts as the pipeline takes them: as text if it can read them, else as embeddings."""
    request = plan.request
    prompt, negative = request.prompts
    read = _Reader(plan, pipeline)
    length = read.length(prompt, negative)
    if _is_read_as_text(plan, length):
        return {
            "prompt": rewrite(prompt.text, plan.embeddings),
            "negative_prompt": rewrite(negative.text, plan.embeddings) or None,
        }
    embeds, pooled = read(prompt, length, skip=request.clip_skip - 1)
    arguments = {"prompt_embeds": embeds} | ({} if pooled is None else {"pooled_prompt_embeds": pooled})
    zeros = plan.base.is_xl and pipeline.config.force_zeros_for_empty_prompt and not negative.text
    if plan.guided and not zeros:  # zeros the pipeline makes itself
        embeds, pooled = read(negative, length, skip=0)  # as in diffusers, no layer is skipped for what is not wanted
        arguments["negative_prompt_embeds"] = embeds
        if pooled is not None:
            arguments["negative_pooled_prompt_embeds"] = pooled
    return arguments


def chunks_read(plan: Plan) -> int:
    """How many chunks of embeddings the prompts become; 0: the pipeline reads them as text."""
    tokenizers = [_tokenizer(plan.base, suffix) for suffix in plan.base.text_parts()]
    length = _length(tokenizers, plan.request.prompts, plan.embeddings)
    return 0 if _is_read_as_text(plan, length) else length


@lru_cache(maxsize=2)  # of the base that is painted with
def _tokenizer(base: Base, suffix: str) -> Any:
    return base.load(f"tokenizer{suffix}")


def _is_read_as_text(plan: Plan, length: int) -> bool:
    return length == 1 and plan.request.clip_skip == 1 and all(prompt.plain for prompt in plan.request.prompts)


def _length(tokenizers: list[Any], prompts: Iterable[Prompt], embeddings: list[Embedding]) -> int:
    """Chunks of the longest."""
    return max(len(chunks(each, prompt, embeddings)) for each in tokenizers for prompt in prompts)


class _Reader:
    """The tokenizers and text encoders of a pipeline."""

    def __init__(self, plan: Plan, pipeline: Any) -> None:
        self.is_xl, self.embeddings, self.device = plan.base.is_xl, plan.embeddings, pipeline._execution_device
        self.tokenizers = [getattr(pipeline, f"tokenizer{suffix}") for suffix in plan.base.text_parts()]
        self.encoders = [getattr(pipeline, f"text_encoder{suffix}") for suffix in plan.base.text_parts()]

    def length(self, *prompts: Prompt) -> int:
        return _length(self.tokenizers, prompts, self.embeddings)

    def __call__(self, prompt: Prompt, length: int, *, skip: int) -> tuple[Tensor, Tensor | None]:
        """(1, tokens, width) in so many chunks, and for SDXL the pooled text of the first."""
        read, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True):
            own = chunks(tokenizer, prompt, self.embeddings)
            own += [empty_chunk(tokenizer)] * (length - len(own))
            # One by one, as diffusers reads its single chunk: kernels round otherwise at another batch size.
            states = [self.encode(encoder, chunk, skip) for chunk in own]
            read.append(torch.cat([hidden for hidden, _ in states], dim=1))
            pooled = states[0][1]
        return torch.cat(read, dim=-1), pooled if self.is_xl else None

    @torch.no_grad()
    def encode(self, encoder: Any, chunk: Chunk, skip: int) -> tuple[Tensor, Tensor]:
        """A chunk as its family reads it, `skip` layers before; and its first output."""
        ids = torch.tensor([chunk.ids], device=self.device)
        masked = getattr(encoder.config, "use_attention_mask", None) and not self.is_xl
        mask = torch.tensor([chunk.mask], device=self.device) if masked else None
        output = encoder(ids, attention_mask=mask, output_hidden_states=True)
        if self.is_xl:
            hidden = output.hidden_states[-2 - skip]
        elif skip:
            # The pipelines' own `clip_skip` looks for this norm where transformers 5 no longer has it.
            hidden = getattr(encoder, "text_model", encoder).final_layer_norm(output.hidden_states[-1 - skip])
        else:
            hidden = output[0]
        return weighed(hidden, chunk.weights), output[0]


def weighed(hidden: Tensor, weights: list[float]) -> Tensor:
    """(1, tokens, width) with each token as often as its weight says, and the mean of before."""
    if all(weight == 1 for weight in weights):
        return hidden
    exact = hidden.float()
    stronger = exact * torch.tensor(weights, device=hidden.device)[:, None]
    if exact.mean().abs() > _NO_MEAN * exact.std():
        stronger = stronger * (exact.mean() / stronger.mean())
    return stronger.to(hidden.dtype)
