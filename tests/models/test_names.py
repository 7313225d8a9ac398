"""Two layouts, one model: every map forward and back is the identity, on all keys at full size and on values."""

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders import single_file_utils as theirs
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from controlkit.errors import RequestError
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.models.formats import text, unet, vae
from controlkit.models.random_base import RANDOM_BASES

SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def same(one, other):
    assert set(one) == set(other)
    for key, value in one.items():
        assert value.shape == other[key].shape
        if value.device.type != "meta":
            assert torch.equal(value, other[key]), key


@pytest.fixture(scope="module", params=[SD1, SD2, SDXL], ids=["SD 1.x", "SD 2.x", "SDXL"])
def full_unet(request):
    with torch.device("meta"):
        return UNet2DConditionModel(**request.param)


def test_a_full_size_unet_goes_there_and_back(full_unet):
    """The number of tensors is that of the published checkpoints."""
    ours = full_unet.state_dict()
    ldm = unet.unet_to_ldm(ours, full_unet.config)
    xl = full_unet.config.addition_embed_type is not None
    assert len(ldm) == len(ours) == (1680 if xl else 686)
    same(ours, unet.unet_from_ldm(ldm, full_unet.config))
    to_k = f"input_blocks.{4 if xl else 2}.1.transformer_blocks.0.attn2.to_k.weight"
    assert ldm[to_k].shape[1] == full_unet.config.cross_attention_dim
    assert tuple(ldm["input_blocks.0.0.weight"].shape) == (320, 4, 3, 3)


def test_a_full_size_controlnet_goes_there_and_back(full_unet):
    with torch.device("meta"):
        net = ControlNetModel.from_unet(full_unet, load_weights_from_unet=False)
    ours = net.state_dict()
    ldm = unet.controlnet_to_ldm(ours, net.config)
    xl = full_unet.config.addition_embed_type is not None
    assert len(ldm) == len(ours) == (844 if xl else 340)
    same(ours, unet.controlnet_from_ldm(ldm, net.config))
    assert ("label_emb.0.0.weight" in ldm) == xl
    assert ldm["input_hint_block.14.weight"].shape[:2] == (320, 256)


@pytest.mark.parametrize("name", RANDOM_BASES)
def test_values_arrive_where_diffusers_own_converters_put_them(name):
    base = find_base(name)
    network = base.load("unet")
    ours = network.state_dict()
    ldm = unet.unet_to_ldm(ours, base.unet)
    same(ours, unet.unet_from_ldm(ldm, base.unet))
    same(ours, theirs.convert_ldm_unet_checkpoint(prefixed(ldm, "model.diffusion_model."), dict(network.config)))

    autoencoder = base.load("vae")
    ours = autoencoder.state_dict()
    ldm = vae.vae_to_ldm(ours, base.vae)
    assert ldm["encoder.mid.attn_1.q.weight"].ndim == 4
    same(ours, vae.vae_from_ldm(ldm, base.vae))
    same(ours, theirs.convert_ldm_vae_checkpoint(prefixed(ldm, "first_stage_model."), dict(autoencoder.config)))

    net = make_controlnet(network, vae_factor=8, latent_channels=4, seed=0)
    ours = {key: torch.rand_like(value) for key, value in net.state_dict().items()}  # no two zero convolutions alike
    ldm = unet.controlnet_to_ldm(ours, net.config)
    same(ours, unet.controlnet_from_ldm(ldm, net.config))
    converted = theirs.convert_controlnet_checkpoint(prefixed(ldm, "control_model."), dict(net.config))
    # diffusers forgets SDXL's label_emb.
    same({key: value for key, value in ours.items() if not key.startswith("add_embedding")}, converted)


def prefixed(tensors, prefix):
    return {prefix + key: value for key, value in tensors.items()}


