"""The original key layout: a renaming, bit for bit, that diffusers' own converter reads back."""

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.torch import load_file

from controlkit.errors import RequestError
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.models.webui import PREFIX, from_webui, save_webui, to_webui

# The UNets of the families as they are published.
FAMILIES = {
    "SD 1.5": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "SD 2.1": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "SDXL": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.fixture(scope="module", params=FAMILIES)
def net(request):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FAMILIES[request.param])
        return ControlNetModel.from_unet(unet, load_weights_from_unet=False)


def test_both_ways_give_the_same_tensors_back(net):
    state = net.state_dict()
    there = to_webui(state, net.config)
    assert all(key.startswith(PREFIX) for key in there)
    assert len(there) == len(state)
    back = from_webui(there, net.config)
    assert list(back) == list(state)
    assert all(back[key] is state[key] for key in state)


def test_diffusers_reads_the_layout(net):
    """Its converter knows the published files of SD 1.x and 2.x; of SDXL it leaves out the embedding of the sizes."""
    state = net.state_dict()
    read = convert_controlnet_checkpoint(to_webui(state, net.config), net.config)
    left_out = {key for key in state if key not in read}
    assert all(key.startswith("add_embedding") for key in left_out)
    assert all(read[key] is state[key] for key in read)


def test_names_of_the_published_sd15_file():
    with torch.device("meta"):
        net = ControlNetModel.from_unet(UNet2DConditionModel(**FAMILIES["SD 1.5"]), load_weights_from_unet=False)
    there = to_webui(net.state_dict(), net.config)
    assert there["control_model.input_hint_block.14.weight"].shape == (320, 256, 3, 3)
    assert there["control_model.zero_convs.11.0.weight"].shape == (1280, 1280, 1, 1)
    assert there["control_model.input_blocks.3.0.op.weight"].shape == (320, 320, 3, 3)
    assert there["control_model.input_blocks.4.0.skip_connection.weight"].shape == (640, 320, 1, 1)
    assert there["control_model.input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight"].shape == (1280, 768)
    assert there["control_model.middle_block.1.proj_in.weight"].shape == (1280, 1280, 1, 1)
    assert there["control_model.middle_block_out.0.bias"].shape == (1280,)
    assert len(there) == 340


@pytest.mark.parametrize("base", ["random-sd15", "random-sd21", "random-sdxl"])
def test_a_file_comes_back_bit_for_bit(base, tmp_path):
    found = find_base(base)
    net = make_controlnet(found.load("unet"), vae_factor=8, latent_channels=4, seed=3)
    save_webui(net.state_dict(), net.config, tmp_path / "net.safetensors", {"condition": "canny"})
    back = from_webui(load_file(tmp_path / "net.safetensors"), net.config)
    state = net.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_another_file_is_refused(net):
    with pytest.raises(RequestError, match=r"no key begins with 'control_model\.'"):
        from_webui({"model.diffusion_model.x": torch.zeros(1)}, net.config)
    with pytest.raises(RequestError, match=r"'strange\.layer' is no part of a ControlNet"):
        to_webui({"strange.layer": torch.zeros(1)}, net.config)
