"""Each setting of the objective does what its paper says, and reaches the run."""

import json
import shutil

import numpy as np
import pytest
import torch

from controlkit.cli.main import main
from controlkit.config import build
from controlkit.data.rows import read_dataset
from controlkit.diffusion.prediction import to_x0
from controlkit.diffusion.schedules import from_scheduler_config, zero_terminal_snr
from controlkit.errors import RequestError
from controlkit.generation.pipelines import control_pipeline, load_parts
from controlkit.models.bases import find_base
from controlkit.models.controlnets import make_controlnet
from controlkit.training import objective as objective_module
from controlkit.training.batches import ControlRows, collate
from controlkit.training.config import TrainConfig, check_against_base
from controlkit.training.dropout import ControlDropout
from controlkit.training.noise import draw_noise, draw_timestep
from controlkit.training.objective import Models, row_losses
from controlkit.training.objective_config import ObjectiveConfig
from tests.training.test_train import steps_of, train

KEY = (0, 0, "content", "name")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A base of each prediction type; what a UNet would answer is nothing to these tests."""
    folder = tmp_path_factory.mktemp("x0") / "base"
    shutil.copytree(find_base("random-sd15").folder, folder)
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "sample"}))
    return {"epsilon": "random-sd15", "v_prediction": "random-sd21", "sample": str(folder)}


@pytest.fixture
def models_of(bases):
    def models(prediction="epsilon", **settings):
        base = find_base(bases[prediction])
        assert base.prediction_type == prediction
        parts = load_parts(base, dtype=torch.float32, device=torch.device("cpu"), locked=True)
        net = make_controlnet(parts["unet"], vae_factor=base.vae_factor, latent_channels=4, seed=0)
        pipeline = control_pipeline(base, parts, [net], None)
        return Models.of(base, pipeline, net, torch.device("cpu"), ObjectiveConfig(**settings))

    return models


def rows_of(dataset, **options):
    settings = {"resolution": 64, "latent_shape": (4, 8, 8), "timesteps": 1000, "prompt_dropout": 0.5, "seed": 0}
    return ControlRows(read_dataset(dataset, "canny"), condition="canny", **(settings | options))


def answering(monkeypatch, answer):
    """The networks' answer is `answer(x_t, timesteps)`."""
    monkeypatch.setattr(objective_module, "predict", lambda models, x_t, t, control, text: answer(x_t, t))


def a_batch(dataset, **objective):
    data = rows_of(dataset, objective=ObjectiveConfig(**objective))
    return collate([data[0, number] for number in range(6)])


# The loss


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss": "l2"}, lambda d: d**2),
        ({"loss": "l1"}, lambda d: d),
        ({"loss": "huber", "huber_delta": 0.25}, lambda d: d**2 / 2 if d <= 0.25 else 0.25 * (d - 0.125)),
        ({"loss": "huber", "huber_delta": 2.0}, lambda d: d**2 / 2),
    ],
)
@pytest.mark.parametrize("error", [0.2, 0.75])
def test_an_error_that_is_the_same_everywhere_costs_its_closed_form(
    dataset, models_of, monkeypatch, settings, expected, error
):
    batch = a_batch(dataset)
    answering(monkeypatch, lambda x_t, t: batch.noise + error)
    losses = row_losses(models_of(**settings), batch, torch.zeros_like(batch.noise), {})
    assert losses.tolist() == pytest.approx([expected(error)] * 6, rel=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_x0_by_min_snr_gamma_whatever_is_predicted(
    dataset, models_of, monkeypatch, prediction
):
    models, batch = models_of(prediction, min_snr_gamma=5.0), a_batch(dataset)
    batch.timesteps[:] = torch.tensor([0, 30, 150, 400, 800, 999])
    x_0 = torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(3))
    seen = {}

    def answer(x_t, t):
        seen["x_t"] = x_t.double()
        seen["said"] = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(4))
        return seen["said"]

    answering(monkeypatch, answer)
    losses = row_losses(models, batch, x_0, {})
    schedule = from_scheduler_config(models.base.scheduler)
    alpha_bar = schedule.alpha_bar[batch.timesteps]
    errors = (to_x0(prediction, seen["said"].double(), seen["x_t"], alpha_bar) - x_0).square().flatten(1).mean(1)
    expected = schedule.snr[batch.timesteps].clamp(max=5) * errors
    # At the cleanest level x_t and x_0 nearly cancel in float32 when the network speaks of noise.
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=2e-2)
    assert losses[1:].tolist() == pytest.approx(expected[1:].tolist(), rel=1e-3)


