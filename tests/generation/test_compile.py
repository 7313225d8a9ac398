"""`--compile`: the same picture, and nothing is compiled again when weights, windows or guidance change."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, UNet2DConditionModel
from PIL import Image
from torch._dynamo.utils import counters

from annotators.canny import Canny
from controlkit.cli.main import main
from controlkit.diffusion.samplers import make_sampler
from controlkit.generation.execution import Execution
from controlkit.generation.settings import read_settings
from controlkit.generation.silent import silenced
from controlkit.generation.tiled import in_tiles
from controlkit.generation.tiles import tiles_of
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from tests.conftest import draw_photo
from tests.painting import strong_net


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    return strong_net("random-sd15", tmp_path_factory.mktemp("nets") / "net")


@pytest.fixture(scope="module")
def edge(tmp_path_factory):
    path = tmp_path_factory.mktemp("maps") / "edge.png"
    Image.fromarray(Canny()(draw_photo(0, 64, 64))).save(path)
    return path


def painter(edge, execution, tiles=()):
    """A pipeline of two controls as a function, perhaps in tiles. Its networks are as small as they can be: compiling
    takes long."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
    ).eval()
    nets = [make_controlnet(unet, vae_factor=8, latent_channels=4, seed=seed).eval() for seed in (0, 1)]
    with torch.no_grad():
        for net in nets:
            for name, parameter in net.named_parameters():
                if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
                    parameter.normal_(std=0.2)
    parts, controlnets = {"unet": unet}, [silenced(nets)]
    if tiles:
        parts, controlnets = in_tiles(tiles, 8, parts, nets)
    pipeline = StableDiffusionControlNetPipeline(
        vae=None, text_encoder=None, tokenizer=None, **parts, controlnet=controlnets[0], safety_checker=None,
        scheduler=make_sampler("ddim", find_base("random-sd15").scheduler), feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    said, texts = [], torch.randn(2, 1, 7, 16)
    execution.apply(pipeline, torch.device("cpu"), say=said.append)

    def paint(weights, ends, cfg=5.0, side=None):
        return pipeline(
            image=[Image.open(edge).convert("RGB")] * 2,
            prompt_embeds=texts[0],
            negative_prompt_embeds=texts[1],
            controlnet_conditioning_scale=weights,
            control_guidance_end=ends,
            guidance_scale=cfg,
            width=side,
            height=side,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    return paint, said


def graphs_behind(compiled, plain, ways):
    """How many were compiled behind each of these calls, which paint what the plain pipeline does."""
    torch._dynamo.reset()
    counters.clear()
    graphs = []
    for way in ways:
        torch.testing.assert_close(compiled(**way), plain(**way), rtol=0, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    return graphs


@pytest.mark.slow
def test_nothing_is_compiled_again_when_weights_and_windows_change(edge):
    compiled, said = painter(edge, Execution(compile="eager"))
    plain, _ = painter(edge, Execution())
    ways = [
        ([1.0, 1.0], [1.0, 1.0]),
        ([0.5, 1.3], [1.0, 1.0]),
        ([0.7, 0.9], [0.3, 0.6]),  # both, one, none
        ([0.0, 0.8], [1.0, 0.6]),
        ([0.0, 0.0], [1.0, 1.0]),
        ([1.1, 0.4], [0.6, 1.0], 3.0),
    ]
    graphs = graphs_behind(compiled, plain, [dict(zip(("weights", "ends", "cfg"), way, strict=False)) for way in ways])
    assert graphs[0] > 0
    assert (compiled(*ways[0]) - compiled(*ways[1])).abs().max() > 0.01
    assert graphs == graphs[:1] * len(ways)
    assert said == ["UNet and ControlNet are compiled at the first step, which takes minutes; later steps are faster"]


@pytest.mark.slow
def test_two_sizes_of_a_picture_are_compiled_and_no_more(edge):
    """As in a second pass, whose pictures are larger; back at the first size nothing is compiled again."""
    compiled, _ = painter(edge, Execution(compile="eager"))
    plain, _ = painter(edge, Execution())
    sizes = [([1.0, 0.5], 64), ([1.0, 0.5], 96), ([0.7, 0.0], 64), ([0.3, 1.1], 96)]
    ways = [{"weights": weights, "ends": [1.0, 1.0], "side": side} for weights, side in sizes]
    graphs = graphs_behind(compiled, plain, ways)
    assert graphs[1] <= 2 * graphs[0]
    assert graphs[1:] == graphs[1:2] * 3


@pytest.mark.slow
def test_all_tiles_are_of_one_graph(edge):
    tiles = tiles_of(8, 8, 4)
    compiled, _ = painter(edge, Execution(compile="eager"), tiles)
    plain, _ = painter(edge, Execution(), tiles)
    ways = [{"weights": [1.0, 1.0], "ends": [1.0, 1.0]}, {"weights": [0.5, 1.3], "ends": [1.0, 0.6]}]
    graphs = graphs_behind(compiled, plain, ways)
    assert 0 < graphs[0] < len(tiles) == 9
    assert graphs[1] == graphs[0]


@pytest.fixture
def request_for(net, edge, tmp_path):
    common = ["--base", "random-sd15", "--controlnet", net, "--control", f"{edge}@1:0:0.5", "--steps", 2, "--seed", 1]
    return ["generate", *map(str, common), "--device", "cpu", "--out", str(tmp_path / "o.png")]


def test_the_command_says_what_it_costs_and_writes_it_down(request_for, tmp_path, capsys):
    """All but the compiling itself, which takes long; that it is asked for, the next test shows."""
    assert main(request_for) == 0
    plain = np.asarray(Image.open(tmp_path / "o.png")).astype(int)
    assert "compiled" not in capsys.readouterr().err
    with torch.compiler.set_stance("force_eager"):
        assert main([*request_for, "--compile"]) == 0
    assert "compiled at the first step, which takes minutes" in capsys.readouterr().err
    assert read_settings(tmp_path / "o.png")["compile"] is not None
    assert np.abs(plain - np.asarray(Image.open(tmp_path / "o.png"))).max() <= 1


def test_a_machine_that_cannot_compile_is_told_so(request_for, tmp_path, monkeypatch, capsys):
    def no_compiler(graph, inputs):
        raise FileNotFoundError("no C++ compiler is installed")

    torch._dynamo.reset()
    monkeypatch.setattr("controlkit.cli.execution_options.BACKEND", no_compiler)
    assert main([*request_for, "--compile", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "error: --compile does not work here (" in said
    assert "no C++ compiler is installed" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.png").exists()


def test_what_moves_cannot_be_compiled(request_for, capsys):
    assert main([*request_for, "--compile", "--offload", "model", "--quiet"]) == 2
    assert "--offload model keeps networks off the GPU" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--compile is for networks that stay on the GPU"):
        Execution(compile="inductor", offload="model").check(torch.device("cuda"), 20)


def test_a_pipeline_without_controls_has_its_unet_compiled():
    pipeline = SimpleNamespace(unet=torch.nn.Linear(1, 1))
    Execution(compile="eager").apply(pipeline, torch.device("cpu"), say=lambda text: None)
    assert pipeline.unet._compiled_call_impl is not None
