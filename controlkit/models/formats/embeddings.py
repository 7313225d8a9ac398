"""Textual inversion: a word of the prompt that stands for learned vectors.

In the prompt it is the file's name, in any case, also as `embedding:NAME`, and the token in the file where that stands
in angle brackets. We rewrite prompts ourselves, to one token of its own for each vector: diffusers replaces letter by
letter, so that "easynegative" for EasyNegative leaves out all vectors but the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.formats import detect
from controlkit.models.formats.reading import TensorFile, read_tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlkit.models.bases import Base

# SDXL: one matrix for each text encoder. "_out" vectors of OneTrainer enter behind the encoder and are not for words.
_BOTH = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x"}


@dataclass(frozen=True)
class Embedding:
    """`names` are how prompts call it, `keys` say which tensor of the file is for which text encoder."""

    file: TensorFile
    names: tuple[str, ...]
    keys: dict[str, str]
    count: int  # vectors

    def tokens(self, number: int) -> list[str]:
        """Of the file of that number; none of them is anything that a prompt or a vocabulary holds."""
        return [f"<|vector-{number}-{each}|>" for each in range(self.count)]


def find_embeddings(base: Base, files: tuple[Path, ...]) -> list[Embedding]:
    """Refused where one is no textual inversion or was made for another family. Loads no weight."""
    found = [_read(base, path) for path in files]
    names = [name.lower() for each in found for name in each.names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RequestError(f"--embedding: two files are called {twice[0]!r} in prompts; rename one")
    return found


def add_embeddings(parts: dict[str, Any], embeddings: list[Embedding]) -> None:
    """Give tokenizers and text encoders of a loaded base a token for each vector."""
    for number, embedding in enumerate(embeddings):
        for component, key in embedding.keys.items():
            tokenizer, encoder = parts[component.replace("text_encoder", "tokenizer")], parts[component]
            tokens = embedding.tokens(number)
            tokenizer.add_tokens(tokens)
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            weight = encoder.get_input_embeddings().weight.data
            vectors = embedding.file[key]
            weight[tokenizer.convert_tokens_to_ids(tokens)] = vectors.reshape(len(tokens), -1).to(weight)
            for module in encoder.modules():
                # Old configs have it wrong, and transformers then takes the largest token for the end of the text.
                if hasattr(module, "eos_token_id"):
                    module.eos_token_id = tokenizer.eos_token_id


def rewrite(prompt: str, embeddings: list[Embedding]) -> str:
    """The prompt with the tokens of each embedding in the place of its name."""
    named = {name: embedding.tokens(number) for number, embedding in enumerate(embeddings) for name in embedding.names}
    for name in sorted(named, key=len, reverse=True):
        pattern = rf"(?<!\w)(?:embedding:)?{re.escape(name)}(?!\w)"
        tokens = "".join(named[name])
        prompt = re.sub(pattern, lambda _, tokens=tokens: tokens, prompt, flags=re.IGNORECASE)  # type: ignore[misc]
    return prompt


def is_inside(token: str) -> bool:
    """Whether a token is a vector of an embedding, but not its first: no place to part a text."""
    return re.fullmatch(r"<\|vector-\d+-[1-9]\d*\|>", token) is not None


def say_unused(embeddings: list[Embedding], prompts: tuple[str, ...], say: Callable[[str], None]) -> None:
    rewritten = "".join(rewrite(prompt, embeddings) for prompt in prompts)
    for number, embedding in enumerate(embeddings):
        if embedding.tokens(number)[0] not in rewritten:
            say(f"--embedding {embedding.file.path}: no prompt holds its name {embedding.names[0]!r}; it does nothing")


def _read(base: Base, path: Path) -> Embedding:
    file = read_tensors(path.expanduser())
    if (kind := detect.kind_of(file)) != detect.EMBEDDING:
        raise RequestError(f"--embedding {path} is: {kind}; expected a textual inversion")
    widths = {f"text_encoder{suffix}": int(base.config(f"text_encoder{suffix}")["hidden_size"])
              for suffix in base.text_parts()}  # fmt: skip
    keys = _keys(file, path)
    shapes = {component: file.shapes[key] for component, key in keys.items()}
    found = {component: shape[-1] for component, shape in shapes.items() if shape and 0 not in shape}
    if found != widths:
        made_for = "SDXL" if len(keys) == 2 else _FAMILIES.get(next(iter(found.values()), 0), "another network")
        raise RequestError(
            f"--embedding {path} was made for {made_for} (vectors of {_numbers(found)}), base {base.name!r} is "
            f"{base.family} (vectors of {_numbers(widths)}); choose an embedding of its family"
        )
    counts = {1 if len(shape) == 1 else shape[0] for shape in shapes.values()}
    if len(counts) > 1:
        raise RequestError(f"--embedding {path}: its two matrices differ in vectors; get it again")
    inside = [key for key in keys.values() if re.fullmatch(r"<[^<>|]+>", key)]
    return Embedding(file, (path.stem, *inside), keys, counts.pop())


def _keys(file: TensorFile, path: Path) -> dict[str, str]:
    if any(name in file for name in _BOTH):
        return {component: name for name, component in _BOTH.items() if name in file}
    inner = [name for name in file if name.startswith("string_to_param.")]
    names = inner or [name for name in file if file.shapes[name]]
    if len(names) != 1:
        raise RequestError(f"--embedding {path} holds {len(names)} words; expected one a file")
    return {"text_encoder": names[0]}


def _numbers(widths: dict[str, int]) -> str:
    return " and ".join(str(width) for width in widths.values())
