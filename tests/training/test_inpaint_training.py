"""Training for inpainting: a ControlNet that reads a picture with holes, and a base widened to read them itself."""

import cv2
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from PIL import Image

from annotators import ANNOTATORS
from controlkit.cli.main import main
from controlkit.data.fresh_maps import DRAWN_MASKS, FreshMaps
from controlkit.data.rows import read_dataset
from controlkit.models.bases import find_base
from controlkit.models.inpaint_hint import inpaint_hint
from controlkit.training.base_further import widen
from controlkit.training.batches import ControlRows
from controlkit.training.dropout import ControlDropout
from tests.conftest import draw_photo
from tests.training.test_train import steps_of


def rows_of(folder, **options):
    rows = read_dataset(folder, "inpaint", without_maps=True)
    return ControlRows(
        rows, condition="inpaint", resolution=48, latent_shape=(4, 6, 6), timesteps=1000, prompt_dropout=0.5, seed=0,
        fresh={"inpaint": FreshMaps.of("inpaint", DRAWN_MASKS)}, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures and captions, of a shape that is cut; without maps."""
    folder = tmp_path_factory.mktemp("bare")
    for number in range(8):
        Image.fromarray(draw_photo(number, 96, 64)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a ball on a floor, {number}", encoding="utf-8")
    return folder


# The masks


@pytest.mark.parametrize("shapes", ["half", "expand"])
def test_halves_and_borders_have_the_share_asked_for(shapes):
    annotator = ANNOTATORS.create("inpaint", shapes=shapes, least=0.3, most=0.6)
    masks = [annotator(draw_photo(number, 120, 90))[:, :, 0] for number in range(40)]
    shares = [(mask == 255).mean() for mask in masks]
    assert all(0.28 <= share <= 0.62 for share in shares)
    assert max(shares) - min(shares) > 0.1
    for mask in masks:  # what stays is one box
        rows, columns = np.where(mask == 0)
        assert (mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] == 0).all()
    if shapes == "half":
        touched = {(mask[0].any(), mask[-1].any(), mask[:, 0].any(), mask[:, -1].any()) for mask in masks}
        assert len(touched) == 4
        assert all(sum(each) == 3 for each in touched)


def test_any_is_each_of_the_kinds():
    """What stays of a mask is one box for halves and borders; white that is one box is a box."""
    annotator = ANNOTATORS.create("inpaint", shapes="any", least=0.05, most=0.8)

    def is_box(white):
        rows, columns = np.where(white)
        return white[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()

    masks = [annotator(draw_photo(number, 60, 60))[:, :, 0] > 0 for number in range(40)]
    assert sum(is_box(~mask) for mask in masks) >= 8
    assert sum(not is_box(~mask) for mask in masks) >= 12


# What a ControlNet reads


def test_the_hint_is_the_picture_with_holes(folder):
    data = rows_of(folder)
    seen = data[3, 2]
    hidden = seen["control"] == -1
    assert (hidden.any(dim=0) == hidden.all(dim=0)).all()
    assert 0.02 < hidden.float().mean() < 0.98
    assert torch.allclose(seen["control"][~hidden], (seen["pixels"][~hidden] + 1) / 2, atol=1e-6)


def test_masks_are_drawn_for_each_row_and_epoch_and_mirrored_pictures_stay_with_their_hints(folder):
    data, again = rows_of(folder, flip=True), rows_of(folder, flip=True)
    holes = {key: (data[key]["control"] == -1)[0].numpy().tobytes() for key in np.ndindex(4, 8)}
    assert len(set(holes.values())) == len(holes)
    seen = {key: data[key] for key in np.ndindex(6, 2)}
    for key, row in reversed(seen.items()):
        assert torch.equal(again[key]["control"], row["control"])
        shown = row["control"] != -1
        assert torch.allclose(row["control"][shown], (row["pixels"][shown] + 1) / 2, atol=1e-6)
    turned = [torch.allclose(seen[0, 0]["pixels"], row["pixels"].flip(2), atol=0.02) for row in seen.values()]
    assert any(turned)


def test_masks_on_the_disk_are_read_under_the_geometry_of_their_pictures(folder, tmp_path):
    """A row that has one keeps it; the others get theirs."""
    for number in range(3):
        Image.fromarray(draw_photo(number, 96, 64)).save(tmp_path / f"{number}.png")
    assert main(["annotate", "--type", "inpaint", str(tmp_path), "-q"]) == 0
    (tmp_path / "conditions/inpaint/1.png.png").unlink()
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    kept = [line if '"1.png"' not in line else '{"file_name": "1.png", "text": ""}' for line in lines]
    (tmp_path / "metadata.jsonl").write_text("\n".join(kept) + "\n")
    data = rows_of(tmp_path)
    assert [row.control is None for row in data.rows] == [False, True, False]
    mask = cv2.imread(str(tmp_path / "conditions/inpaint/0.png.png"), cv2.IMREAD_GRAYSCALE)
    expected = cv2.resize(mask, (72, 48), interpolation=cv2.INTER_AREA)[:, 12:60] >= 127.5 / 1.34
    hidden = (data[0, 0]["control"] == -1)[0].numpy()
    assert (hidden == expected).mean() > 0.98
    assert torch.equal(data[0, 0]["control"], data[5, 0]["control"])
    assert not torch.equal(data[0, 1]["control"], data[5, 1]["control"])


def test_an_emptied_hint_shows_nothing(folder):
    assert (rows_of(folder, control_dropout=ControlDropout(1.0))[0, 0]["control"] == -1).all()


def test_the_hint_is_what_diffusers_documents():
    """make_inpaint_condition of the documentation of StableDiffusionControlNetInpaintPipeline."""
    picture, mask = draw_photo(0), np.zeros((64, 96, 3), np.uint8)
    mask[10:30, 20:50] = 255
    image = picture.astype(np.float32) / 255.0
    image[mask[:, :, 0] > 127] = -1.0
    assert np.array_equal(inpaint_hint(picture, mask).permute(1, 2, 0).numpy(), image)


def test_a_run_draws_its_masks_caches_its_pictures_and_resumes_exactly(folder, tmp_path, capsys):
    settings = [f"data.path={folder}", "data.condition=inpaint", "base=random-sd15", "batch_size=2"]
    settings += ["checkpoint_every=2", "lr=1e-3", "samples.steps=1", "samples.count=2", "watch.rows=2", "watch.every=0"]

    def losses(name, *more, samples=0):
        arguments = [*settings, f"samples.every={samples}", f"output={tmp_path / name}"]
        assert main(["train", *arguments, *more]) == 0
        return [row["loss"] for row in steps_of(tmp_path / name)]

    whole = losses("whole", "steps=4", "watch.every=4", samples=4)
    said = capsys.readouterr().err
    assert "masks: 0 of the rows have their own, 8 get one drawn anew each epoch" in said
    assert "pixels made" in said
    assert "look at the maps" not in said
    losses("broken", "steps=2")
    broken = losses("broken", "steps=4", "cache=off", "--resume")
    assert broken[:2] == whole[:2]
    assert broken == pytest.approx(whole, rel=1e-5)
    sheet = np.asarray(Image.open(tmp_path / "whole/samples/step-000004.png"))
    first = sheet[:64, :64]
    assert ((first == 127).all(axis=2)).mean() > 0.02
    assert "--image picture.png --mask mask.png" in (tmp_path / "whole/README.md").read_text(encoding="utf-8")


def test_a_mask_alone_is_no_sample(folder, tmp_path, capsys):
    Image.fromarray(draw_photo(0)).save(tmp_path / "mask.png")
    given = ["train", f"data.path={folder}", "data.condition=inpaint", f"samples.maps={tmp_path / 'mask.png'}"]
    assert main([*given, "samples.prompts=a ball", f"output={tmp_path / 'run'}"]) == 2
    assert "a map is a mask, which says nothing alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# The widened base


def test_a_widened_unet_answers_as_it_did_whatever_it_is_shown():
    narrow, wide = (find_base("random-sd15").load("unet").eval() for _ in range(2))
    widen(wide, 9)
    noise = torch.Generator().manual_seed(0)
    x_t, beside = torch.randn(1, 4, 8, 8, generator=noise), 9 * torch.randn(1, 5, 8, 8, generator=noise)
    text = torch.randn(1, 7, narrow.config.cross_attention_dim, generator=noise)
    with torch.no_grad():
        before = narrow(x_t, 500, text).sample
        after = wide(torch.cat([x_t, beside], dim=1), 500, text).sample
    assert wide.config.in_channels == 9
    assert torch.allclose(after, before, rtol=0, atol=1e-5)


FURTHER = ["base=random-sd15", "condition=text", "data.size=64", "batch_size=2", "samples.count=2", "samples.steps=1"]


def further(folder, output, *settings, code=0):
    given = [f"data.path={folder}", f"output={output}", "data.held_out=0", "checkpoint_every=2", *FURTHER, *settings]
    assert main(["base", "train", *given, "-q"]) == code


def test_a_widened_base_learns_to_read_the_hole(folder, tmp_path):
    further(folder, tmp_path / "run", "inpaint=true", "steps=2", "samples.every=2", "ema=0")
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "run" / "pipeline", safety_checker=None)
    assert pipeline.unet.config.in_channels == 9
    assert (pipeline.unet.conv_in.weight[:, 4:].abs().amax(dim=(0, 2, 3)) > 0).all()
    assert np.asarray(Image.open(tmp_path / "run/samples/step-000002.png")).shape == (3 * 66 - 2, 2 * 66 - 2, 3)
    for name in ("text_encoder", "vae"):
        before = find_base("random-sd15").load(name).state_dict()
        assert all(torch.equal(tensor, before[key]) for key, tensor in getattr(pipeline, name).state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["inpaint=true", "vae.path=x", "prediction=sample"], "has its own vae, prediction; leave them out"),
        (["base=null", "inpaint=true"], "inpaint=true widens a base that is there"),
        (["base=random-sd15-9ch"], "is an inpainting base; train it with inpaint=true"),
        (["data.size=40"], "data.size=40 is not a multiple of 64"),
        (["condition=class", "data.label=text"], "reads prompts; use condition=text"),
    ],
)
def test_what_cannot_go_on_is_one_line(folder, tmp_path, capsys, settings, words):
    further(folder, tmp_path / "run", *settings, code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
