"""A cache that is never wrong and never rebuilt needlessly."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers.normalizers import Replace

from controlkit.cli.main import main
from controlkit.data.ledger import read_entry
from controlkit.data.rows import read_dataset
from controlkit.models.bases import find_base
from controlkit.processes import Processes
from controlkit.training import cache as module
from controlkit.training.batches import ControlRows, collate, make_batches, rows_to_come
from controlkit.training.cache import cache_rows, pack, picture_recipe, text_recipe, unpack
from controlkit.training.encoders import ENCODERS, let_encoders_rest
from controlkit.training.objective import control_loss, encode_texts, latents
from tests.conftest import draw_photo
from tests.forked import run_two
from tests.training.test_objective import BASES, set_up


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch, cache):
    """A cache that holds nothing but the random bases."""
    folder = tmp_path / "cache"
    find_base("random-sd15")
    folder.mkdir()
    (folder / "random-bases").symlink_to(cache / "random-bases")
    monkeypatch.setenv("CONTROLKIT_CACHE", str(folder))
    return folder


@pytest.fixture
def own_dataset(dataset, tmp_path):
    """A copy to write into; the files are old enough to be remembered."""
    shutil.copytree(dataset, tmp_path / "own")
    return tmp_path / "own"


def rows_of(dataset, **options):
    settings = {"resolution": 64, "latent_shape": (4, 8, 8), "timesteps": 1000, "prompt_dropout": 0.5, "seed": 0}
    return ControlRows(read_dataset(dataset, "canny"), condition="canny", **(settings | options))


def cached(dataset, models, numbers=range(24), **options):
    """The rows with their cache, and what had to be made for it."""
    data = rows_of(dataset, **options)
    return data, cache_rows(data, list(numbers), models, Processes(), dataset=str(dataset))


def to_come(data, start, count):
    return rows_to_come(data, start=start, count=count, batch_size=1, processes=Processes())


def batch_of(data, *numbers):
    return collate([data[0, number] for number in numbers])


# The same numbers


@pytest.mark.parametrize("name", BASES)
def test_cached_and_uncached_training_have_the_same_loss(name, dataset, fresh_cache):
    models, net, batch = set_up(name, dataset)
    for parameter in net.parameters():  # as if it had learned something
        parameter.data += 0.01
    data, made = cached(dataset, models, range(8))
    assert made == {"pictures": 8, "maps": 8, "texts": 9}
    from_cache = batch_of(data, *range(8))
    assert batch.pixels is not None
    assert from_cache.pixels is None
    assert batch.emptied.tolist() == from_cache.emptied.tolist()
    assert torch.equal(batch.control, from_cache.control)
    assert torch.equal(batch.sizes, from_cache.sizes)
    ours, theirs = control_loss(models, from_cache), control_loss(models, batch)
    assert abs(ours.item() - theirs.item()) < 1e-5
    ours.backward()
    gradients = {key: parameter.grad.clone() for key, parameter in net.named_parameters()}
    net.zero_grad()
    theirs.backward()
    for key, parameter in net.named_parameters():
        assert torch.allclose(parameter.grad, gradients[key], rtol=1e-4, atol=1e-5), key


@pytest.mark.parametrize("name", ["random-sd15", "random-sdxl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_row_alone_is_bit_for_bit_what_the_networks_give(name, dtype, dataset, fresh_cache):
    """bfloat16 too: what is kept is neither widened nor rounded."""
    models, _, _ = set_up(name, dataset)
    for part in ENCODERS:
        if hasattr(models.pipeline, part):
            getattr(models.pipeline, part).to(dtype)
    data, _ = cached(dataset, models, range(4))
    plain = rows_of(dataset)
    for number in range(4):
        ours, theirs = batch_of(data, number), batch_of(plain, number)
        assert ours.moments.dtype == ours.encoded_texts["hidden"].dtype == dtype
        assert torch.equal(latents(models, ours), latents(models, theirs))
        one, other = encode_texts(models, ours), encode_texts(models, theirs)
        assert torch.equal(one["encoder_hidden_states"], other["encoder_hidden_states"])
        if name == "random-sdxl":
            for key in ("text_embeds", "time_ids"):
                assert torch.equal(one["added_cond_kwargs"][key], other["added_cond_kwargs"][key])


def test_the_draw_from_the_posterior_stays_random(dataset, fresh_cache):
    models, _, _ = set_up("random-sd15", dataset)
    data, _ = cached(dataset, models, [3])
    one, other = (latents(models, collate([data[epoch, 3]])) for epoch in (0, 1))
    assert not torch.equal(one, other)


def test_prompts_are_emptied_anew_each_epoch(dataset, fresh_cache):
    models, _, _ = set_up("random-sd15", dataset)
    data, _ = cached(dataset, models, [3])
    empty = models.pipeline.encode_prompt("", "cpu", 1, False)[0]
    batches = [collate([data[epoch, 3]]) for epoch in range(8)]
    emptied = [torch.equal(encode_texts(models, batch)["encoder_hidden_states"], empty) for batch in batches]
    assert emptied == [batch.emptied.item() for batch in batches]
    assert 0 < sum(emptied) < 8


def test_steps_from_a_cache_need_neither_the_files_nor_the_encoders(own_dataset, fresh_cache):
    models, _, _ = set_up("random-sdxl", own_dataset)
    data, _ = cached(own_dataset, models)
    expected = control_loss(models, batch_of(data, 1, 2))
    shutil.rmtree(own_dataset)
    for part in ENCODERS:
        getattr(models.pipeline, part).to("meta")  # no weights any more
    assert torch.equal(control_loss(models, batch_of(data, 1, 2)), expected)


def test_workers_read_the_cache_too(dataset, fresh_cache):
    models, _, _ = set_up("random-sd15", dataset)
    data, _ = cached(dataset, models)
    alone, helped = (
        make_batches(data, start=3, count=2, batch_size=4, workers=workers, processes=Processes(), pin=False)
        for workers in (0, 1)
    )
    for one, other in zip(alone, helped, strict=True):
        assert one.texts == other.texts
        assert torch.equal(one.encoded_texts["hidden"], other.encoded_texts["hidden"])
        for name in ("moments", "control", "noise", "sizes"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_other_rows_are_not_answered_from_the_cache_of_these(dataset, fresh_cache):
    """The cache knows rows by their numbers; whoever looks at others through the same settings gets those."""
    models, _, _ = set_up("random-sd15", dataset)
    data, _ = cached(dataset, models)
    expected = batch_of(rows_of(dataset), 5)
    data.rows = data.rows[5:]
    assert torch.equal(batch_of(data, 0).pixels, expected.pixels)


@pytest.mark.parametrize("width", [8, 36, 33])
def test_maps_are_packed_without_loss(width):
    random = np.random.default_rng(0)
    grey = random.integers(0, 256, (20, width, 1), dtype=np.uint8).repeat(3, axis=2)
    edges = np.where(grey > 200, 255, 0).astype(np.uint8)
    colours = random.integers(0, 256, (20, width, 3), dtype=np.uint8)
    packed = {name: pack(each) for name, each in [("bits", edges), ("grey", grey), ("rgb", colours)]}
    for (name, tensors), original in zip(packed.items(), (edges, grey, colours), strict=True):
        assert name in tensors
        assert np.array_equal(unpack(tensors), original)
    assert packed["bits"]["bits"].numel() == 20 * -(-width // 8)


# Nothing is made that need not be


def test_a_copy_of_a_picture_and_a_caption_used_twice_are_made_once(own_dataset, fresh_cache):
    models, _, _ = set_up("random-sd15", own_dataset)
    lines = (own_dataset / "metadata.jsonl").read_text().splitlines()
    (own_dataset / "metadata.jsonl").write_text("\n".join([*lines[:3], lines[0].replace('"000.png"', '"copy.png"')]))
    shutil.copy(own_dataset / "000.png", own_dataset / "copy.png")
    _, made = cached(own_dataset, models, range(4))
    assert made == {"pictures": 3, "maps": 3, "texts": 4}


def test_a_short_run_encodes_the_rows_that_it_sees(dataset, fresh_cache):
    data = rows_of(dataset)
    numbers = to_come(data, 7, 10)
    assert len(numbers) == 10
    assert to_come(data, 20, 30) == list(range(24))
    assert to_come(data, 5, 1000) == list(range(24))
    models, _, _ = set_up("random-sd15", dataset)
    assert cached(dataset, models, numbers)[1] == {"pictures": 10, "maps": 10, "texts": 11}


def test_another_run_builds_nothing(dataset, tmp_path, fresh_cache, capsys):
    """Another folder, learning rate, optimizer setting, seed of the noise, batch size: nothing is encoded anew."""
    settings = [
        f"data.path={dataset}",
        "base=random-sd15",
        "steps=6",
        "batch_size=4",
        "data.held_out=0",
        "samples.every=0",
        "watch.every=0",
    ]
    assert main(["train", *settings, f"output={tmp_path / 'one'}"]) == 0
    assert "cache: 24 pictures, 24 maps, 25 texts made" in capsys.readouterr().err
    other = ["lr=1e-4", "warmup_steps=2", "seed=3", "batch_size=6", "prompt_dropout=0.1", "weight_decay=0.1"]
    assert main(["train", *settings, *other, f"output={tmp_path / 'two'}"]) == 0
    assert "cache: 0 pictures, 0 maps, 0 texts made" in capsys.readouterr().err


def test_without_a_cache_nothing_is_kept_and_the_run_is_the_same(dataset, tmp_path, fresh_cache):
    settings = [f"data.path={dataset}", "base=random-sd15", "steps=3", "batch_size=1"]
    settings += ["samples.every=0", "watch.every=0", "-q"]
    assert main(["train", *settings, f"output={tmp_path / 'off'}", "cache=off"]) == 0
    assert not (fresh_cache / "encoded").exists()
    assert main(["train", *settings, f"output={tmp_path / 'disk'}"]) == 0
    assert (fresh_cache / "encoded").exists()
    off, disk = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("off", "disk"))
    assert off == disk  # one row a pass, so to the bit


# Every way in which an entry can become stale


def edit_a_caption(folder, models):
    path = folder / "metadata.jsonl"
    path.write_text(path.read_text().replace("picture number 5", "a picture of something else"))


def replace_a_picture(folder, models):
    """In place, with the map and its ledger left as they were."""
    Image.fromarray(draw_photo(99, 64, 64)).save(folder / "005.png")


def replace_a_picture_with_the_old_date(folder, models):
    status = (folder / "005.png").stat()
    Image.fromarray(draw_photo(99, 64, 64)).save(folder / "005.png")
    os.utime(folder / "005.png", ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_a_map(folder, models):
    path = folder / "conditions/canny/005.png.png"
    assert read_entry(path)
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(path)


def other_vae_weights(folder, models):
    models.pipeline.vae.encoder.conv_in.weight.data[0, 0, 0, 0] += 1e-3


def other_vae_config(folder, models):
    models.pipeline.vae.register_to_config(act_fn="relu")


def other_text_encoder(folder, models):
    models.pipeline.text_encoder_2.text_model.final_layer_norm.bias.data[0] += 1e-3


def other_tokenizer(folder, models):
    models.pipeline.tokenizer.backend_tokenizer.normalizer = Replace("picture", "image")


def other_precision(folder, models):
    torch.backends.cuda.matmul.allow_tf32 = True


def other_dtype(folder, models):
    for part in ENCODERS:
        getattr(models.pipeline, part).to(torch.bfloat16)


def other_values_of_the_map(folder, models):
    return {"condition": "seen as grey"}


def other_resolution(folder, models):
    return {"resolution": 32, "latent_shape": (4, 4, 4)}


SOME = range(8)
ALL = {"pictures": 8, "maps": 8, "texts": 9}
STALE = [
    (edit_a_caption, {"texts": 1}),
    (replace_a_picture, {"pictures": 1, "maps": 1}),
    (replace_a_picture_with_the_old_date, {"pictures": 1, "maps": 1}),
    (replace_a_map, {"maps": 1}),
    (other_vae_weights, {"pictures": 8}),
    (other_vae_config, {"pictures": 8}),
    (other_text_encoder, {"texts": 9}),
    (other_tokenizer, {"texts": 9}),
    (other_precision, {"pictures": 8, "texts": 9}),
    (other_dtype, {"pictures": 8, "texts": 9}),
    (other_values_of_the_map, {"maps": 8}),
    (other_resolution, {"pictures": 8, "maps": 8}),
]


@pytest.mark.parametrize(("change", "expected"), STALE, ids=[change.__name__ for change, _ in STALE])
def test_what_is_stale_is_made_anew_and_nothing_else(change, expected, own_dataset, fresh_cache):
    """And the loss is then that of a training without a cache: a stale entry would show."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # a run before this one in the same process may have chosen otherwise
    models, _, _ = set_up("random-sdxl", own_dataset)
    assert cached(own_dataset, models, SOME)[1] == ALL
    assert cached(own_dataset, models, SOME)[1] == dict.fromkeys(ALL, 0)
    try:
        options = change(own_dataset, models) or {}
        condition = options.pop("condition", "canny")
        data = rows_of(own_dataset, **options)
        data.values = data.values if condition == "canny" else {"canny": None}
        made = cache_rows(data, list(SOME), models, Processes(), dataset=str(own_dataset))
        plain = rows_of(own_dataset, **options)
        losses = [control_loss(models, batch_of(each, 4, 5)).item() for each in (data, plain)]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    assert made == dict.fromkeys(ALL, 0) | expected
    tolerance = 1e-2 if change is other_dtype else 1e-5  # bfloat16 rounds otherwise for two rows than for one
    assert abs(losses[0] - losses[1]) < tolerance


