"""`controlkit base train` and `base sample`: from scratch, in pixels and in latents, killed and resumed."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from controlkit.cli.main import main
from controlkit.config import build
from controlkit.data.rows import find_datasets, read_dataset
from controlkit.errors import RequestError
from controlkit.generation.settings import read_settings
from controlkit.training.base_config import BaseConfig
from controlkit.training.base_networks import build_scheduler, build_text_encoder, build_tokenizer
from controlkit.training.base_tasks import about_square
from controlkit.training.loop import follow
from controlkit.training.optimizers import learning_rate
from controlkit.training.run import RunError
from tests.forked import Forked, run_two

TINY = [
    *("data.size=16", "unet.widths=8,16", "unet.attention=false,true", "unet.groups=4", "unet.heads=2"),
    *("vae.widths=8,8", "vae.groups=4", "text.width=16", "text.layers=1", "text.heads=2", "text.tokens=16"),
    *("steps=6", "batch_size=4", "checkpoint_every=3", "samples.every=0", "samples.count=4", "samples.steps=2"),
]
PIXELS = {
    "ddpm": [],
    "iddpm": ["condition=class", "data.label=scene.disc", "schedule=cosine", "loss=hybrid", "variance=learned_range"],
}


@pytest.fixture(scope="module")
def circles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("circles")
    assert main(["toybox", "make", str(folder), "--world", "circles", "--count", "48", "--size", "16", "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def vae(circles, tmp_path_factory):
    run = tmp_path_factory.mktemp("vae") / "run"
    assert main(["base", "train", "train=vae", f"data.path={circles}", f"output={run}", *TINY, "-q"]) == 0
    return run / "vae"


def train(circles, output, *settings, code=0):
    assert main(["base", "train", f"data.path={circles}", f"output={output}", *TINY, *settings, "-q"]) == code


def tensors(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def metrics(run):
    return (run / "metrics.jsonl").read_text()


def sample(base, out, *arguments, code=0):
    command = ["base", "sample", "--base", base, "--steps", 4, "--seed", 1, "--out", out, "-q", *arguments]
    assert main([str(each) for each in command]) == code
    return [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]


# What comes out


@pytest.mark.parametrize("kind", PIXELS)
def test_a_pixel_model_is_a_pipeline_of_diffusers(circles, tmp_path, kind):
    train(circles, tmp_path / "run", *PIXELS[kind], "samples.every=6")
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipeline.unet.config.out_channels == (6 if kind == "iddpm" else 3)
    assert pipeline.scheduler.config.variance_type == ("learned_range" if kind == "iddpm" else "fixed_small")
    with Image.open(tmp_path / "run" / "samples" / "step-000006.png") as grid:
        assert grid.size == (34, 34)
    if kind == "ddpm":
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline(num_inference_steps=2).images[0].size == (16, 16)


def test_the_autoencoder_gives_latents_of_variance_one(circles, vae):
    """By its scaling factor, as Stable Diffusion's does."""
    loaded = AutoencoderKL.from_pretrained(vae)
    images = [np.asarray(Image.open(circles / f"{number:06d}.png")) for number in range(48)]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = loaded.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0)) * loaded.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, rel=0.05)


def test_a_latent_model_is_a_stable_diffusion(circles, vae, tmp_path):
    train(circles, tmp_path / "run", "condition=text", f"vae.path={vae}", "prediction=v_prediction", "samples.every=6")
    folder = tmp_path / "run" / "pipeline"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    theirs = pipeline(
        "a red circle", height=16, width=16, num_inference_steps=4, guidance_scale=4.0, generator=generator
    )
    (ours,) = sample(folder, tmp_path / "out", "--prompt", "a red circle")
    assert np.array_equal(ours, np.asarray(theirs.images[0]))
    assert read_settings(next((tmp_path / "out").iterdir()))["prompt"] == "a red circle"


