"""Folders that hold the configs of real bases and no weights: enough for whatever looks at shapes alone.

The widths are those of the published architectures (SD 1.5, SD 2.1 at 768, SDXL 1.0); everything else comes from the
random base of the same layout.
"""

import json
import shutil
from pathlib import Path

from controlkit.models.bases import Base, find_base

_VAE = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_SD = {"block_out_channels": [320, 640, 1280, 1280], "norm_num_groups": 32}

TRUE_SHAPES = {
    "sd15": {
        "unet": {**_SD, "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
        "text_encoder": _CLIP_L,
    },
    "sd21": {
        "unet": {**_SD, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "sample_size": 96},
        "text_encoder": _CLIP_H,
    },
    "sdxl": {
        "unet": {
            **{"block_out_channels": [320, 640, 1280], "norm_num_groups": 32, "cross_attention_dim": 2048},
            **{"attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10], "sample_size": 128},
            **{"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
        },
        "text_encoder": _CLIP_L,
        "text_encoder_2": {**_CLIP_G, "projection_dim": 1280},
    },
}


def true_shape(name: str, folder: Path) -> Base:
    """The base `name` in that folder, made from configs alone."""
    random = find_base(f"random-{name}").folder
    shutil.copytree(random, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for component, changes in {"vae": _VAE, **TRUE_SHAPES[name]}.items():
        vocabulary = {"vocab_size": 49408} if component.startswith("text_encoder") else {}
        file = folder / component / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes, **vocabulary}))
    return Base(name, folder)
