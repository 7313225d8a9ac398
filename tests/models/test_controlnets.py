"""A ControlNet is right for its base: it begins as nothing, and it is a copy of the encoder and the middle block."""

import pytest
import torch
from diffusers import ControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from torch.nn import functional as F

from controlkit.errors import RequestError
from controlkit.models.bases import find_base
from controlkit.models.controlnets import (
    SILU_GAIN,
    find_controlnet,
    hint_channels,
    let_maps_through,
    make_controlnet,
    save_controlnet,
)
from controlkit.models.random_base import RANDOM_BASES, build_random_base


def make(base, seed=0):
    unet = base.load("unet")
    net = make_controlnet(unet, vae_factor=base.vae_factor, latent_channels=base.latent_channels, seed=seed)
    return unet, net


def inputs(base, unet, size=64):
    """Latents for the UNet, its first channels for the ControlNet, text and what SDXL wants beside."""
    generator = torch.Generator().manual_seed(0)
    cells = size // base.vae_factor
    x_t = torch.randn(2, unet.config.in_channels, cells, cells, generator=generator)
    text = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    more = {}
    if base.is_xl:
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        more = {
            "added_cond_kwargs": {
                "text_embeds": torch.randn(2, pooled, generator=generator),
                "time_ids": torch.zeros(2, 6),
            }
        }
    control = torch.rand(2, 3, size, size, generator=generator)
    return x_t, text, control, more


@pytest.mark.parametrize("name", RANDOM_BASES)
@torch.no_grad()
def test_an_untrained_controlnet_changes_nothing(name):
    """Zero convolutions start at zero, so y_c = y (ControlNet, Eq. 3), bit for bit."""
    base = find_base(name)
    unet, net = make(base)
    x_t, text, control, more = inputs(base, unet)
    down, middle = net(x_t[:, : base.latent_channels], 500, text, control, return_dict=False, **more)
    assert all((residual == 0).all() for residual in [*down, middle])
    alone = unet(x_t, 500, text, **more).sample
    joined = unet(
        x_t, 500, text, down_block_additional_residuals=down, mid_block_additional_residual=middle, **more
    ).sample
    assert torch.equal(alone, joined)


@pytest.mark.parametrize("name", RANDOM_BASES)
def test_encoder_and_middle_block_are_copies_of_the_unet(name):
    base = find_base(name)
    unet, net = make(base)
    theirs = unet.state_dict()
    own = {key: value for key, value in net.state_dict().items() if not key.startswith("controlnet_")}
    assert {key.split(".")[0] for key in own} >= {"conv_in", "time_embedding", "down_blocks", "mid_block"}
    for key, value in own.items():
        expected = theirs[key]
        if key == "conv_in.weight":
            expected = expected[:, : base.latent_channels]
        assert torch.equal(value, expected), key
        assert value.data_ptr() != theirs[key].data_ptr(), key


def test_from_a_9_channel_base_it_takes_the_latents_alone():
    _, net = make(find_base("random-sd15-9ch"))
    assert net.config.in_channels == net.conv_in.in_channels == 4


@pytest.mark.parametrize(
    ("factor", "widths"), [(2, (16, 32)), (4, (16, 32, 96)), (8, (16, 32, 96, 256)), (16, (16, 32, 96, 256, 256))]
)
@torch.no_grad()
def test_the_hint_encoder_ends_on_the_latent_grid(tmp_path, factor, widths):
    """8 is Stable Diffusion's own factor, and the widths there those of diffusers."""
    assert hint_channels(factor) == widths
    build_random_base("random-sd15", tmp_path / "b", vae_factor=factor)
    base = find_base(str(tmp_path / "b"))
    unet, net = make(base)
    x_t, text, control, _ = inputs(base, unet)
    assert net.controlnet_cond_embedding(control).shape[-2:] == x_t.shape[-2:]
    net(x_t, 500, text, control)


