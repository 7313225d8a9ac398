"""How a step is computed changes its speed and memory, and nothing of what is learned beyond rounding."""

import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import ControlNetModel
from torch.utils._python_dispatch import TorchDispatchMode

import train_controlnet
from controlkit.cli.main import main
from controlkit.config import build
from controlkit.data.rows import read_dataset
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.training.batches import ControlRows, collate
from controlkit.training.config import TrainConfig
from controlkit.training.forecast import Kept
from controlkit.training.objective import Models, control_loss
from controlkit.training.optimizers import OPTIMIZERS, learning_rate, make_optimizer, missing_library
from controlkit.training.speed import compiled, lay_out
from tests.training.test_learned import tensors
from tests.training.test_train import SETTINGS, metrics, steps_of, train


def set_up(dataset, *settings):
    """Networks as a run sets them up, a batch, and gradients behind the zero convolutions too."""
    config = build(TrainConfig, None, settings)
    base = find_base("random-sd15")
    parts = load_parts(base, dtype=torch.float32, device=torch.device("cpu"), locked=True)
    net = make_controlnet(parts["unet"], vae_factor=8, latent_channels=4, seed=0)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=random))
    lay_out(config, net, parts["unet"])
    models = Models.of(base, control_pipeline(base, parts, [net], None), net, torch.device("cpu"))
    data = ControlRows(
        read_dataset(dataset, "canny"), condition="canny", resolution=64, latent_shape=(4, 8, 8), timesteps=1000,
        prompt_dropout=0.5, seed=0,
    )  # fmt: skip
    return models, net, collate([data[0, number] for number in range(4)])


def losses(run):
    return [row["loss"] for row in steps_of(run)]


# Activations computed twice


def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(dataset):
    """Less in the ControlNet and in the base's decoder, through which the gradient passes."""
    gradients, kept = {}, {}
    for setting in ("false", "true"):
        models, net, batch = set_up(dataset, f"gradient_checkpointing={setting}")
        # What is recomputed is not saved; what it is computed from is held elsewhere.
        with Kept([*net.parameters(), *models.unet.parameters()]) as counter:
            loss = control_loss(models, batch)
        loss.backward()
        kept[setting] = counter.bytes
        gradients[setting] = [parameter.grad for parameter in net.parameters()]
        for block in (net.down_blocks[0], models.unet.up_blocks[1]):
            assert block.gradient_checkpointing == (setting == "true")
    assert kept["true"] < 0.75 * kept["false"]  # the hint encoder, large in so narrow a net, is not recomputed
    for one, other in zip(*gradients.values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("setting", ["gradient_checkpointing=true", "channels_last=true"])
def test_the_run_is_the_same_to_rounding(dataset, whole, tmp_path, setting):
    train(dataset, tmp_path / "run", setting, "samples.every=4", "samples.steps=1", "samples.count=1")
    assert losses(tmp_path / "run") == pytest.approx(losses(whole), rel=1e-4)


# Layout


def test_channels_last_lays_out_both_networks_and_gives_the_same_loss(dataset):
    values = []
    for setting in ("false", "true"):
        models, net, batch = set_up(dataset, f"channels_last={setting}")
        values.append(control_loss(models, batch).item())
        for weight in (net.down_blocks[0].resnets[0].conv1.weight, models.unet.up_blocks[1].resnets[0].conv1.weight):
            assert weight.is_contiguous(memory_format=torch.channels_last) == (setting == "true")
        assert all(value.is_contiguous() for value in net.state_dict().values())
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize("settings", [["channels_last=true", "ema=0.9"],
                                      pytest.param(["optimizer=lion"], marks=pytest.mark.slow),
                                      pytest.param(["optimizer=adafactor"], marks=pytest.mark.slow),
                                      ["lr_schedule=linear", "warmup_steps=2"]])  # fmt: skip
def test_a_resumed_run_equals_an_unbroken_one(dataset, tmp_path, settings):
    """A fused optimizer walks over memory: state that came back from disk in rows would meet the wrong weights."""
    if "optimizer=lion" in settings:
        pytest.importorskip("timm")
    train(dataset, tmp_path / "whole", *settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-000004")
    shutil.rmtree(tmp_path / "broken" / "controlnet")
    again = f"output={tmp_path / 'broken'}"
    assert main(["train", f"data.path={dataset}", again, *SETTINGS, *settings, "--resume", "-q"]) == 0
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")
    assert tensors(tmp_path / "broken") == tensors(tmp_path / "whole")


# Optimizers


class SharedState(torch.optim.SGD):
    """Keeps what 8-bit optimizers keep: a table that all parameters share, and tensors in groups of their own."""

    def step(self, closure=None):
        super().step(closure)
        table = torch.arange(4.0)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].update(table=table, quantized={"state1": parameter.detach() * 2, "bits": 8})


def test_state_that_is_shared_or_nested_survives_a_checkpoint(tmp_path):
    from controlkit.training.checkpoints import State, optimizer_state, save_checkpoint
    from controlkit.training.sharding import OptimizerState

    def parameters():
        return [torch.nn.Parameter(torch.full((3, 2), float(number))) for number in (1, 2)]

    first = SharedState(parameters(), lr=0.1, momentum=0.9)
    for parameter in first.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    first.step()
    path = save_checkpoint(tmp_path, State(step=1), {}, first.state_dict())
    other = SharedState(parameters(), lr=0.1, momentum=0.9)
    OptimizerState(other).take(optimizer_state(path))
    for mine, theirs in zip(first.state.values(), other.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])
        assert torch.equal(mine["table"], theirs["table"])
        assert torch.equal(mine["quantized"]["state1"], theirs["quantized"]["state1"])
        assert theirs["quantized"]["bits"] == 8


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_is_used_or_refused_with_what_to_install(dataset, tmp_path, capsys, name):
    if package := missing_library(name):
        train(dataset, tmp_path / "run", f"optimizer={name}", code=2)
        said = capsys.readouterr().err
        assert said == f"error: optimizer={name} needs {package}, which is not installed: pip install {package}\n"
        return
    if name == "adamw8bit":
        pytest.skip("installed; see the test that is marked gpu")
    parameters = [torch.nn.Parameter(torch.ones(4, 4))]
    optimizer = make_optimizer(replace(TrainConfig(), optimizer=name, lr=0.1, weight_decay=0.0), parameters)
    parameters[0].grad = torch.ones(4, 4)
    optimizer.step()
    assert type(optimizer).__name__ == OPTIMIZERS[name][1]
    assert (parameters[0] < 1).all()


