"""ControlNets that compute only what counts: diffusers' own bits, fewer calls."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)
from PIL import Image

from annotators.canny import Canny
from controlkit.cli.main import main
from controlkit.diffusion.samplers import make_sampler
from controlkit.errors import RequestError
from controlkit.generation.request import Control, Net, Request
from controlkit.generation.settings import read_settings
from controlkit.generation.silent import asked_every, control_conditional_half, silenced
from controlkit.generation.upscale import Upscale
from controlkit.models.bases import find_base
from controlkit.models.controlnets import ControlNet
from tests.conftest import draw_photo
from tests.painting import strong_net

STEPS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two ControlNets of each family."""
    folder = tmp_path_factory.mktemp("silent-nets")
    return {
        base: [strong_net(base, folder / f"{base}-{seed}", seed=seed) for seed in (0, 1)]
        for base in ("random-sd15", "random-sdxl")
    }


@pytest.fixture(scope="module")
def maps():
    return [Image.fromarray(Canny()(draw_photo(seed, 64, 64))) for seed in (0, 5)]


def pipeline_of(base_name, controlnet):
    """As somebody puts it together who uses diffusers alone."""
    base = find_base(base_name)
    pipeline_class = StableDiffusionXLControlNetPipeline if base.is_xl else StableDiffusionControlNetPipeline
    extra = {} if base.is_xl else {"safety_checker": None}
    pipeline = pipeline_class.from_pretrained(base.folder, controlnet=controlnet, **extra)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipelines(folders):
    """(base, how many controls) -> diffusers' pipeline and ours over networks of their own."""
    made = {}
    for base, nets in folders.items():
        for count in (1, 2):
            theirs = [ControlNetModel.from_pretrained(folder) for folder in nets[:count]]
            ours = silenced([ControlNetModel.from_pretrained(folder) for folder in nets[:count]])
            made[base, count] = (
                pipeline_of(base, theirs[0] if count == 1 else theirs),
                pipeline_of(base, ours),
            )
    return made


def paint(pipeline, maps, *, sampler="dpmpp_2m_karras", seed=0, **how):
    pipeline.scheduler = make_sampler(sampler, pipeline.scheduler.config, steps=STEPS)
    settings = {"prompt": "a red ball", "guidance_scale": 5.0, "num_inference_steps": STEPS, "output_type": "latent"}
    image = maps[0] if not hasattr(pipeline.controlnet, "nets") else maps[: len(pipeline.controlnet.nets)]
    return pipeline(image=image, generator=torch.Generator().manual_seed(seed), **{**settings, **how}).images


def nets_of(pipeline):
    return list(getattr(pipeline.controlnet, "nets", [pipeline.controlnet]))


class Calls:
    """How often each net computed, and how often each encoded its map, while the block ran."""

    def __init__(self, pipeline):
        self.nets = nets_of(pipeline)

    def __enter__(self):
        self.computed, self.encoded, self.batches = [0] * len(self.nets), [0] * len(self.nets), set()
        self.hooks = []
        for number, net in enumerate(self.nets):
            for layer, counts in [(net.conv_in, self.computed), (net.controlnet_cond_embedding.conv_in, self.encoded)]:
                self.hooks.append(layer.register_forward_hook(self.counter(counts, number)))
        return self

    def counter(self, counts, number):
        def count(layer, inputs, output):
            counts[number] += 1
            self.batches.add(len(inputs[0]))

        return count

    def __exit__(self, *reason):
        for hook in self.hooks:
            hook.remove()


def window(start, end):
    return {"control_guidance_start": start, "control_guidance_end": end}


# The first of each are tried on SDXL too.
ONE = [
    {"sampler": "dpmpp_2m_karras"},
    {"sampler": "heun", **window(0.0, 0.6)},  # of second order: two calls a step
    {"sampler": "dpm2_a", **window(0.3, 0.8)},  # draws noise
    {"sampler": "unipc", **window(0.5, 1.0), "controlnet_conditioning_scale": 0.7},
    {"sampler": "euler_a", "controlnet_conditioning_scale": 0.0},
    {"sampler": "ddim", **window(0.0, 0.5), "guidance_scale": 1.0},
    {"sampler": "ddim", **window(0.2, 0.7), "guess_mode": True},
    {"sampler": "lms", "num_images_per_prompt": 2, **window(0.0, 0.6)},
]
TWO = [
    {"sampler": "dpmpp_2m_karras", **window([0.0, 0.4], [0.6, 1.0])},  # both, one, the other
    {"sampler": "heun", **window([0.0, 0.0], [0.6, 0.3]), "controlnet_conditioning_scale": [0.5, 1.2]},  # then none
    {"sampler": "euler", "controlnet_conditioning_scale": [0.0, 1.0]},
    {"sampler": "dpmpp_2s", "controlnet_conditioning_scale": [0.0, 0.0]},
    {"sampler": "ddim", **window([0.0, 0.3], [0.3, 0.6]), "guess_mode": True},
]