# The noise


def test_a_noise_offset_shifts_whole_channels():
    """The mean over n cells of a channel has variance 1/n without, 1/n + offset² with."""

    def means(offset):
        config = ObjectiveConfig(noise_offset=offset)
        return torch.stack([draw_noise(config, (*KEY, n), (4, 8, 8), 1000)["noise"].mean((1, 2)) for n in range(400)])

    for offset in (0.0, 0.3):
        expected = 1 / 64 + offset**2
        assert means(offset).var().item() == pytest.approx(expected, rel=4 * (2 / 1600) ** 0.5)


def test_what_is_perturbed_is_the_input_and_not_the_target(dataset, models_of, monkeypatch):
    batch, models = a_batch(dataset, input_perturbation=0.2), models_of()
    x_0, seen = torch.randn(batch.noise.shape), {}
    monkeypatch.setattr(objective_module, "predict", lambda models, x_t, *rest: seen.update(x_t=x_t) or batch.noise)
    assert row_losses(models, batch, x_0, {}).abs().max() == 0
    alpha_bar = models.alpha_bar[batch.timesteps].reshape(-1, 1, 1, 1)
    more = seen["x_t"] - alpha_bar.sqrt() * x_0 - (1 - alpha_bar).sqrt() * batch.noise
    assert torch.allclose(more, (1 - alpha_bar).sqrt() * batch.perturbation, atol=1e-5)
    assert batch.perturbation.std().item() == pytest.approx(0.2, rel=0.1)
    assert not torch.equal(batch.perturbation / 0.2, batch.noise)
    assert a_batch(dataset).perturbation is None


@pytest.mark.parametrize("kind", ["uniform", "cubic"])
def test_timesteps_are_drawn_by_their_law_in_the_range_asked_for(kind):
    """The share at or above t is 1 - u for uniform and (1 - u)^(1/3) for cubic, where u is t's place in the range."""
    config = ObjectiveConfig(timesteps=kind, first_timestep=5, last_timestep=14)
    drawn = torch.stack([draw_timestep(config, (*KEY, number), 1000) for number in range(4000)]).numpy()
    share = np.linspace(1, 0, 11) ** (1 if kind == "uniform" else 1 / 3)
    expected = -np.diff(share) * len(drawn)
    counts = np.bincount(drawn, minlength=15)[5:]
    assert len(counts) == 10
    assert counts.sum() == len(drawn)
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-squared of 9 degrees of freedom, p = 0.001


def test_about_the_asked_share_of_maps_is_empty_anew_each_epoch_and_apart_from_the_prompts(dataset):
    data = rows_of(dataset, control_dropout=ControlDropout(0.3))
    samples = [[data[epoch, number] for number in range(len(data))] for epoch in range(10)]
    emptied = np.array([[not sample["control"].any() for sample in row] for row in samples])
    prompts = np.array([[sample["emptied"].item() for sample in row] for row in samples])
    assert abs(emptied.mean() - 0.3) < 4 * (0.21 / emptied.size) ** 0.5
    assert len({tuple(row) for row in emptied}) == 10
    assert abs(np.corrcoef(emptied.ravel(), prompts.ravel())[0, 1]) < 4 / emptied.size**0.5
    assert data[3, 2]["control"].equal(rows_of(dataset, control_dropout=ControlDropout(0.3))[3, 2]["control"])
    assert all(rows_of(dataset)[0, number]["control"].any() for number in range(len(data)))