@pytest.mark.parametrize("settings", [[], ["variance=learned_range", "loss=hybrid", "schedule=cosine"]])
def test_prompts_in_pixels(circles, tmp_path, settings):
    """The folder is laid out as diffusers lays out its own; sampling guides by the prompt and repeats by the seed."""
    train(circles, tmp_path / "run", "condition=text", "samples.every=6", *settings)
    folder = tmp_path / "run" / "pipeline"
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert unet.config.in_channels == 3
    assert unet.config.out_channels == (6 if settings else 3)
    with Image.open(tmp_path / "run" / "samples" / "step-000006.png") as grid:
        assert grid.size == (34, 34)
    for sampler in ("ddpm", "euler"):
        common = [folder, tmp_path / sampler, "--sampler", sampler, "--prompt"]
        (red,) = sample(*common, "a red circle", "--cfg", "9")
        *_, again = sample(*common, "a red circle", "--cfg", "9")
        *_, plain = sample(*common, "a red circle", "--cfg", "1")
        assert red.shape == (16, 16, 3)
        assert np.array_equal(red, again)
        assert not np.array_equal(red, plain)
    assert main(["base", "sample", "--base", str(folder), "--class", "red", "--seed", "1"]) == 2


@pytest.mark.parametrize("condition", ["none", "class"])
def test_latents_without_captions(circles, vae, tmp_path, condition):
    """Unconditional and by class: the prompt is always empty, or the name of a class."""
    settings = [f"condition={condition}", "data.label=scene.disc", f"vae.path={vae}", "dropout=0", "samples.every=6"]
    train(circles, tmp_path / "run", *settings)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline", safety_checker=None)
    red = pipeline.tokenizer("red").input_ids
    assert (len(red) == 3) == (condition == "class")  # one token between start and end, if it was learned
    # What no batch ever held keeps the embedding it was given: without captions, all but start, end and padding.
    train(circles, tmp_path / "none", *settings, "steps=1", "lr=1e-12", "ema=0", "samples.every=0")
    fresh = StableDiffusionPipeline.from_pretrained(tmp_path / "none" / "pipeline", safety_checker=None)
    tables = [each.text_encoder.get_input_embeddings().weight.detach() for each in (pipeline, fresh)]
    moved = (tables[0] - tables[1]).abs().amax(dim=1) > 1e-9
    special = {pipeline.tokenizer.bos_token_id, pipeline.tokenizer.eos_token_id, pipeline.tokenizer.pad_token_id}
    learned = set(moved.nonzero().flatten().tolist())
    assert (learned <= special) == (condition == "none")
    assert learned


def test_several_datasets_are_one(circles, tmp_path):
    """Apart by commas; each row is found where it lies, equal names notwithstanding."""
    other = tmp_path / "other"
    assert (
        main(["toybox", "make", str(other), "--world", "circles", "--count", "5", "--size", "16", "--seed", "9", "-q"])
        == 0
    )
    rows = [row for folder in find_datasets(f"{circles}, {other}") for row in read_dataset(folder, label="scene.disc")]
    assert len(rows) == 53
    assert rows[0].file_name == rows[48].file_name
    assert rows[0].picture != rows[48].picture
    train(f"{circles},{other}", tmp_path / "run", "train=vae", "steps=1")


def test_a_world_is_drawn_as_large_as_it_is_asked_for(monkeypatch, tmp_path):
    import controlkit.toybox.register  # noqa: F401

    monkeypatch.setenv("CONTROLKIT_CACHE", str(tmp_path))
    said = []
    (folder,) = find_datasets("circles:7", said.append)
    assert len(read_dataset(folder)) == 7
    assert "drawing 7 scenes of the world circles" in said[0]
    assert find_datasets("circles:7", said.append) == [folder]
    assert len(said) == 1


def test_a_trained_latent_model_is_a_base_for_controlnets(circles, vae, tmp_path):
    train(circles, tmp_path / "base", "condition=text", f"vae.path={vae}", "steps=1")
    arguments = [f"base={tmp_path / 'base' / 'pipeline'}", f"data.path={circles}", f"output={tmp_path / 'net'}"]
    assert main(["train", *arguments, "steps=1", "samples.every=0", "-q"]) == 0
    assert json.loads((tmp_path / "net/controlnet/config.json").read_text())["conditioning_embedding_out_channels"] == [
        16,
        32,
    ]


@pytest.mark.parametrize("trains", [True, False])
def test_the_text_encoder_learns_along_or_stays(circles, vae, tmp_path, trains):
    train(circles, tmp_path / "run", "condition=text", f"vae.path={vae}", f"text.train={str(trains).lower()}", "ema=0")
    trained = StableDiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline", safety_checker=None)
    train(circles, tmp_path / "none", "condition=text", f"vae.path={vae}", "steps=1", "lr=1e-12", "ema=0")
    fresh = StableDiffusionPipeline.from_pretrained(tmp_path / "none" / "pipeline", safety_checker=None)
    key = "final_layer_norm.weight"
    (mine,) = (value for name, value in trained.text_encoder.state_dict().items() if name.endswith(key))
    (first,) = (value for name, value in fresh.text_encoder.state_dict().items() if name.endswith(key))
    assert torch.allclose(mine, first, atol=1e-9) != trains


