"""Tiny Stable Diffusions of the true layout with random weights, built on the spot and kept in the cache.

They know nothing: their pictures are noise. They are for what must be tried before gigabytes are loaded: does the
installation work, does the launcher start its processes, does a script read what it should. `random-sd15`,
`random-sd21`, `random-sdxl` and `random-sd15-9ch` (an inpainting base) stand wherever a base is named. Blocks, keys and
component names are those of the real family; widths are as small as the layers allow.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from controlkit.files import atomic_folder, cache_folder
from controlkit.models.formats.text import write_text_encoder
from controlkit.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

RANDOM_BASES = ("random-sd15", "random-sd15-9ch", "random-sd21", "random-sdxl")
_LAYOUT = 1  # raised when a change here changes the weights or the configs


def random_base(name: str) -> Path:
    """The folder of that random base in diffusers' layout; made if it is not in the cache."""
    folder = cache_folder() / "random-bases" / f"v{_LAYOUT}" / name
    if not (folder / "model_index.json").exists():
        with atomic_folder(folder, replace=False) as unfinished:
            build_random_base(name, unfinished)
    return folder


def build_random_base(name: str, folder: Path, *, vae_factor: int = 8) -> None:
    """Build the base and save it; the same weights for the same name everywhere."""
    import torch

    quiet_libraries()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = _sdxl(folder, vae_factor) if name == "random-sdxl" else _sd(name, folder, vae_factor)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in ("text_encoder", "text_encoder_2"):
        if (model := getattr(pipeline, part, None)) is not None:
            write_text_encoder(folder / part, model, model.state_dict())


def _sd(name: str, folder: Path, vae_factor: int) -> Any:
    from diffusers import (
        DDIMScheduler,
        StableDiffusionInpaintPipeline,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    second = name == "random-sd21"
    nine = name == "random-sd15-9ch"
    text_encoder = _text_encoder(projection=False)
    unet = UNet2DConditionModel(
        in_channels=9 if nine else 4,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        cross_attention_dim=text_encoder.config.hidden_size,
        attention_head_dim=(2, 4, 4, 4) if second else 4,
        use_linear_projection=second,
        sample_size=64 // vae_factor,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if second else "epsilon",
    )
    pipeline_class = StableDiffusionInpaintPipeline if nine else StableDiffusionPipeline
    return pipeline_class(
        vae=_vae(vae_factor, scaling_factor=0.18215),
        text_encoder=text_encoder,
        tokenizer=_tokenizer(folder / "tokenizer"),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(folder: Path, vae_factor: int) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    first, second = _text_encoder(projection=False), _text_encoder(projection=True)
    time_ids = 6  # original size, crop corner, target size
    unet = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
        cross_attention_dim=first.config.hidden_size + second.config.hidden_size,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=time_ids * 8 + second.config.projection_dim,
        sample_size=64 // vae_factor,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(vae_factor, scaling_factor=0.13025),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=_tokenizer(folder / "tokenizer"),
        tokenizer_2=_tokenizer(folder / "tokenizer_2"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )


def _vae(factor: int, scaling_factor: float) -> Any:
    from diffusers import AutoencoderKL

    levels = factor.bit_length()  # each level but the first halves the picture
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8, *(16,) * (levels - 1)),
        norm_num_groups=8,
        layers_per_block=1,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def _text_encoder(*, projection: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = _vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=32,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    model = CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)
    return model.eval()


def _vocabulary() -> dict[str, int]:
    """CLIP's alphabet of bytes, inside a word and at its end, without merges: every text has tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def _tokenizer(folder: Path) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(_vocabulary()), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
