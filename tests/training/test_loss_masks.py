"""Loss masks: where they are black nothing is learned, where they are white everything, with and without a cache."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from controlkit.cli.main import main
from controlkit.data.folder import METADATA
from controlkit.data.rows import read_dataset
from controlkit.diffusion.losses import per_item
from controlkit.processes import Processes
from controlkit.training.batches import ControlRows, collate
from controlkit.training.cache import cache_rows
from controlkit.training.objective import control_loss, losses_of
from tests.training.test_cache import set_up
from tests.training.test_train import steps_of


@pytest.fixture
def masked(dataset, tmp_path):
    """The dataset with masks whose left half is white; the last row has none."""
    folder = shutil.copytree(dataset, tmp_path / "masked")
    rows = [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]
    (folder / "masks").mkdir()
    for row in rows[:-1]:
        height, width = cv2.imread(str(folder / row["file_name"])).shape[:2]
        mask = np.zeros((height, width), np.uint8)
        mask[:, : width // 2] = 255
        row["mask_file_name"] = f"masks/{row['file_name']}.png"
        (folder / row["mask_file_name"]).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / row["mask_file_name"]), mask)
    (folder / METADATA).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(folder, **settings):
    options = {"resolution": 64, "latent_shape": (4, 8, 8), "timesteps": 1000, "prompt_dropout": 0.5, "seed": 0}
    return ControlRows(read_dataset(folder, "canny", mask="mask"), condition="canny", **{**options, **settings})


@pytest.mark.parametrize("name", ["l1", "l2", "huber"])
def test_the_mean_is_over_what_counts(name):
    prediction, wanted = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    weight = torch.zeros(3, 8, 8)
    weight[0, :, :3], weight[1] = 1, 0.25
    masked = per_item(name, prediction, wanted, delta=0.3, weight=weight)
    left = per_item(name, prediction[:1, :, :, :3], wanted[:1, :, :, :3], delta=0.3)
    whole = per_item(name, prediction, wanted, delta=0.3)
    assert masked.tolist() == pytest.approx([left.item(), whole[1].item(), 0.0], abs=1e-6)


def test_what_is_masked_out_has_no_part_in_the_gradient(masked):
    models, _, _ = set_up("random-sd15", masked)
    data = rows_of(masked)
    batch = collate([data[0, number] for number in range(4)])
    assert batch.mask.shape == (4, 8, 8)
    assert (batch.mask[:, :, :4] == 1).all()
    assert (batch.mask[:, :, 4:] == 0).all()
    noise = batch.noise.clone().requires_grad_()
    x_0 = torch.randn_like(noise)
    losses_of(models, batch, x_0, noise * 0.5).sum().backward()
    assert (noise.grad[..., 4:] == 0).all()
    assert (noise.grad[..., :4] != 0).any()


def test_a_row_without_a_mask_counts_as_a_whole(masked):
    data = rows_of(masked)
    batch = collate([data[0, len(data) - 1], data[0, 0]])
    assert (batch.mask[0] == 1).all()
    assert (batch.mask[1] == 0).any()


def test_masks_share_the_geometry_of_their_pictures(masked):
    """A mirrored row has its white half on the right, and a smaller square the same share of white."""
    data = rows_of(masked, flip=True)
    data.rows = [dataclasses.replace(row, captions=("a ball",)) for row in data.rows]  # tells left from right no more
    seen = [data[epoch, 0]["mask"] for epoch in range(8)]
    assert {bool(mask[:, 0].all()) for mask in seen} == {True, False}
    small = rows_of(masked, resolution=32, latent_shape=(4, 4, 4))[0, 0]["mask"]
    assert small.shape == (4, 4)
    assert small.mean() == pytest.approx(0.5)


def test_the_cache_keeps_masks_too(masked, tmp_path, monkeypatch):
    monkeypatch.setenv("CONTROLKIT_CACHE", str(tmp_path / "cache"))
    models, _, _ = set_up("random-sd15", masked)
    plain, data = rows_of(masked), rows_of(masked)
    made = cache_rows(data, range(len(data)), models, Processes(), dataset=str(masked))
    assert made["maps"] == 2 * len(data) - 1
    numbers = [0, 5, len(data) - 1]
    ours, theirs = (collate([each[0, number] for number in numbers]) for each in (data, plain))
    assert torch.equal(ours.mask, theirs.mask)
    assert abs(control_loss(models, ours) - control_loss(models, theirs)) < 1e-5
    name = data.rows[0].mask
    cv2.imwrite(str(name), np.full((64, 64), 255, np.uint8))
    again = rows_of(masked)
    made = cache_rows(again, range(len(again)), models, Processes(), dataset=str(masked))
    assert made == {"pictures": 0, "maps": 1, "texts": 0}
    assert (again[0, 0]["mask"] == 1).all()


def test_a_run_with_masks(masked, tmp_path):
    def losses(name, *settings):
        common = [f"data.path={masked}", "steps=2", "batch_size=4", "samples.every=0", "watch.every=0"]
        common += [f"output={tmp_path / name}"]
        assert main(["train", "base=random-sd15", *common, *settings, "-q"]) == 0
        return [row["loss"] for row in steps_of(tmp_path / name)]

    with_masks = losses("cached", "data.mask=mask")
    assert with_masks != losses("whole")
    assert losses("uncached", "data.mask=mask", "cache=off") == pytest.approx(with_masks, rel=1e-5)


def test_a_name_that_no_row_has_is_one_line(masked, capsys):
    assert main(["train", f"data.path={masked}", "data.mask=maks", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "data.mask=maks" in said
    assert "did you mean 'mask'?" in said
    assert said.count("\n") == 1