def test_both_ways_for_the_time_to_enter(circles, tmp_path):
    for way, kind in (("add", "default"), ("scale_shift", "scale_shift")):
        train(circles, tmp_path / way, f"unet.time={way}", "steps=1")
        config = json.loads((tmp_path / way / "pipeline" / "unet" / "config.json").read_text())
        assert config["resnet_time_scale_shift"] == kind


@pytest.mark.parametrize("loss", ["l1", "huber"])
def test_other_losses_and_min_snr_change_the_run(circles, tmp_path, loss):
    train(circles, tmp_path / "l2", "steps=2")
    train(circles, tmp_path / "other", "steps=2", f"loss={loss}")
    train(circles, tmp_path / "snr", "steps=2", "snr_gamma=5")
    assert len({metrics(tmp_path / name) for name in ("l2", "other", "snr")}) == 3


# How it is sampled


@pytest.fixture(scope="module")
def models(circles, tmp_path_factory):
    """One of each kind, barely trained: sampling is exact all the same."""
    folder = tmp_path_factory.mktemp("models")
    for kind, settings in PIXELS.items():
        train(circles, folder / kind, *settings)
    return folder


@pytest.mark.parametrize("kind", PIXELS)
def test_ddim_is_a_function_of_its_noise_and_eta_is_not(models, tmp_path, kind):
    base = models / kind / "pipeline"
    same = [sample(base, tmp_path / name)[0] for name in ("a", "b")]
    noisy = sample(base, tmp_path / "c", "--eta", 1)[0]
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], noisy)


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m_sde", "lcm", "ddpm"])
def test_samplers_that_draw_noise_draw_it_from_the_seed(models, tmp_path, sampler):
    base = models / "ddpm" / "pipeline"
    same = [sample(base, tmp_path / name, "--sampler", sampler)[0] for name in ("a", "b")]
    assert np.array_equal(*same)


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize("steps", [1, 7, pytest.param(1000, marks=pytest.mark.slow)])
def test_respaced_ddpm_takes_any_number_of_steps(models, tmp_path, kind, steps):
    (image,) = sample(models / kind / "pipeline", tmp_path, "--sampler", "ddpm", "--steps", steps)
    assert image.shape == (16, 16, 3)


def test_a_class_is_chosen_by_name_or_number_and_counts(models, tmp_path):
    base = models / "iddpm" / "pipeline"
    classes = json.loads((base / "labels.json").read_text())
    named = sample(base, tmp_path / "named", "--class", classes[2])[0]
    numbered = sample(base, tmp_path / "numbered", "--class", "2")[0]
    other = sample(base, tmp_path / "other", "--class", classes[0])[0]
    none = sample(base, tmp_path / "none")[0]
    assert np.array_equal(named, numbered)
    assert not np.array_equal(named, other)
    assert not np.array_equal(named, none)


def test_guidance_of_1_needs_no_second_opinion(models, tmp_path):
    base = models / "iddpm" / "pipeline"
    weights = {w: sample(base, tmp_path / str(w), "--class", "1", "--cfg", w)[0] for w in (1, 3)}
    assert not np.array_equal(weights[1], weights[3])


# How it goes on


@pytest.mark.parametrize("settings", [[], PIXELS["iddpm"], ["train=vae"]], ids=["ddpm", "iddpm", "vae"])
def test_a_resumed_run_equals_an_unbroken_one(circles, tmp_path, settings):
    """Stopped behind step 5: steps 4 and 5 are lost, and made again from the checkpoint of step 3."""
    train(circles, tmp_path / "whole", *settings, "lr_schedule=constant")
    train(circles, tmp_path / "broken", *settings, "lr_schedule=constant", "steps=5")
    shutil.rmtree(tmp_path / "broken" / "checkpoints" / "step-000005")
    train(circles, tmp_path / "broken", *settings, "lr_schedule=constant", "--resume")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "broken")
    name = "vae" if "train=vae" in settings else "pipeline"
    assert tensors(tmp_path / "whole" / name) == tensors(tmp_path / "broken" / name)


