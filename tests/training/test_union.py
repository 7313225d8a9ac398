"""Several control types in one ControlNet: what it learns from, what a run says of each type, what is handed over."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.cli.main import main
from controlkit.config import build
from controlkit.data.fresh_maps import FreshMaps
from controlkit.data.pictures import read_picture
from controlkit.data.rows import read_dataset
from controlkit.models.bases import find_base
from controlkit.models.controlnets import find_controlnet, make_controlnet
from controlkit.models.map_hint import map_hint
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, collate
from controlkit.training.cache import cache_rows
from controlkit.training.config import TrainConfig, control_dropout
from controlkit.training.diagnosis import diagnose
from controlkit.training.dropout import ControlDropout
from controlkit.training.objective import control_loss
from controlkit.training.samples import prepare_samples
from controlkit.training.watch import acquired_at
from tests.training.test_objective import set_up
from tests.training.test_train import metrics, same, train, weights
from tests.training.test_watch import gain, look, looks_of

TYPES = ("canny", "grey")
CANNY, GREY = slice(0, 3), slice(3, 6)
SETTINGS = [
    *("data.condition=canny,grey", "checkpoint_every=2", "watch.every=2", "watch.rows=2", "data.held_out=0.2"),
    *("samples.every=4", "samples.count=2", "samples.steps=1"),
]


def rows_of(folder, types=TYPES, **options):
    settings = {"resolution": 64, "latent_shape": (4, 8, 8), "timesteps": 1000, "prompt_dropout": 0.5, "seed": 0}
    fresh = options.get("fresh") or {}
    rows = read_dataset(folder, [type for type in types if type not in fresh])
    return ControlRows(rows, condition=types, **(settings | options))


@pytest.fixture(scope="module")
def run(two_types, tmp_path_factory):
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("union") / "run"
    train(two_types, folder, *SETTINGS, f"samples.maps=grey={two_types / 'conditions/grey/003.png.png'}",
          "samples.prompts=a house")  # fmt: skip
    return folder


# What it learns from


def test_the_hint_holds_the_maps_in_their_order(two_types):
    data = rows_of(two_types)
    row = data.rows[4]
    seen = data[0, 4]["control"]
    for type, channels in zip(TYPES, (CANNY, GREY), strict=True):
        own = torch.from_numpy(read_picture(row.controls[type])).permute(2, 0, 1) / 255
        assert torch.equal(seen[channels], own)
    assert torch.equal(rows_of(two_types, TYPES[::-1])[0, 4]["control"], torch.cat([seen[GREY], seen[CANNY]]))


def test_each_type_comes_to_the_size_by_its_own_rule(two_types):
    """Edges stay black and white, greys are averaged; both from the same window of the picture."""
    seen = rows_of(two_types, resolution=40, latent_shape=(4, 5, 5))[0, 4]["control"]
    assert set(seen[CANNY].unique().tolist()) == {0.0, 1.0}
    assert len(seen[GREY].unique()) > 10


def test_maps_are_emptied_one_by_one_and_one_always_stays(two_types):
    data = rows_of(two_types, control_dropout=ControlDropout(whole=0.2, each=0.5))
    found = Counter()
    for epoch in range(20):
        for number in range(len(data)):
            emptied = data.control_dropout.emptied(TYPES, *data.key(epoch, number))
            found[tuple(sorted(emptied))] += 1
    shares = {emptied: count / found.total() for emptied, count in found.items()}
    expected = {(): 0.8 / 4, ("canny",): 0.8 * 3 / 8, ("grey",): 0.8 * 3 / 8, TYPES: 0.2}
    assert shares == pytest.approx(expected, abs=0.06)  # three standard deviations of 480 draws
    seen = {emptied: data[epoch, number]["control"] for epoch in (1, 0) for number in range(23, -1, -1)
            for emptied in [tuple(sorted(data.control_dropout.emptied(TYPES, *data.key(epoch, number))))]}  # fmt: skip
    assert len(seen) == 4
    for emptied, control in seen.items():  # whatever was drawn before
        assert [control[channels].any().item() for channels in (CANNY, GREY)] == [type not in emptied for type in TYPES]


def test_what_is_emptied_where_nothing_is_said():
    assert control_dropout(build(TrainConfig)) == ControlDropout(0.0, 0.0)
    assert control_dropout(build(TrainConfig, None, ["data.condition=canny,grey"])) == ControlDropout(0.0, 0.5)
    said = build(TrainConfig, None, ["data.condition=canny,grey", "condition_dropout=0", "control_dropout=0.1"])
    assert control_dropout(said) == ControlDropout(0.1, 0.0)


def test_a_black_map_teaches_its_channels_nothing(two_types):
    models, _, _ = set_up("random-sd15", two_types)
    net = make_controlnet(models.pipeline.unet, vae_factor=8, latent_channels=4, seed=0, types=2)
    torch.manual_seed(0)
    for block in [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]:
        torch.nn.init.normal_(block.weight, std=0.3)
    models.controlnet = net
    data = rows_of(two_types, control_dropout=ControlDropout(each=1.0))  # always one alone
    both = rows_of(two_types)
    alone = {type: [number for number in range(24) if data[0, number]["control"][channels].any()][:2]
             for type, channels in zip(TYPES, (CANNY, GREY), strict=True)}  # fmt: skip
    for rows, numbers, learning in ((data, alone["canny"], {0}), (data, alone["grey"], {1}), (both, [0, 1], {0, 1})):
        net.zero_grad()
        control_loss(models, collate([rows[0, number] for number in numbers])).backward()
        gradient = net.controlnet_cond_embedding.conv_in.weight.grad
        assert {place for place, part in enumerate((CANNY, GREY)) if gradient[:, part].any()} == learning


def test_another_type_makes_its_own_maps_alone_in_the_cache(two_types, tmp_path, monkeypatch):
    find_base("random-sd15")
    models, _, _ = set_up("random-sd15", two_types)
    monkeypatch.setenv("CONTROLKIT_CACHE", str(tmp_path))

    def made(types):
        data = rows_of(two_types, types)
        return data, cache_rows(data, range(6), models, Processes(), dataset=str(two_types))

    assert made(("canny",))[1] == {"pictures": 6, "maps": 6, "texts": 7}
    data, more = made(TYPES)
    assert more == {"pictures": 0, "maps": 6, "texts": 0}
    assert made(TYPES[::-1])[1] == {"pictures": 0, "maps": 0, "texts": 0}
    plain = rows_of(two_types)
    assert all(torch.equal(data[0, number]["control"], plain[0, number]["control"]) for number in range(6))


def test_one_type_may_be_made_while_training(two_types):
    """The other is read; with fixed parameters they are the maps that `annotate` made."""
    plain = rows_of(two_types)
    for settings in (["canny"], ["canny.low=100", "canny.high=200"], []):
        data = rows_of(two_types, fresh=FreshMaps.of_each(TYPES, settings))
        assert set(data.rows[0].controls) == (set() if not settings else {"grey"})
        assert torch.equal(data[0, 3]["control"], plain[0, 3]["control"])
    drawn = rows_of(two_types, fresh=FreshMaps.of_each(TYPES, ["canny.low=20..60", "canny.high=60..400"]))
    assert len({drawn[epoch, 3]["control"][CANNY].sum().item() for epoch in range(8)}) > 3
    assert len({drawn[epoch, 3]["control"][GREY].sum().item() for epoch in range(8)}) == 1


def test_parameters_of_one_name_are_drawn_apart(two_types):
    class Told:
        def make(self, image, draw):
            return draw("strength")

    data = rows_of(two_types, fresh={type: Told() for type in TYPES})
    row, picture = data.rows[0], np.zeros((8, 8, 3), np.uint8)
    drawn = {type: [data._made(type, row, picture, epoch) for epoch in range(2)] for type in TYPES}
    assert len({value for values in drawn.values() for value in values}) == 4


# What a run says and leaves


def test_both_types_were_learned_from(run):
    base = find_base("random-sd15")
    fresh = make_controlnet(base.load("unet"), vae_factor=8, latent_channels=4, seed=0, types=2)
    moved = weights(run)["controlnet_cond_embedding.conv_in.weight"] - fresh.controlnet_cond_embedding.conv_in.weight
    assert moved[:, CANNY].any()
    assert moved[:, GREY].any()


def test_the_folder_says_which_types_in_which_order(run):
    net = find_controlnet(str(run / "controlnet"))
    assert net.conditions == TYPES
    assert net.config["conditioning_channels"] == 6
    assert json.loads((run / "controlnet/controlkit.json").read_text())["condition"] == list(TYPES)
    card = (run / "README.md").read_text()
    assert "tags: [controlnet, canny, grey, diffusers]" in card
    assert "--control canny=canny.png --control grey=grey.png" in card
    assert "The grey map alone, the others black, takes" in card


def test_each_type_is_looked_at_alone(run):
    for row in looks_of(run):
        assert list(row["by_type"]) == list(TYPES)
        for gains in row["by_type"].values():
            assert gains["control_gain_share"]["n"] == 2
    alone = looks_of(run)[-1]["by_type"]
    assert alone["canny"] != alone["grey"]


def test_the_grid_shows_every_map(run, two_types):
    sheet = np.asarray(Image.open(run / "samples/step-000004.png"))
    assert sheet.shape == (3 * 64 + 2 * 2, 4 * 64 + 3 * 2, 3)
    own = sheet[-64:]
    assert not own[:, :64].any()  # of the user's map there is no edge
    assert np.array_equal(own[:, 66:130], read_picture(two_types / "conditions/grey/003.png.png"))


def test_the_samples_are_scored_by_each_type(two_types):
    types = ("canny", "scribble")
    data = rows_of(two_types, ("canny",))
    rows = [replace(row, controls=dict.fromkeys(types, row.controls["canny"])) for row in data.rows]
    both = ControlRows(rows, condition=types, resolution=64, latent_shape=(4, 8, 8), timesteps=1000,
                       prompt_dropout=0.5, seed=0)  # fmt: skip
    config = build(TrainConfig, None, ["samples.count=2"])
    shown, judges = prepare_samples(config, both, rows, pytest.fail)
    assert [judges[type].metric for type in types] == ["canny_f1_1px", "scribble_f1_1px"]
    assert [set(row.maps) for row in shown] == [set(types)] * 2


@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(two_types, run, tmp_path):
    own = [f"samples.maps=grey={two_types / 'conditions/grey/003.png.png'}", "samples.prompts=a house"]
    train(two_types, tmp_path / "run", *SETTINGS, *own, "steps=2", "samples.every=0")
    train(two_types, tmp_path / "run", *SETTINGS, *own, "--resume")
    assert same(weights(tmp_path / "run"), weights(run))
    kept = [line for line in metrics(run).splitlines() if "diagnosis" not in line]
    assert [line for line in metrics(tmp_path / "run").splitlines() if "diagnosis" not in line] == kept


def by_type(step, **gains):
    alone = {type: {"control_gain_share": gain(value), "map_gain_share": gain(value)} for type, value in gains.items()}
    return {**look(step, 0.2, 0.1), "by_type": alone}


def test_control_is_acquired_where_each_type_alone_is_followed():
    looks = [by_type(50, canny=0.1, grey=0.0), by_type(100, canny=0.1, grey=0.0), by_type(150, canny=0.1, grey=0.1)]
    assert acquired_at(looks) is None
    assert acquired_at([*looks, by_type(200, canny=0.1, grey=0.1)]) == 150
    *_, line = diagnose(build(TrainConfig, None, ["data.condition=canny,grey"]), [], looks[:2], [])
    assert line.startswith("grey maps alone are not followed yet: the loss falls by 0.0% under them")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.condition=[]"], "data.condition=: expected one control type, or several that differ"),
        (["data.condition=canny,canny"], "data.condition=canny,canny: expected one control type, or several"),
        (["data.condition=canny,inpaint"], "inpaint reads the picture with its hole and goes alone"),
        (["data.condition=canny,depth"], "has no depth maps: known: canny, grey; make them: controlkit annotate"),
        (["data.condition=canny,grey", "data.maps=maps"], "data.maps=maps holds maps of one type"),
        (["data.condition=canny,normal", "data.flip=true"], "data.flip=true: normal maps tell left from right"),
        (["data.condition=canny,grey", "data.annotate=low=5"], "data.annotate=low=5: expected one of data.condition"),
        (["data.condition=canny,grey", "control_lora=4"], "control_lora=4: its file is of one type"),
        (["data.condition=canny,grey", "save_webui=true"], "save_webui=true: webuis hand a ControlNet one map"),
        (["condition_dropout=0.3"], "condition_dropout=0.3: empties one type of several"),
        (["data.condition=canny,grey", "condition_dropout=2"], "condition_dropout=2.0: expected a share from 0 to 1"),
        (["data.condition=canny,grey", "samples.maps=a.png", "samples.prompts=a"], "say which: canny=a.png"),
    ],
)
def test_what_cannot_be_is_one_line(two_types, settings, words, capsys):
    assert main(["train", f"data.path={two_types}", "base=random-sd15", *settings, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_run_goes_on_from_a_net_of_its_own_types_alone(two_types, run, trained, capsys):
    def begin(net, types):
        settings = [f"controlnet={net}", f"data.condition={types}", "base=random-sd15", "--dry-run", "-q"]
        return main(["train", f"data.path={two_types}", *settings])

    assert begin(run / "controlnet", "canny,grey") == 0
    capsys.readouterr()
    for net, types, reads in (
        (run / "controlnet", "grey,canny", "canny,grey"),
        (run / "controlnet", "canny", "canny,grey"),
        (trained / "controlnet", "canny,grey", "canny"),
    ):
        assert begin(net, types) == 2
        assert f"reads {reads}, data.condition={types}: expected the same" in capsys.readouterr().err


def test_the_hint_of_maps_that_are_not_given_is_black(photo):
    hint = map_hint(("canny", "depth", "grey"), {"depth": photo})
    assert hint.shape == (9, *photo.shape[:2])
    assert not hint[:3].any()
    assert not hint[6:].any()
    assert torch.equal(hint[3:6], torch.from_numpy(photo).permute(2, 0, 1) / 255)