def test_lion_steps_by_the_sign():
    """Whatever the gradient's size, a step is lr (arXiv:2302.06675, Algorithm 2)."""
    pytest.importorskip("timm")
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    optimizer = make_optimizer(replace(TrainConfig(), optimizer="lion", lr=0.1), parameters)
    parameters[0].grad = torch.tensor([1e-6, -5.0, 300.0])
    optimizer.step()
    assert torch.allclose(parameters[0], torch.tensor([-0.1, 0.1, -0.1]))


def test_adamw_is_fused():
    optimizer = make_optimizer(TrainConfig(), [torch.nn.Parameter(torch.zeros(3))])
    assert optimizer.defaults["fused"]


@pytest.mark.gpu
def test_adamw_in_8_bits_learns_and_resumes(dataset, tmp_path):
    pytest.importorskip("bitsandbytes")
    train(dataset, tmp_path / "whole", "optimizer=adamw8bit")
    train(dataset, tmp_path / "broken", "optimizer=adamw8bit", "steps=2")
    train(dataset, tmp_path / "broken", "optimizer=adamw8bit", "--resume")
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "whole")


# Learning rates


def test_learning_rates_rise_in_the_warm_up_and_fall_to_nothing():
    def rates(schedule):
        config = replace(TrainConfig(), lr=1.0, steps=110, warmup_steps=10, lr_schedule=schedule)
        return [learning_rate(config, step) for step in range(110)]

    for schedule in ("constant", "linear", "cosine"):
        assert rates(schedule)[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates("constant")[10:]) == {1.0}
    assert rates("linear")[10:] == pytest.approx([1 - step / 100 for step in range(100)])
    cosine = rates("cosine")[10:]
    assert all(later < earlier for earlier, later in pairwise(cosine))
    assert (cosine[0], cosine[50]) == pytest.approx((1, 0.5))
    assert cosine[99] < 0.001


def test_the_schedule_reaches_the_run(dataset, tmp_path):
    train(dataset, tmp_path / "run", "lr_schedule=linear", "warmup_steps=2")
    rates = [row["lr"] for row in steps_of(tmp_path / "run")]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.5e-3])