def test_a_killed_run_equals_an_unbroken_one(circles, tmp_path):
    """SIGKILL at whatever it was doing behind its first checkpoint."""
    settings = [*PIXELS["iddpm"], "steps=40"]
    arguments = ["base", "train", f"data.path={circles}", f"output={tmp_path / 'killed'}", *TINY, *settings, "-q"]
    process = Forked(arguments, 1, tmp_path)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert not (tmp_path / "killed" / "pipeline").exists()
    train(circles, tmp_path / "killed", *settings, "--resume")
    train(circles, tmp_path / "whole", *settings)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert tensors(tmp_path / "killed" / "pipeline") == tensors(tmp_path / "whole" / "pipeline")


def test_a_latent_run_resumes_too(circles, vae, tmp_path):
    text = ["condition=text", f"vae.path={vae}"]
    train(circles, tmp_path / "whole", *text)
    train(circles, tmp_path / "broken", *text, "max_minutes=0")  # stops behind its first step
    assert len(metrics(tmp_path / "broken").splitlines()) == 1
    train(circles, tmp_path / "broken", *text, "--resume")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "broken")
    assert tensors(tmp_path / "whole" / "pipeline") == tensors(tmp_path / "broken" / "pipeline")


def test_out_of_time_leaves_something_that_can_be_used(circles, tmp_path, capsys):
    arguments = ["base", "train", f"data.path={circles}", f"output={tmp_path / 'run'}", *TINY, "max_minutes=0"]
    assert main(arguments) == 0
    assert "stopped at step 1 of 6 after 0 minutes; go on with --resume" in capsys.readouterr().err
    DDPMPipeline.from_pretrained(tmp_path / "run" / "pipeline")


def test_two_processes_train_as_one_does(circles, tmp_path):
    train(circles, tmp_path / "one", "batch_size=4")
    arguments = ["base", "train", f"data.path={circles}", f"output={tmp_path / 'two'}", *TINY, "batch_size=2"]
    done = run_two(*arguments)
    assert done.returncode == 0, done.stderr
    assert "4 a step" in done.stderr  # two processes with two rows each
    one, two = ([json.loads(line)["loss"] for line in metrics(tmp_path / name).splitlines()] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(circles, tmp_path, monkeypatch):
    from controlkit.training import base_tasks
    from controlkit.training.base import train_base

    real = base_tasks.per_item
    calls = []

    def broken(*arguments):
        calls.append(None)
        return real(*arguments) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(base_tasks, "per_item", broken)
    config = build(BaseConfig, None, [f"data.path={circles}", f"output={tmp_path / 'run'}", *TINY])
    with pytest.raises(RunError, match=r"the loss is nan at step 5; the last checkpoint is sound: lower lr"):
        train_base(config)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]


# Its parts


def test_averages_follow_the_networks():
    network, average = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    first = average.weight.clone()
    follow({"n": average}, {"n": network}, decay=0.5, step=1000)
    assert torch.allclose(average.weight, (first + network.weight) / 2, atol=1e-6)
    follow({"n": average}, {"n": network}, decay=0.9999, step=1)  # early: most of the way, whatever the decay
    assert (average.weight - network.weight).abs().max() < (first - network.weight).abs().max() / 4


def test_the_learning_rate_rises_and_falls():
    config = build(BaseConfig, None, ["lr=1", "warmup_steps=10", "steps=100"])
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] < 0.001


def test_the_tokenizer_holds_a_word_of_the_captions_in_one_token_and_any_text_at_all():
    config = build(BaseConfig)
    tokenizer = build_tokenizer(config, ["a red circle on a blue ground", "a blue circle on a red ground"] * 3)
    assert len(tokenizer("a red circle on a blue ground").input_ids) == 7 + 2
    assert tokenizer("a Red circle").input_ids == tokenizer("a red circle").input_ids
    odd = tokenizer("zürich 漢字!").input_ids
    assert odd[0] == tokenizer.bos_token_id
    assert len(odd) > 4
    assert max(odd) < len(tokenizer)
    encoder = build_text_encoder(config, tokenizer)
    assert encoder(torch.tensor([odd])).last_hidden_state.shape == (1, len(odd), config.text.width)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("timesteps", [1000, 250])
