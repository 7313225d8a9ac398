"""`control_lora=RANK`: the copy learns at that rank alone, resumes exactly, and is handed over in both forms."""

import shutil

import pytest
import torch
from diffusers import ControlNetModel

from controlkit.config import build
from controlkit.errors import RequestError
from controlkit.models.bases import find_base
from controlkit.models.controlnets import find_controlnet, make_controlnet
from controlkit.training.config import TrainConfig
from controlkit.training.forecast import forecast
from controlkit.training.low_rank import learn_at_low_rank
from tests.models.test_controlnets import inputs
from tests.models.test_names import same
from tests.training.test_train import metrics, train, weights

RANK = 2
SETTINGS = [
    *(f"control_lora={RANK}", "steps=3", "ema=0.5", "gradient_checkpointing=true", "checkpoint_every=1"),
    *("watch.every=2", "watch.rows=2", "samples.every=3", "samples.steps=1", "samples.count=1"),
]


@pytest.fixture(scope="module")
def learned(dataset, tmp_path_factory):
    """The run folder of three steps."""
    run = tmp_path_factory.mktemp("runs") / "run"
    train(dataset, run, *SETTINGS)
    return run


def fresh():
    base = find_base("random-sd15")
    unet = base.load("unet")
    return base, unet, make_controlnet(unet, vae_factor=8, latent_channels=4, seed=0)


@torch.no_grad()
def test_untrained_it_is_the_fresh_controlnet_bit_for_bit():
    """Also where its zero convolutions are not zero: `up` begins at zero."""
    base, unet, net = fresh()
    torch.nn.init.ones_(net.controlnet_mid_block.weight)
    x_t, text, control, _ = inputs(base, unet)
    expected = net(x_t, 500, text, control, return_dict=False)
    whole = {name: value.clone() for name, value in net.state_dict().items()}
    learn_at_low_rank(net, RANK, seed=0)
    down, middle = net(x_t, 500, text, control, return_dict=False)
    assert torch.equal(middle, expected[1])
    assert all(torch.equal(one, other) for one, other in zip(down, expected[0], strict=True))
    same(whole, net.whole())


def test_what_learns():
    """Hint encoder and zero convolutions in full; of every layer of the copy a pair of the rank, a function of the
    seed."""
    _, _, net = fresh()
    own = {name for name, _ in net.named_parameters() if name.startswith("controlnet_")}
    layers = [each for each in net.modules() if isinstance(each, torch.nn.Linear | torch.nn.Conv2d)]
    count = len(layers) - sum(name.endswith(".weight") for name in own)
    learn_at_low_rank(net, RANK, seed=0)
    learning = {name: value for name, value in net.named_parameters() if value.requires_grad}
    pairs = {name: value for name, value in learning.items() if name not in own}
    assert own <= learning.keys()
    assert len(pairs) == 2 * count
    assert all(RANK in value.shape[:2] for value in pairs.values())
    _, _, other = fresh()
    learn_at_low_rank(other, RANK, seed=1)
    down = "conv_in.lora_A.default.weight"
    assert not torch.equal(other.get_parameter(down), net.get_parameter(down))


def test_it_is_handed_over_in_both_forms(learned):
    """`controlnet/` is a ControlNet like any other; the small file makes the same one of the base."""
    _, _, begun = fresh()
    net, before = weights(learned), begun.state_dict()
    largest = []
    for name, value in net.items():
        if value.ndim == 1 and not name.startswith("controlnet_"):
            assert torch.equal(value, before[name]), name
        elif not name.startswith("controlnet_"):
            sizes = torch.linalg.svdvals((value - before[name]).flatten(1))
            assert sizes[RANK:].max() < 2e-6, name  # what rounding the sum leaves
            largest.append(sizes[0])
    assert max(largest) > 1e-4
    file = find_controlnet(str(learned / "control_lora_canny.safetensors"))
    assert (file.kind, file.condition) == ("Control-LoRA", "canny")
    same(net, file.on(find_base("random-sd15")).load().state_dict())
    assert "Control-LoRA of rank 2" in (learned / "README.md").read_text()


def test_a_checkpoint_can_be_used_as_it_is_and_gone_on_from_exactly(learned, dataset, tmp_path):
    step = learned / "checkpoints" / "step-000002"
    assert ControlNetModel.from_pretrained(step / "controlnet").state_dict().keys() == weights(learned).keys()
    run = tmp_path / "run"
    shutil.copytree(learned, run)
    shutil.rmtree(run / "checkpoints/step-000003")
    train(dataset, run, *SETTINGS, "--resume")
    assert metrics(run) == metrics(learned)
    last = "checkpoints/step-000003"
    for path in (learned / last).rglob("*"):
        assert path.is_dir() or path.read_bytes() == (run / path.relative_to(learned)).read_bytes(), path


def test_the_forecast_counts_what_learns():
    base, _, net = fresh()
    learn_at_low_rank(net, RANK, seed=0)
    learning = sum(each.numel() for each in net.parameters() if each.requires_grad)
    expected = forecast(build(TrainConfig, None, ["base=random-sd15", f"control_lora={RANK}"]), base)
    assert expected.gradients == 4 * learning
    assert expected.optimizer == 8 * learning
    assert expected.learned == 4 * sum(each.numel() for each in net.parameters())


def test_what_makes_no_sense_is_refused():
    for settings, words in [
        (["control_lora=-1"], "control_lora=-1: expected 0 or more"),
        (["control_lora=4", "controlnet=x"], "control_lora=4 adds to the base's own encoder; leave controlnet=x out"),
    ]:
        with pytest.raises(RequestError, match=words):
            build(TrainConfig, None, settings)