@pytest.mark.parametrize(
    ("library", "kinds"),
    [("torch", ("pictures", "texts")), ("tokenizers", ("texts",)), ("pillow", ("pictures", "maps"))],
)
def test_other_versions_make_other_entries(library, kinds, dataset, fresh_cache, monkeypatch):
    models, _, _ = set_up("random-sd15", dataset)
    cached(dataset, models, range(2))
    installed = module.version
    monkeypatch.setattr(module, "version", lambda name: "99" if name == library else installed(name))
    _, made = cached(dataset, models, range(2))
    assert {kind for kind, count in made.items() if count} == set(kinds)


def test_a_new_way_of_making_entries_finds_none_of_the_old(dataset, fresh_cache, monkeypatch):
    models, _, _ = set_up("random-sd15", dataset)
    cached(dataset, models, range(2))
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert cached(dataset, models, range(2))[1] == {"pictures": 2, "maps": 2, "texts": 3}


def test_what_does_not_reach_the_entries_makes_none_anew(dataset, fresh_cache):
    """The decoder (sd-vae-ft-mse shares its encoder with Stable Diffusion's first VAE), where the files lie."""
    models, _, _ = set_up("random-sd15", dataset)
    before = picture_recipe(models), text_recipe(models)
    vae = models.pipeline.vae
    vae.decoder.conv_in.weight.data += 1
    vae.register_to_config(scaling_factor=0.5, _name_or_path="/elsewhere")
    models.pipeline.tokenizer(["a text", "of a batch"], padding="max_length", truncation=True, max_length=9)
    assert (picture_recipe(models), text_recipe(models)) == before