def test_the_hint_encoder_is_a_function_of_the_seed():
    base = find_base("random-sd15")
    key = "controlnet_cond_embedding.conv_in.weight"
    first, again, other = (make(base, seed)[1].state_dict()[key] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_layer_hands_on_as_much_as_it_is_given():
    """The gain's closed form, by numeric integration."""
    z = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / (2 * torch.pi) ** 0.5
    spread = float(torch.trapezoid(F.silu(z) ** 2 * density, z)) ** 0.5
    assert SILU_GAIN * spread == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("factor", [2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["lines", "ramp"])
@torch.no_grad()
def test_a_map_is_as_strong_behind_the_hint_encoder_as_before_it(factor, kind):
    """What differs from a black map, before the last convolution, which is zero. As PyTorch draws them it fades."""
    control = torch.zeros(1, 3, 256, 256)
    if kind == "lines":
        control[..., ::32, :] = control[..., ::32] = 1
    else:
        control += torch.linspace(0, 1, 256)

    def kept(encoder):
        features = [control, torch.zeros_like(control)]
        for layer in [encoder.conv_in, *encoder.blocks]:
            features = [F.silu(layer(each)) for each in features]
        return float((features[0] - features[1]).pow(2).mean().sqrt() / control.pow(2).mean().sqrt())

    torch.manual_seed(0)
    encoder = ControlNetConditioningEmbedding(64, 3, hint_channels(factor))
    before = kept(encoder)
    let_maps_through(encoder)
    assert 0.3 < kept(encoder) < 5
    assert before < 0.1 * 0.5 ** (len(encoder.blocks) / 2)
    assert not encoder.conv_out.weight.any()
    assert not encoder.conv_out.bias.any()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    _, net = make(find_base("random-sd21"))
    save_controlnet(net, tmp_path / "net", {"condition": "canny"})
    found = find_controlnet(str(tmp_path / "net"))
    assert found.condition == "canny"
    for loaded in (found.load(), ControlNetModel.from_pretrained(tmp_path / "net")):
        assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in net.state_dict().items())


def saved(tmp_path, name, **options):
    if options:
        build_random_base(name, tmp_path / "base", **options)
        name = str(tmp_path / "base")
    _, net = make(find_base(name))
    save_controlnet(net, tmp_path / "net", {})
    return find_controlnet(str(tmp_path / "net"))


def test_another_family_is_refused_naming_both(tmp_path):
    with pytest.raises(RequestError, match=r"was made for SDXL .*, base 'random-sd15' is Stable Diffusion"):
        saved(tmp_path, "random-sdxl").check_fits(find_base("random-sd15"))


def test_another_vae_factor_is_refused(tmp_path):
    net = saved(tmp_path, "random-sd15", vae_factor=4)
    with pytest.raises(RequestError, match="reduces its map by 4, the VAE of base 'random-sd15' by 8"):
        net.check_fits(find_base("random-sd15"))
    net.check_fits(find_base(str(tmp_path / "base")))


def test_other_widths_are_refused(tmp_path):
    net = saved(tmp_path, "random-sd15")
    config = net.folder / "config.json"
    config.write_text(config.read_text().replace('"layers_per_block": 2', '"layers_per_block": 3'))
    with pytest.raises(RequestError, match="has layers_per_block 3, base 'random-sd15' has 2"):
        find_controlnet(str(net.folder)).check_fits(find_base("random-sd15"))


def test_what_is_no_controlnet_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"has no config\.json"):
        find_controlnet(str(tmp_path))
    with pytest.raises(RequestError, match="is of a UNet2DConditionModel, expected a ControlNetModel"):
        find_controlnet(str(find_base("random-sd15").folder / "unet"))
    with pytest.raises(RequestError, match="ControlNet 'nothing': no such folder"):
        find_controlnet("nothing")


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({"cross_attention_dim": 768, "attention_head_dim": 8}, 361_279_120),
        (
            {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
            364_228_240,
        ),
    ],
    ids=["SD 1.5", "SD 2.1"],
)
def test_at_true_size_it_has_the_published_number_of_parameters(config, parameters):
    """On the meta device, where weights take no memory. 361,279,120 is that of the published SD 1.5 ControlNets."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, **config)
        net = ControlNetModel.from_unet(
            unet, conditioning_embedding_out_channels=hint_channels(8), load_weights_from_unet=False
        )
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
