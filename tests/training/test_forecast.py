"""The memory that is told beforehand is the memory that a step takes, counted on real tensors; and what fits where."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from controlkit.cli.main import main
from controlkit.config import build
from controlkit.generation.pipelines import load_parts
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.training.config import TrainConfig
from controlkit.training.forecast import Kept, forecast, state_bytes
from controlkit.training.learned import Learned
from controlkit.training.objective import Models, predict
from controlkit.training.optimizers import OPTIMIZERS, make_optimizer, missing_library
from controlkit.training.plan import measured_rate
from controlkit.training.presets import PRESETS
from tests.true_shapes import true_shape


def with_settings(**settings):
    return replace(TrainConfig(), **settings)


def size_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return true_shape("sd15", tmp_path_factory.mktemp("shapes") / "sd15")


@pytest.mark.parametrize("settings", [{}, {"decoder": True, "ema": 0.9}, {"only_mid_control": True}])
@pytest.mark.parametrize("name", ["random-sd15", "random-sdxl"])
def test_it_is_what_a_real_step_holds(name, settings):
    """Weights, gradients and optimizer to the byte; what autograd keeps as counted on the CPU, where attention may keep
    a little else."""
    config, base = with_settings(**settings), find_base(name)
    expected = forecast(config, base)
    parts = load_parts(base, dtype=torch.float32, device=torch.device("cpu"), locked=True)
    net = make_controlnet(parts["unet"], vae_factor=8, latent_channels=4, seed=0)
    nets = Learned(config, net, parts["unet"])
    modules = [part for part in parts.values() if isinstance(part, torch.nn.Module)]
    assert expected.base == size_of(parameter for module in modules for parameter in module.parameters())
    everything = {id(each): each for held in nets.saved().values() for each in held.parameters()}
    of_base = {id(each) for each in parts["unet"].parameters()}
    assert expected.learned == size_of(each for key, each in everything.items() if key not in of_base)

    pipeline = type("Pipeline", (), {"unet": parts["unet"]})
    models = Models.of(base, pipeline, net, torch.device("cpu"))
    text = {"encoder_hidden_states": torch.randn(4, 77, base.unet["cross_attention_dim"])}
    if base.is_xl:
        text["added_cond_kwargs"] = {"text_embeds": torch.randn(4, 32), "time_ids": torch.zeros(4, 6)}
    with Kept([*net.parameters(), *parts["unet"].parameters()]) as kept:
        x_t = torch.randn(4, 4, 8, 8)
        loss = F.mse_loss(predict(models, x_t, torch.zeros(4), torch.rand(4, 3, 64, 64), text), torch.randn(4, 4, 8, 8))
    assert expected.activations == pytest.approx(kept.bytes, rel=0.05)

    loss.backward()
    assert expected.gradients == size_of(each.grad for each in nets.parameters())


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw8bit"])
def test_the_optimizers_state_is_as_large_as_told(name):
    if package := missing_library(name):
        pytest.skip(f"{package} is not installed")
    shapes = [(8, 4, 3, 3), (7, 5), (9,)]
    for shape in shapes:
        parameter = torch.nn.Parameter(torch.ones(shape))
        optimizer = make_optimizer(with_settings(optimizer=name), [parameter])
        parameter.grad = torch.ones(shape)
        optimizer.step()
        held = size_of(value for key, value in optimizer.state[parameter].items() if key != "step")
        assert state_bytes(name, parameter.shape) == held


def test_activations_grow_with_rows_and_pixels_and_attention_keeps_no_scores(sd15):
    """Four times the pixels take four times the memory, but for the text's share, which does not grow."""
    config = with_settings(mixed_precision="bf16")
    sizes = [replace(config, data=replace(config.data, resolution=size)) for size in (256, 512)]
    small, large = (forecast(replace(each, batch_size=4), sd15).activations for each in sizes)
    double = forecast(replace(sizes[0], batch_size=8), sd15).activations
    rows = double - small  # four rows of 256 pixels; the rest is the weights in half precision
    assert rows * 4 == pytest.approx(large - (small - rows), rel=0.03)
    # The ControlNet's weights once more in two bytes each; norms and biases need no copy.
    assert small - rows == pytest.approx(2 * 361_279_120, rel=0.05)


def test_gradient_checkpointing_takes_less(sd15):
    plain, less = (
        forecast(with_settings(mixed_precision="bf16", gradient_checkpointing=each), sd15) for each in (False, True)
    )
    assert less.activations < 0.4 * plain.activations
    assert less.total - less.activations == plain.total - plain.activations


@pytest.mark.parametrize("memory", PRESETS)
def test_a_preset_fits_stable_diffusion_15_at_512_pixels(sd15, memory):
    config = with_settings(**PRESETS[memory])
    assert config.data.resolution is None
    assert sd15.native_size == 512
    assert forecast(config, sd15).total < (int(memory) - 1) * 1e9


def test_a_dry_run_tells_memory_steps_and_once_measured_hours(dataset, tmp_path, capsys):
    arguments = [
        "train",
        f"data.path={dataset}",
        f"output={tmp_path / 'run'}",
        "batch_size=2",
        "gradient_accumulation=3",
    ]
    assert main([*arguments, "steps=24", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["steps"], plan["rows_a_step"], plan["epochs"], plan["hours"]) == (24, 6, 6.0, None)
    parts = {key: value for key, value in plan["memory"].items() if key != "total"}
    assert plan["memory"]["total"] == sum(parts.values()) > 0

    (tmp_path / "run").mkdir()
    rows = [(1, 10.0, 0.6), (11, 2.0, 30.0), (21, 4.0, 15.0)]  # the first held the warming up
    timing = [{"step": step, "seconds": seconds, "images_per_second": rate} for step, seconds, rate in rows]
    timing.append({"step": 21, "look_seconds": 0.5})
    (tmp_path / "run" / "timing.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timing))
    assert measured_rate(tmp_path / "run") == 20.0
    assert main([*arguments, "steps=24000", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "# 2 hours at the 20 images/s measured in this folder" in printed
    assert "GB a device" in printed
    (tmp_path / "c.yaml").write_text(printed)
    assert build(TrainConfig, tmp_path / "c.yaml").steps == 24000