# Waiting for the device


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors into Python: on a GPU each waits for all that was asked of it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_its_numbers(dataset, tmp_path, monkeypatch):
    """The number of reads does not grow with the steps: losses and gradient norms stay on the device."""
    make_batches = train_controlnet.make_batches
    # Rows are drawn with generators of their own on the CPU, ahead of the device; here before the counting begins.
    monkeypatch.setattr(
        train_controlnet, "make_batches", lambda *rows, **options: made(list(make_batches(*rows, **options)))
    )
    reads = Reads()

    def made(batches):
        with reads:
            yield from batches

    counts = []
    for steps in (1, 3):
        reads.count = 0
        settings = [
            *SETTINGS,
            f"steps={steps}",
            "checkpoint_every=100",
            "log_every=100",
            "ema=0.9",
            "lr_schedule=cosine",
        ]
        config = build(TrainConfig, None, [f"data.path={dataset}", f"output={tmp_path / str(steps)}", *settings])
        train_controlnet.train(config)
        counts.append(reads.count)
    assert counts[0] == counts[1]


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu(dataset):
    models, net, batch = set_up(dataset)
    device = torch.device("cuda")
    for part in (net, models.unet, models.pipeline.vae, models.pipeline.text_encoder):
        part.to(device)
    models.alpha_bar = models.alpha_bar.to(device)
    batch = batch.to(device)
    optimizer = make_optimizer(TrainConfig(), list(net.parameters()))
    from controlkit.training.objective import encode_pictures, encode_texts, row_losses

    x_0, text = encode_pictures(models.pipeline.vae, batch.pixels, batch.vae_noise), encode_texts(models, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            row_losses(models, batch, x_0, text).mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Arithmetic and compilation


@pytest.mark.parametrize("tf32", [True, False])
def test_tf32_is_as_the_config_says(dataset, tmp_path, tf32):
    train(dataset, tmp_path / "run", "steps=1", f"tf32={str(tf32).lower()}")
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.parametrize("setting", ["true", "false"])
def test_a_run_calls_what_was_compiled(dataset, tmp_path, monkeypatch, setting):
    """ControlNet and UNet both, each step; samples are painted by the networks as they are."""
    calls = []

    def counted(network):
        return lambda *inputs, **named: calls.append(type(network).__name__) or network(*inputs, **named)

    monkeypatch.setattr(torch, "compile", counted)
    sampled = ["samples.every=2", "samples.steps=1", "samples.count=1"]
    train(dataset, tmp_path / "run", "steps=2", f"compile={setting}", *sampled)
    assert calls == (["ControlNetModel", "UNet2DConditionModel"] * 2 if setting == "true" else [])


def test_a_compiled_network_gives_the_same_loss_and_gradients(monkeypatch):
    """Its graphs are run as they are: to turn them into a CPU's code takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = replace(TrainConfig(), compile=True)
    torch.manual_seed(0)
    shape = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8}
    net = ControlNetModel(
        **shape, down_block_types=("DownBlock2D",), mid_block_type="UNetMidBlock2D", attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 8),
    )  # fmt: skip
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 5, 8), torch.rand(2, 3, 16, 16)

    def loss_and_gradients(network):
        net.zero_grad()
        _, middle = network(*inputs, return_dict=False)
        middle.square().mean().backward()
        return middle.detach(), [each.grad.clone() for each in net.parameters() if each.grad is not None]

    (plain, gradients), (fast, others) = loss_and_gradients(net), loss_and_gradients(compiled(config, net))
    assert torch.allclose(plain, fast, rtol=1e-4, atol=1e-6)
    assert all(torch.allclose(one, other, rtol=1e-3, atol=1e-6) for one, other in zip(gradients, others, strict=True))
    assert type(compiled(config, net)).__name__ == "OptimizedModule"
    assert compiled(TrainConfig(), net) is net


# Presets


def test_a_preset_lies_beneath_the_layer_that_names_it(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("batch_size: 7\nmixed_precision: fp16\n")
    on_the_line = build(TrainConfig, file, ["memory=16", "gradient_accumulation=3"])
    assert (on_the_line.batch_size, on_the_line.mixed_precision, on_the_line.gradient_accumulation) == (4, "bf16", 3)
    file.write_text("memory: 12\nbatch_size: 7\n")
    in_the_file = build(TrainConfig, file)
    assert (in_the_file.batch_size, in_the_file.mixed_precision) == (7, "bf16")
    assert in_the_file.gradient_checkpointing
    assert build(TrainConfig) == TrainConfig()


def test_a_preset_is_resolved_in_the_runs_own_config(dataset, tmp_path):
    train(dataset, tmp_path / "run", "memory=12", "steps=1")
    saved = build(TrainConfig, tmp_path / "run" / "config.yaml")
    assert (saved.mixed_precision, saved.batch_size) == ("bf16", 2)  # what the command line says stands above it
    assert saved.gradient_checkpointing


def test_an_unknown_size_is_refused(dataset, tmp_path, capsys):
    train(dataset, tmp_path / "run", "memory=10", code=2)
    assert "memory=10: expected 8 or 12 or 16 or 24" in capsys.readouterr().err