# As a run


def test_two_processes_fill_an_empty_cache_as_one_does(dataset, tmp_path, fresh_cache):
    settings = [f"data.path={dataset}", "base=random-sd15", "steps=6"]
    settings += ["samples.every=0", "watch.every=0", "data.held_out=0"]
    done = run_two("train", *settings, "batch_size=2", f"output={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr
    assert "4 a step" in done.stderr
    assert done.stderr.count("cache: 24 pictures, 24 maps, 25 texts made") == 1
    by_two = everything_below(fresh_cache / "encoded")
    assert len(list((fresh_cache / "encoded" / "pictures").rglob("*.safetensors"))) == 2
    shutil.rmtree(fresh_cache / "encoded")
    assert main(["train", *settings, "batch_size=4", f"output={tmp_path / 'one'}", "-q"]) == 0
    by_one = everything_below(fresh_cache / "encoded")
    assert len(list((fresh_cache / "encoded" / "pictures").rglob("*.safetensors"))) == 1
    assert by_one.keys() == by_two.keys()
    assert all(torch.equal(tensor, by_two[key]) for key, tensor in by_one.items())


def everything_below(folder):
    """Every tensor that is kept, by its recipe and name."""
    return {
        (shard.parent.name, name): tensor
        for shard in folder.rglob("*.safetensors")
        for name, tensor in load_file(shard).items()
    }


def test_a_damaged_shard_is_replaced_when_the_run_goes_on(dataset, tmp_path, fresh_cache, capsys):
    settings = [f"data.path={dataset}", "base=random-sd15", "batch_size=4", "data.held_out=0", "samples.every=0",
                "checkpoint_every=4", "watch.every=0"]  # fmt: skip
    assert main(["train", *settings, "steps=8", f"output={tmp_path / 'whole'}"]) == 0
    assert main(["train", *settings, "steps=4", f"output={tmp_path / 'broken'}"]) == 0
    for shard in (fresh_cache / "encoded").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:-7])
    assert main(["train", *settings, "steps=8", f"output={tmp_path / 'broken'}", "--resume"]) == 0
    said = capsys.readouterr().err
    assert said.count("damaged files in") == 3
    left = len(to_come(rows_of(dataset), 16, 16))
    assert f"cache: {left} pictures, {left} maps, {left + 1} texts made" in said
    whole, broken = ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken"))
    assert whole == broken


