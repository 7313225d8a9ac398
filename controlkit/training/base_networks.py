"""The networks of a base, built from its config in diffusers' and transformers' own classes."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.diffusion.schedules import schedule
from controlkit.errors import RequestError

if TYPE_CHECKING:
    from controlkit.training.base_config import BaseConfig

# The names of diffusers for the schedules of controlkit.diffusion.schedules.
_BETA_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}


def build_pixel_unet(config: BaseConfig, classes: int) -> Any:
    """(B, 3, S, S) -> (B, 3 or 6, S, S). Class number `classes` is "no class", for guidance."""
    from diffusers import UNet2DModel

    unet, levels = config.unet, zip(config.unet.widths, config.unet.attention, strict=True)
    down = tuple("AttnDownBlock2D" if attends else "DownBlock2D" for _, attends in levels)
    return UNet2DModel(
        sample_size=config.data.size,
        in_channels=3,
        out_channels=6 if config.variance == "learned_range" else 3,
        block_out_channels=unet.widths,
        layers_per_block=unet.layers,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        attention_head_dim=unet.widths[-1] // unet.heads,
        norm_num_groups=unet.groups,
        resnet_time_scale_shift="default" if unet.time == "add" else "scale_shift",
        num_class_embeds=classes + 1 if classes else None,
    )


def build_prompt_unet(config: BaseConfig, channels: int, side: int) -> Any:
    """Stable Diffusion's UNet, which reads the text encoder's output, over latents or pixels of that size."""
    from diffusers import UNet2DConditionModel

    unet = config.unet
    levels = list(zip(unet.widths, unet.attention, strict=True))
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for _, attends in levels)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=2 * channels if config.variance == "learned_range" else channels,
        block_out_channels=unet.widths,
        layers_per_block=unet.layers,
        down_block_types=down,
        up_block_types=tuple(name.replace("Down", "Up") for name in reversed(down)),
        attention_head_dim=unet.heads,
        norm_num_groups=unet.groups,
        cross_attention_dim=config.text.width,
        resnet_time_scale_shift="default" if unet.time == "add" else "scale_shift",
    )


def build_vae(config: BaseConfig) -> Any:
    """An autoencoder that halves the grid between its levels."""
    from diffusers import AutoencoderKL

    levels = len(config.vae.widths)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae.widths,
        layers_per_block=config.vae.layers,
        latent_channels=config.vae.latent_channels,
        norm_num_groups=config.vae.groups,
        sample_size=config.data.size,
        force_upcast=False,
    )


def build_tokenizer(config: BaseConfig, captions: list[str]) -> Any:
    """CLIP's tokenizer with a vocabulary learned from the captions: their commonest words are one token each."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(ByteLevel.alphabet())  # any byte, inside a word and at its end: every text has tokens
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    counts = Counter(word for caption in captions for word in re.findall(r"[^\W\d_]+|[^\s\w]+", caption.lower()))
    merges: dict[tuple[str, str], str] = {}
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        learn_word("".join(text for text, _ in to_bytes.pre_tokenize_str(word)), merges)
        if len(tokens) + len(merges) + 2 > config.text.vocabulary:
            break
    tokens += [*dict.fromkeys(merges.values()), start, end]
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        files[0].write_text(json.dumps({token: number for number, token in enumerate(tokens)}), encoding="utf-8")
        files[1].write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n", encoding="utf-8")
        return CLIPTokenizer(*map(str, files), model_max_length=config.text.tokens)


def learn_word(word: str, merges: dict[tuple[str, str], str]) -> None:
    """Add the merges that make one token of `word`. Byte-pair encoding takes the earliest merge that fits, so what is
    added later never breaks a word that was learned before.

    Beside the trainer of `tokenizers` because that settles ties by the order of a hash table: another run would number
    its tokens otherwise, and the text encoder of a resumed one would read nonsense.
    """
    symbols = [*word[:-1], word[-1] + "</w>"]
    while len(symbols) > 1:
        pairs = list(pairwise(symbols))
        rank = {pair: number for number, pair in enumerate(merges)}
        first = min(pairs, key=lambda pair: rank.get(pair, len(merges)))
        merges.setdefault(first, "".join(first))
        joined: list[str] = []
        for symbol in symbols:
            if joined and (joined[-1], symbol) == first:
                joined[-1] += symbol
            else:
                joined.append(symbol)
        symbols = joined


def build_text_encoder(config: BaseConfig, tokenizer: Any) -> Any:
    """A small CLIPTextModel over that vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel

    text = config.text
    if text.width % text.heads:
        raise RequestError(f"text.width={text.width} is not a multiple of text.heads={text.heads}")
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            max_position_embeddings=text.tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler(config: BaseConfig) -> Any:
    """The schedule as diffusers holds it: DDPM's for pixels, DDIM's with Stable Diffusion's settings for latents."""
    from diffusers import DDIMScheduler, DDPMScheduler

    schedule(config.schedule, config.timesteps)  # refuses what is none, with the reason
    first, last = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012), "cosine": (1e-4, 0.02)}[config.schedule]
    if config.schedule == "linear":  # scaled, so that fewer steps end as noisy (IDDPM's code)
        first, last = first * 1000 / config.timesteps, last * 1000 / config.timesteps
    common = {
        "num_train_timesteps": config.timesteps,
        "beta_start": first,
        "beta_end": last,
        "beta_schedule": _BETA_SCHEDULES[config.schedule],
        "prediction_type": config.prediction,
    }
    if config.vae.path:
        return DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return DDPMScheduler(**common, variance_type=config.variance, clip_sample=True)