def test_a_full_size_vae_goes_there_and_back():
    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
    ours = autoencoder.state_dict()
    ldm = vae.vae_to_ldm(ours, autoencoder.config)
    assert len(ldm) == 248
    same(ours, vae.vae_from_ldm(ldm, autoencoder.config))
    # The decoder's last level of diffusers is LDM's first; only its first resnet changes the width.
    assert ldm["decoder.up.0.block.0.nin_shortcut.weight"].shape[:2] == (128, 256)


def test_the_attention_names_of_old_diffusers_are_read():
    base = find_base("random-sd15")
    ours = base.load("vae").state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    before = {}
    for key, value in ours.items():
        for now, then in old.items():
            key = key.replace(f"attentions.0.{now}.", f"attentions.0.{then}.")
        before[key] = value
    same(vae.vae_to_ldm(before, base.vae), vae.vae_to_ldm(ours, base.vae))


def text_encoder(*, projected, width=16, layers=3, projection=24):
    config = CLIPTextConfig(
        vocab_size=20, hidden_size=width, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        projection_dim=projection, max_position_embeddings=8,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def test_open_clip_splits_joins_and_transposes():
    """A projection that is not square, so that a forgotten transpose fails; against the definition of each tensor."""
    ours = text.text_from_transformers(text_encoder(projected=True).state_dict())
    theirs = text.text_to_open_clip(ours)
    assert torch.equal(theirs["text_projection"], ours["text_projection.weight"].T)
    assert theirs["text_projection"].shape == (16, 24)
    block, layer = "transformer.resblocks.1.attn.in_proj_", "text_model.encoder.layers.1.self_attn."
    for number, name in enumerate("qkv"):
        rows = slice(16 * number, 16 * (number + 1))
        assert torch.equal(theirs[f"{block}weight"][rows], ours[f"{layer}{name}_proj.weight"])
        assert torch.equal(theirs[f"{block}bias"][rows], ours[f"{layer}{name}_proj.bias"])
    same(ours, text.text_from_open_clip(theirs, layers=3, projected=True))
    assert theirs["logit_scale"].exp() == pytest.approx(100)


def test_sd2_leaves_out_the_last_layer_and_the_projection():
    ours = text.text_from_transformers(text_encoder(projected=False).state_dict())
    theirs = text.text_to_open_clip(ours)
    assert "transformer.resblocks.3.attn.in_proj_weight" in theirs
    same(ours, text.text_from_open_clip(theirs, layers=3, projected=False))


@pytest.mark.parametrize(("width", "layers", "projected", "tensors"), [(1024, 23, False, 372), (1280, 32, True, 517)])
def test_full_size_open_clip_goes_there_and_back(width, layers, projected, tensors):
    with torch.device("meta"):
        model = text_encoder(projected=projected, width=width, layers=layers, projection=width)
    ours = text.text_from_transformers(model.state_dict())
    theirs = text.text_to_open_clip(ours)
    assert len(ours) == tensors
    assert len(theirs) == (294 if width == 1024 else 390)
    same(ours, text.text_from_open_clip(theirs, layers=layers, projected=projected))


def test_both_text_layouts_of_transformers_become_one():
    flat = {"encoder.layers.0.mlp.fc1.weight": torch.ones(1), "embeddings.position_ids": torch.ones(1)}
    nested = {"text_model.encoder.layers.0.mlp.fc1.weight": torch.ones(1), "text_projection.weight": torch.ones(1)}
    assert set(text.text_from_transformers(flat)) == {"text_model.encoder.layers.0.mlp.fc1.weight"}
    assert set(text.text_from_transformers(nested)) == set(nested)


def test_a_tensor_without_a_place_is_refused_by_name():
    base = find_base("random-sd15")
    with pytest.raises(RequestError, match=r"UNet: 1 of 1 tensors have no place in it, e\.g\. 'input_blocks\.12\.0"):
        unet.unet_from_ldm({"input_blocks.12.0.in_layers.0.weight": torch.ones(1)}, base.unet)