@pytest.mark.parametrize(
    ("base", "count", "how"),
    [
        *(("random-sd15", 1, how) for how in ONE),
        *(("random-sd15", 2, how) for how in TWO),
        *(("random-sdxl", 1, how) for how in ONE[:2]),
        ("random-sdxl", 2, TWO[0]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_picture_is_diffusers_own_to_the_last_bit(pipelines, maps, base, count, how):
    theirs, ours = pipelines[base, count]
    with Calls(theirs) as asked_there, Calls(ours) as asked_here:
        expected, got = paint(theirs, maps, **how), paint(ours, maps, **how)
    assert (got - expected).abs().max().item() == 0
    assert all(here <= 1 for here in asked_here.encoded)
    assert min(asked_there.encoded) >= STEPS


def test_nothing_is_computed_outside_the_window_or_at_weight_0(pipelines, maps):
    _, one = pipelines["random-sd15", 1]
    with Calls(one) as asked:
        paint(one, maps, sampler="ddim", **window(0.0, 0.5))
    assert (asked.computed, asked.encoded) == ([2], [1])
    with Calls(one) as asked:
        paint(one, maps, sampler="ddim", controlnet_conditioning_scale=0.0)
    assert (asked.computed, asked.encoded) == ([0], [0])
    _, two = pipelines["random-sd15", 2]
    with Calls(two) as asked:
        paint(two, maps, sampler="ddim", **window([0.0, 0.25], [0.25, 1.0]))
    assert (asked.computed, asked.encoded) == ([1, 3], [1, 1])


# The memory of maps


@pytest.fixture
def encoder(folders):
    net = silenced([ControlNetModel.from_pretrained(folders["random-sd15"][0])])
    fresh = ControlNetModel.from_pretrained(folders["random-sd15"][0])
    return net.controlnet_cond_embedding, fresh.controlnet_cond_embedding


@torch.no_grad()
def test_a_map_is_encoded_anew_once_it_changes(encoder):
    ours, fresh = encoder
    hint = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first = ours(hint)
    assert ours(hint) is first
    assert torch.equal(first, fresh(hint))
    hint.mul_(0.5)  # the same tensor, other values
    assert torch.equal(ours(hint), fresh(hint))
    assert not torch.equal(ours(hint), first)
    other = hint.clone().add_(0.1)
    assert torch.equal(ours(other), fresh(other))


@torch.no_grad()
def test_a_map_is_encoded_anew_once_the_weights_change(encoder):
    ours, fresh = encoder
    hint = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours(hint)
    for each in (ours, fresh):
        each.conv_out.weight.mul_(2)
    assert torch.equal(ours(hint), fresh(hint))
    for each in (ours, fresh):
        each.to(torch.float64)
    assert torch.equal(ours(hint.double()), fresh(hint.double()))


def test_with_gradients_nothing_is_remembered(encoder):
    ours, _ = encoder
    hint = torch.rand(1, 3, 16, 16)
    for _ in range(2):
        ours(hint).sum().backward()  # a graph that was kept would be walked twice, which raises


def test_what_the_net_answers_belongs_to_the_caller(folders):
    """diffusers adds the answers of several nets in place."""
    net = silenced([ControlNetModel.from_pretrained(folders["random-sd15"][0])])
    sample, text, hint = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 32), torch.rand(1, 3, 64, 64)

    def ask():
        return net(sample, 5, encoder_hidden_states=text, controlnet_cond=hint, return_dict=False)

    with torch.no_grad():
        first = ask()
        kept = copy.deepcopy(first)
        for each in [*first[0], first[1]]:
            each.add_(1)
        again = ask()
    assert all(torch.equal(a, b) for a, b in zip([*kept[0], kept[1]], [*again[0], again[1]], strict=True))


def test_no_weight_is_copied(folders):
    net = ControlNetModel.from_pretrained(folders["random-sd15"][0])
    before = {name: id(parameter) for name, parameter in net.named_parameters()}
    assert {name: id(parameter) for name, parameter in silenced([net]).named_parameters()} == before


# The half with the prompt alone


def by_hand(pipeline, image, weight, cfg, seed):
    """DDIM over the UNet's two halves, with the ControlNet asked about the second alone."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    with_prompt, without = pipeline.encode_prompt("a red ball", "cpu", 1, True, negative_prompt="")[:2]
    hint = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float() / 255
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    for t in scheduler.timesteps:
        down, middle = pipeline.controlnet(
            x, t, encoder_hidden_states=with_prompt, controlnet_cond=hint, conditioning_scale=weight, return_dict=False
        )
        plain = pipeline.unet(x, t, without).sample
        controlled = pipeline.unet(
            x, t, with_prompt, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        x = scheduler.step(plain + cfg * (controlled - plain), t, x).prev_sample
    return x


def test_the_controlled_half_is_as_computed_by_hand(pipelines, folders, maps):
    """Within rounding, since by hand each half is computed alone."""
    theirs, _ = pipelines["random-sd15", 1]
    ours = pipeline_of("random-sd15", silenced([ControlNetModel.from_pretrained(folders["random-sd15"][0])]))
    control_conditional_half(ours)
    how = {"sampler": "ddim", "guidance_scale": 4.0, "controlnet_conditioning_scale": 0.8, "seed": 3}
    with Calls(ours) as asked:
        got = paint(ours, maps, **how)
    with torch.no_grad():
        expected = by_hand(theirs, maps[0], 0.8, 4.0, 3)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)
    assert (got - paint(theirs, maps, **how)).abs().max() > 0.01
    assert (asked.computed, asked.encoded, asked.batches) == ([STEPS], [1], {1})


@pytest.mark.parametrize("base", ["random-sd15", "random-sdxl"])
def test_half_of_two_controls_is_both_halves_with_one_silenced(pipelines, folders, maps, base):
    """Another way to the same: everything computed, and the first half's answers multiplied by 0."""
    theirs, _ = pipelines[base, 2]
    ours = pipeline_of(base, silenced([ControlNetModel.from_pretrained(folder) for folder in folders[base]]))
    control_conditional_half(ours)

    def without_prompt_nothing(module, inputs, answer):
        keep = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
        return [each * keep for each in answer[0]], answer[1] * keep

    how = {"sampler": "euler", **window([0.0, 0.3], [1.0, 0.7])}
    hook = theirs.controlnet.register_forward_hook(without_prompt_nothing)
    try:
        expected = paint(theirs, maps, **how)
    finally:
        hook.remove()
    torch.testing.assert_close(paint(ours, maps, **how), expected, rtol=0, atol=2e-4)


def test_where_nothing_is_guided_there_are_no_halves(pipelines, folders, maps):
    theirs, _ = pipelines["random-sd15", 1]
    ours = pipeline_of("random-sd15", silenced([ControlNetModel.from_pretrained(folders["random-sd15"][0])]))
    control_conditional_half(ours)
    for how in ({"guidance_scale": 1.0, "num_images_per_prompt": 2}, {"guess_mode": True}):
        assert torch.equal(paint(ours, maps, **how), paint(theirs, maps, **how))


# Answers that stand


def standing(pipeline, steps):
    """diffusers' own ControlNets, whose answers are put back by hand until so many calls have passed."""

    def of_net():
        kept = []

        def put_back(net, inputs, output):
            if not kept or kept[0] == steps:
                kept[:] = [0, output]
            kept[0] += 1
            down, middle = kept[1]
            return down, middle.clone()  # diffusers adds the answers of several nets in place

        return put_back

    return [net.register_forward_hook(of_net()) for net in nets_of(pipeline)]


@pytest.mark.parametrize(
    ("base", "count", "steps", "how"),
    [
        ("random-sd15", 1, 2, {}),
        ("random-sd15", 1, 3, {"guess_mode": True}),
        ("random-sd15", 2, 2, {"sampler": "ddim", "controlnet_conditioning_scale": [0.6, 1.1]}),
        ("random-sdxl", 1, 2, {}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_answer_stands_for_the_steps_behind_it(pipelines, maps, base, count, steps, how):
    theirs, ours = pipelines[base, count]
    hooks = standing(theirs, steps)
    try:
        expected = paint(theirs, maps, **how)
    finally:
        for hook in hooks:
            hook.remove()
    with asked_every(ours, steps), Calls(ours) as calls:
        painted = paint(ours, maps, **how)
    assert torch.equal(painted, expected)
    assert calls.computed == [-(-STEPS // steps)] * count
    assert not torch.equal(painted, paint(ours, maps, **how)), "it stands no longer than asked for"


def test_an_answer_stands_within_the_window_and_for_the_same_batch_alone(pipelines, maps):
    _, ours = pipelines["random-sd15", 1]
    with asked_every(ours, 2), Calls(ours) as calls:
        paint(ours, maps, **window(0.25, 1.0))  # steps 1, 2 and 3: asked at 1 and 3
    assert calls.computed == [2]
    with asked_every(ours, STEPS), Calls(ours) as calls:
        for number in (1, 2):
            paint(ours, maps, num_images_per_prompt=number)
    assert calls.computed == [2], "what was answered to one picture was given to two"


# The command


@pytest.fixture
def request_for(folders, maps, tmp_path):
    maps[0].save(tmp_path / "edge.png")
    net = folders["random-sd15"][0]
    return ["generate", "--base", "random-sd15", "--controlnet", str(net), "--seed", "1", "--steps", "4", "--quiet"]


def test_generate_computes_only_what_counts(request_for, tmp_path, monkeypatch):
    calls = []
    load = ControlNet.load

    def watched(self, **options):
        net = load(self, **options)
        net.conv_in.register_forward_hook(lambda *_: calls.append("step"))
        net.controlnet_cond_embedding.conv_in.register_forward_hook(lambda *_: calls.append("hint"))
        return net

    monkeypatch.setattr(ControlNet, "load", watched)
    edge = tmp_path / "edge.png"
    assert main([*request_for, "--control", f"{edge}@1:0:0.5", "--out", str(tmp_path / "o.png")]) == 0
    assert (calls.count("step"), calls.count("hint")) == (2, 1)


def test_generate_controls_one_half_and_writes_it_down(request_for, tmp_path):
    edge = str(tmp_path / "edge.png")
    assert main([*request_for, "--control", edge, "--out", str(tmp_path / "both.png")]) == 0
    assert main([*request_for, "--control", edge, "--control-half", "--out", str(tmp_path / "half.png")]) == 0
    both, half = (np.asarray(Image.open(tmp_path / name)) for name in ("both.png", "half.png"))
    assert not np.array_equal(both, half)
    assert read_settings(tmp_path / "half.png")["control_half"] is True


def test_generate_asks_in_some_steps_and_begins_anew_with_each_picture(request_for, tmp_path):
    edge = str(tmp_path / "edge.png")
    often = [*request_for, "--control", edge, "--control-every", "4"]
    assert main([*often, "--num", "2", "--out", str(tmp_path / "two")]) == 0
    assert main([*often, "--seed", "2", "--out", str(tmp_path / "second.png")]) == 0
    _, second = sorted((tmp_path / "two").iterdir())
    assert np.array_equal(np.asarray(Image.open(second)), np.asarray(Image.open(tmp_path / "second.png")))
    assert read_settings(second)["control_every"] == 4
    assert main([*request_for, "--control", edge, "--seed", "2", "--out", str(tmp_path / "always.png")]) == 0
    assert not np.array_equal(np.asarray(Image.open(second)), np.asarray(Image.open(tmp_path / "always.png")))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"control_every": 0}, "control_every=0: expected at least 1 step"),
        ({"control_every": 2, "controls": (), "prompt": "x"}, "control_every=2: there is no control"),
        (
            {"control_every": 2, "image": Path("i"), "upscale": Upscale(scale=2.0)},
            "tiles ask for their control",
        ),
    ],
)
def test_what_an_answer_cannot_stand_for_is_refused(settings, reason):
    with pytest.raises(RequestError, match=reason):
        Request(**{"controls": (Control(file="a"),), "controlnets": (Net(name="b"),), **settings})


def test_half_of_no_guidance_is_refused():
    with pytest.raises(RequestError, match="control_half: cfg=1 guides nothing, so there are no halves"):
        Request(controls=(Control(file="a"),), controlnets=(Net(name="b"),), cfg=1.0, control_half=True)