@pytest.mark.parametrize("setting", ["cache=on", "cache=true", "cache=null"])
def test_a_wrong_cache_setting_is_one_line(dataset, setting, capsys):
    assert main(["train", f"data.path={dataset}", setting, "--dry-run"]) == 2
    assert "expected disk or off" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_one_line(dataset, tmp_path, monkeypatch, capsys, fresh_cache):
    (fresh_cache / "encoded").write_text("in the way")
    assert main(["train", f"data.path={dataset}", f"output={tmp_path / 'run'}", "samples.every=0"]) == 2
    assert "the cache (CONTROLKIT_CACHE)" in capsys.readouterr().err


@pytest.mark.gpu
def test_encoders_are_off_the_device_during_steps_and_come_when_called(dataset, fresh_cache):
    models, _, _ = set_up("random-sdxl", dataset)
    device = torch.device("cuda")
    pipeline = models.pipeline.to(device)
    models = dataclasses.replace(models, alpha_bar=models.alpha_bar.to(device))
    data, _ = cached(dataset, models, range(2))
    for _ in range(2):
        let_encoders_rest(pipeline, device)
        assert {getattr(pipeline, name).device.type for name in ENCODERS} == {"cpu"}
        loss = control_loss(models, batch_of(data, 0, 1).to(device))
        assert {getattr(pipeline, name).device.type for name in ENCODERS} == {"cpu"}
        assert pipeline._execution_device.type == "cuda"
        uncached = control_loss(models, batch_of(rows_of(dataset), 0, 1).to(device))
        assert {getattr(pipeline, name).device.type for name in ENCODERS} == {"cuda"}
        assert torch.allclose(loss, uncached, atol=1e-3)