def test_dropout_of_maps_leaves_all_other_draws_alone(dataset):
    plain, dropped = rows_of(dataset)[1, 2], rows_of(dataset, control_dropout=ControlDropout(1.0))[1, 2]
    assert all(
        torch.equal(value, dropped[key]) if isinstance(value, torch.Tensor) else value == dropped[key]
        for key, value in plain.items() if key != "control"
    )  # fmt: skip


# Zero terminal SNR


def test_a_schedule_rescaled_ends_in_pure_noise_in_training_and_sampling(models_of):
    models = models_of("v_prediction", zero_terminal_snr=True)
    expected = zero_terminal_snr(from_scheduler_config(models.base.scheduler))
    assert models.alpha_bar[-1] == 0
    assert torch.equal(models.alpha_bar, expected.alpha_bar.float())
    assert torch.equal(from_scheduler_config(models.scheduler).alpha_bar, expected.alpha_bar)
    assert models.scheduler["prediction_type"] == "v_prediction"
    assert torch.equal(
        models_of("v_prediction").alpha_bar, from_scheduler_config(models.base.scheduler).alpha_bar.float()
    )


def test_a_base_that_predicts_noise_cannot_learn_from_pure_noise(bases, tmp_path):
    config = build(TrainConfig, None, ["objective.zero_terminal_snr=true"])
    with pytest.raises(RequestError, match=r"alpha_bar = 0, pure noise.*use 'v_prediction' or 'sample'"):
        check_against_base(config, find_base(bases["epsilon"]))
    # Nor if its own config says so.
    shutil.copytree(find_base(bases["epsilon"]).folder, tmp_path / "base")
    file = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rescale_betas_zero_snr": True}))
    with pytest.raises(RequestError, match="pure noise"):
        check_against_base(TrainConfig(), find_base(str(tmp_path / "base")))


# The run


@pytest.fixture(scope="module")
def plain_run(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "run"
    train(dataset, run, "base=random-sd21", "steps=3", "lr=1e-2")
    return run


@pytest.mark.parametrize(
    "setting",
    [
        "objective.loss=l1",
        "objective.loss=huber",
        "objective.min_snr_gamma=5",
        "objective.noise_offset=0.1",
        "objective.input_perturbation=0.1",
        "objective.timesteps=cubic",
        "objective.last_timestep=500",
        "objective.zero_terminal_snr=true",
        "control_dropout=1",
    ],
)
def test_the_setting_reaches_the_run(dataset, tmp_path, plain_run, setting):
    """A dropped control by the third step: the output zero convolutions have moved then, and the hint encoder's."""
    steps = 3 if setting.startswith("control") else 1
    train(dataset, tmp_path / "run", "base=random-sd21", f"steps={steps}", "lr=1e-2", setting)
    assert steps_of(tmp_path / "run")[-1]["loss"] != steps_of(plain_run)[steps - 1]["loss"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["objective.loss=mse"], "objective.loss=mse: expected l2 or l1 or huber"),
        (["objective.min_snr_gamma=0"], "objective.min_snr_gamma=0: expected more than 0"),
        (["objective.noise_offset=-1"], "objective.noise_offset=-1: expected 0 (none) or more"),
        (["objective.last_timestep=3", "objective.first_timestep=7"], "objective.last_timestep=3 is below"),
        (["objective.last_timestep=1000"], "objective.last_timestep=1000: the schedule of base=random-sd15"),
        (["objective.zero_terminal_snr=true"], "objective.zero_terminal_snr=true: the schedule ends with alpha_bar"),
        (["control_dropout=1.5"], "control_dropout=1.5: expected a share from 0 to 1"),
        (["ema=1"], "ema=1: expected 0 (none) to below 1"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line(dataset, tmp_path, capsys, settings, words):
    arguments = ["train", "base=random-sd15", f"data.path={dataset}", f"output={tmp_path / 'run'}", *settings]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