def test_diffusers_scheduler_has_the_schedule_of_that_name(name, timesteps):
    from controlkit.diffusion import schedules

    if name == "scaled_linear" and timesteps != 1000:
        pytest.skip("Stable Diffusion's betas are for 1000 steps")
    config = build(BaseConfig, None, [f"schedule={name}", f"timesteps={timesteps}"])
    ours = schedules.schedule(name, timesteps).alpha_bar
    assert torch.allclose(build_scheduler(config).alphas_cumprod.double(), ours, rtol=2e-3, atol=1e-7)


def test_words_learned_stay_one_token_whatever_is_learned_later():
    from controlkit.training.base_networks import learn_word

    words = ["red", "bred", "ed", "reddest", "a", "aa", "aaa", "ball", "balls", "all"]
    merges = {}
    for word in words:
        learn_word(word, merges)
    again = dict(merges)
    for word in words:
        learn_word(word, again)
    assert again == merges  # nothing is left to learn: each is one token under all the merges


def test_the_vocabulary_is_bounded_and_the_same_each_time():
    config = build(BaseConfig, None, ["text.vocabulary=600"])
    captions = [f"word{chr(97 + a)}{chr(97 + b)} of many" for a in range(26) for b in range(26)]
    one, other = build_tokenizer(config, captions), build_tokenizer(config, list(reversed(captions)))
    assert one.get_vocab() == other.get_vocab()
    assert 514 < len(one) < 620


def test_a_grid_is_about_square():
    pictures = [np.zeros((2, 2, 3), np.uint8)] * 5
    assert [len(row) for row in about_square(pictures)] == [3, 3]


# Bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["schedule=cosin"], "schedule=cosin: expected linear or scaled_linear or cosine"),
        (["loss=hybrid"], "loss=hybrid with variance=fixed_small: hybrid and learned_range go together"),
        (["condition=class"], "condition=class needs data.label"),
        (["condition=class", "data.label=colour"], "has no such column: known: canny_file_name, file_name, "),
        (["condition=class", "data.label=scene.colour"], "has no 'colour' in 'scene'"),
        (["condition=text", "vae.path=/nowhere"], "vae.path=/nowhere: no autoencoder in diffusers' layout"),
        (["unet.widths=8,15"], "unet.widths: 15 is not a multiple of unet.groups=4"),
        (["unet.widths=8"], "unet.widths has 1 levels, unet.attention 2"),
        (["data.size=15"], "data.size=15 is not a multiple of 2"),
        (["timesteps=10"], "linear schedule of 10 steps would need beta 2"),
        (["samples.every=1", "samples.sampler=ddimm"], "did you mean 'ddim'"),
        (["samples.every=1", "samples.steps=2000"], "2000 steps: the schedule of this base has 1000"),
        (["data.path=/nowhere"], "there is no such folder"),
    ],
)
def test_a_wrong_request_is_one_line(circles, tmp_path, capsys, settings, words):
    train(circles, tmp_path / "run", *settings, code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sampler", "dimm"], "unknown sampler 'dimm': did you mean 'ddim'"),
        (["--eta", "2"], "eta=2: expected 0 (deterministic) to 1"),
        (["--eta", "0.5", "--sampler", "euler"], "sampler 'euler' has no eta"),
        (["--steps", "2000"], "2000 steps: the schedule of this base has 1000"),
        (["--class", "reed"], "unknown class 'reed': did you mean 'red'"),
        (["--prompt", "x"], "reads no text"),
        (["--base", "/nowhere"], "model_index.json is missing"),
    ],
)
def test_a_wrong_sampling_is_one_line(models, tmp_path, capsys, arguments, words):
    assert sample(models / "iddpm" / "pipeline", tmp_path, *arguments, code=2) == []
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_classes_are_for_those_who_have_them(models, circles, vae, tmp_path, capsys):
    sample(models / "ddpm" / "pipeline", tmp_path, "--class", "red", code=2)
    assert "has no classes" in capsys.readouterr().err


def test_a_dry_run_prints_the_config(circles, capsys):
    assert main(["base", "train", f"data.path={circles}", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["path"] == str(circles)


def test_everything_wrong_is_said_together():
    with pytest.raises(RequestError) as reason:
        build(BaseConfig, None, ["ema=1", "lr=0", "dropout=2", "vae.widths=5"])
    assert len(str(reason.value).splitlines()) == 4
