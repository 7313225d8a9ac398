"""Prompts in chunks: text encoders read a fixed number of tokens, and a longer prompt is read in several goes.

As in webuis: each chunk has a beginning and an end of its own; one that is full ends behind its last comma, where one
is near, so that no phrase is torn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.formats.embeddings import is_inside, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlkit.generation.prompt_syntax import Prompt
    from controlkit.models.bases import Base
    from controlkit.models.formats.embeddings import Embedding

MOST_TOKENS = 1500
"""Twenty chunks of CLIP's 75: a prompt beyond that is a file that was pasted by mistake."""

COMMA_REACH = 20  # tokens before the end of a chunk in which a comma ends it, as in webuis


@dataclass(frozen=True)
class Chunk:
    """All that the encoder reads in one go: tokens, their weights, and which of them say something."""

    ids: list[int]
    weights: list[float]
    mask: list[int]


def chunks(tokenizer: Any, prompt: Prompt, embeddings: list[Embedding]) -> list[Chunk]:
    """At least one; every part of the prompt begins a new one."""
    room = tokenizer.model_max_length - 2  # beside beginning and end
    made = []
    for part in prompt.parts:
        ids: list[int] = []
        weights: list[float] = []
        for piece in part:
            found = tokenizer(rewrite(piece.text, embeddings), add_special_tokens=False, verbose=False).input_ids
            ids += found
            weights += [piece.weight] * len(found)
        end = _end(tokenizer, ids, 0, room)
        made.append(_chunk(tokenizer, ids[:end], weights[:end], room))
        while end < len(ids):
            start, end = end, _end(tokenizer, ids, end, room)
            made.append(_chunk(tokenizer, ids[start:end], weights[start:end], room))
    return made


def empty_chunk(tokenizer: Any) -> Chunk:
    """What fills up the shorter of two prompts."""
    return _chunk(tokenizer, [], [], tokenizer.model_max_length - 2)


def check_length(
    base: Base, prompts: dict[str, Prompt], embeddings: list[Embedding], say: Callable[[str], None]
) -> None:
    """Refuse prompts (name -> prompt) that are far too long, and say where one is read in chunks. Loads no weight."""
    tokenizer = _tokenizer(base)
    for number, embedding in enumerate(embeddings):
        tokenizer.add_tokens(embedding.tokens(number))
    for name, prompt in prompts.items():
        made = chunks(tokenizer, prompt, embeddings)
        tokens = sum(sum(chunk.mask) - 2 for chunk in made)
        if tokens > MOST_TOKENS:
            raise RequestError(f"{name}: {tokens} tokens; expected at most {MOST_TOKENS}, shorten it")
        if len(made) > 1:
            say(f"{name}: {tokens} tokens are read in {len(made)} chunks")


@lru_cache(maxsize=2)
def _tokenizer(base: Base) -> Any:
    """For counting alone: those that paint get their tokens anew."""
    return base.load("tokenizer")


def _end(tokenizer: Any, ids: list[int], start: int, room: int) -> int:
    full = start + room
    if len(ids) <= full:
        return len(ids)
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    behind = range(full + 1, full - COMMA_REACH, -1)  # a comma that would come next is none to go back from
    end = next((min(each, full) for each in behind if ids[each - 1] == comma), full)
    whole = end
    while whole > start and is_inside(tokenizer.convert_ids_to_tokens(ids[whole])):
        whole -= 1
    return whole if whole > start else end


def _chunk(tokenizer: Any, ids: list[int], weights: list[float], room: int) -> Chunk:
    left = room - len(ids)
    return Chunk(
        [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * left],
        [1.0, *weights, 1.0, *[1.0] * left],
        [1] * (len(ids) + 2) + [0] * left,
    )
