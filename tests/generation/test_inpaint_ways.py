"""The model that reads masks and the ControlNet that reads the hole: diffusers' pipelines, nothing changed outside."""

from dataclasses import replace

import cv2
import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.cli.main import main
from controlkit.generation.inpainting import Canvas, whole_cells
from controlkit.generation.many import paint_many
from controlkit.generation.options import request_of
from controlkit.generation.settings import read_settings
from controlkit.models import bases
from controlkit.models.bases import find_base
from controlkit.models.inpaint_hint import inpaint_hint
from tests.conftest import draw_photo
from tests.painting import edges_of, pixels, strong_net

PIPELINES = {
    (False, False): diffusers.StableDiffusionInpaintPipeline,
    (True, False): diffusers.StableDiffusionControlNetInpaintPipeline,
    (True, True): diffusers.StableDiffusionXLControlNetInpaintPipeline,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A picture, its edges, a mask on the latent grid, and ControlNets for holes and for edges."""
    folder = tmp_path_factory.mktemp("files")
    picture, mask = draw_photo(5, 64, 64), np.zeros((64, 64), np.uint8)
    mask[16:40, 24:56] = 255
    Image.fromarray(picture).save(folder / "picture.png")
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(edges_of(picture)).save(folder / "edges.png")
    for name in ("random-sd15", "random-sdxl"):
        strong_net(name, folder / f"{name}-hole", condition="inpaint")
    strong_net("random-sd15", folder / "edges", seed=1)
    return folder


def generate(files, *more, code=0):
    given = ["--image", files / "picture.png", "--mask", files / "mask.png", "--seed", 3, "--prompt", "a ball"]
    assert main(["generate", *map(str, [*given, "--steps", 4, "--sampler", "ddim", *more])]) == code


def by_hand(files, base_name, nets=(), images=(), **arguments):
    """What somebody gets who calls diffusers' pipeline with the same picture and mask."""
    base = find_base(base_name)
    extra = {} if base.is_xl else {"safety_checker": None}
    if nets:
        loaded = [diffusers.ControlNetModel.from_pretrained(net) for net in nets]
        extra["controlnet"] = loaded if len(loaded) > 1 else loaded[0]
        arguments["control_image"] = list(images) if len(images) > 1 else images[0]
        arguments["controlnet_conditioning_scale"] = [1.0] * len(nets) if len(nets) > 1 else 1.0
    pipeline = PIPELINES[bool(nets), base.is_xl].from_pretrained(base.folder, **extra)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return np.asarray(
        pipeline(
            "a ball", image=Image.open(files / "picture.png"), mask_image=Image.open(files / "mask.png"), height=64,
            width=64, num_inference_steps=4, guidance_scale=7.5, generator=torch.Generator().manual_seed(3),
            **arguments,
        ).images[0]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("base", "more", "nets", "strength"),
    [
        ("random-sd15-9ch", [], (), 1.0),
        ("random-sd15-9ch", ["edges"], ("edges",), 0.5),
        ("random-sd15", ["edges", "hole"], ("edges", "random-sd15-hole"), 0.5),
        ("random-sdxl", ["hole"], ("random-sdxl-hole",), 1.0),
    ],
)
def test_the_pixels_are_those_of_diffusers(files, tmp_path, base, more, nets, strength):
    """Chosen by itself: a base that reads masks does, and so does a ControlNet that reads the hole."""
    picture, mask = pixels(files / "picture.png"), pixels(files / "mask.png")
    given = []
    for each in more:
        given += ["--controlnet", files / (each if each == "edges" else f"{base}-hole")]
        given += ["--control", files / "edges.png"] if each == "edges" else []
    hint = inpaint_hint(picture, np.repeat(mask[:, :, None], 3, axis=2))[None]
    images = [Image.open(files / "edges.png") if each == "edges" else hint for each in more]
    theirs = by_hand(files, base, [files / net for net in nets], images, strength=strength)
    canvas = Canvas.of(picture, mask / np.float32(255), grow=0, feather=0, multiple=8)
    out = tmp_path / "o.png"
    generate(files, "--base", base, *given, "--strength", strength, "--feather", 0, "--out", out, "-q")
    assert np.array_equal(pixels(out), canvas.finish(theirs))
    assert (pixels(out)[mask == 0] == picture[mask == 0]).all()
    assert (pixels(out)[mask > 0] != picture[mask > 0]).mean() > 0.5
    assert read_settings(out)["mask"]["way"] == ("model" if base.endswith("9ch") else "controlnet")


@pytest.mark.parametrize("way", ["model", "controlnet"])
def test_odd_sizes_thin_strokes_and_several_pictures_replayed(files, tmp_path, way, capsys):
    """Outside the feather the file stays what it is; a stroke of one pixel is painted along all its length."""
    picture, mask = draw_photo(6, 75, 61), np.zeros((61, 75), np.uint8)
    cv2.line(mask, (9, 11), (60, 45), 255)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    net = ["--controlnet", files / "random-sd15-hole"] if way == "controlnet" else []
    more = ["--base", "random-sd15", "--inpaint", way, *net, "--feather", 2, "--num", 2, "--out", tmp_path / "o"]
    generate(tmp_path, *more)
    said = capsys.readouterr().err
    assert ("by random-sd15-9ch, which reads masks" if way == "model" else "by a ControlNet") in said
    assert "asked 4 times a picture" in said
    away = cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    one, other = sorted((tmp_path / "o").iterdir())
    for made in (one, other):
        assert (pixels(made)[away >= 3] == picture[away >= 3]).all()
        assert (pixels(made)[mask > 0] != picture[mask > 0]).any(axis=1).mean() > 0.9
    assert (pixels(one) != pixels(other)).any()
    assert main(["generate", "--replay", str(other), "--out", str(tmp_path / "again.png")]) == 0
    assert "bit for bit" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["repaint", "model", "controlnet"])
def test_several_masked_pictures_are_painted_together(files, tmp_path, way):
    """Requests with pictures and masks of their own: each as it is alone, and outside its own hole its own file."""
    net = {"controlnet": f"inpaint={files / 'random-sd15-hole'}"} if way == "controlnet" else {}
    requests, holes = [], []
    for number, prompt in enumerate(("a ball", "a cone", "a box")):
        mask = np.zeros((48, 64), np.uint8)
        mask[8 * number : 8 * number + 17, 10 : 30 + 8 * number] = 255
        Image.fromarray(mask).save(tmp_path / f"mask{number}.png")
        Image.fromarray(draw_photo(number, 64, 48)).save(tmp_path / f"{number}.png")
        of_each = {"image": str(tmp_path / f"{number}.png"), "mask": str(tmp_path / f"mask{number}.png")}
        options = {**of_each, "prompt": prompt, "seed": number, "base": "random-sd15", "inpaint": way, **net}
        requests.append(request_of({**options, "steps": 6, "feather": 0, "batch-size": 3, "sampler": "ddim"}))
        holes.append(mask > 0)

    def painted(requests):
        how = {"device": torch.device("cpu"), "dtype": torch.float32, "there": set()}
        return list(paint_many(requests, **how, say=lambda text: None, progress=lambda done, total: None))

    together = painted(requests)
    assert [made.settings["batch"]["size"] for made in together] == [3, 3, 3]
    for number, (request, made) in enumerate(zip(requests, together, strict=True)):
        (alone,) = painted([replace(request, batch_size=1)])
        assert np.abs(alone.image.astype(int) - made.image).max() <= 1
        picture = draw_photo(number, 64, 48)
        assert (made.image == picture)[~holes[number]].all()
        assert (made.image != picture)[holes[number]].any(axis=1).mean() > 0.9


def test_a_stroke_of_one_pixel_keeps_all_its_cells():
    mask = torch.zeros(1, 1, 64, 64)
    mask[0, 0, range(8, 56), range(8, 56)] = 1
    touched = {(y // 8, x // 8) for y, x in zip(*np.where(mask[0, 0]), strict=True)}
    cells = torch.nn.functional.interpolate(whole_cells(mask, 8), size=(8, 8))  # as the pipelines do
    assert {tuple(cell) for cell in torch.nonzero(cells[0, 0]).tolist()} == touched
    plain = torch.nn.functional.interpolate(mask, size=(8, 8))
    assert plain.sum() < cells.sum() or plain.sum() == len(touched)


def test_a_soft_mask_takes_as_much_as_it_says():
    mask = np.zeros((32, 32), np.float32)
    mask[8:24, 8:24], mask[8:24, 20:24] = 1, 0.5
    canvas = Canvas.of(np.zeros((32, 32, 3), np.uint8), mask, grow=0, feather=3, multiple=8, mixed=True)
    weight = canvas.region.weight
    assert (weight[8:24, 8:20] == 1).all()
    assert (weight[8:24, 22] == 0.5).all()
    assert (weight[16, [3, 28]] == 0).all()
    assert (canvas.mask[weight > 0] == 255).all()
    assert (canvas.mask[weight == 0] == 0).all()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--base", "random-sd21", "--inpaint", "model"], "does not read masks (4 channels); name an inpainting base"),
        (["--base", "random-sd15", "--inpaint", "controlnet"], "no ControlNet for inpainting comes along with base"),
        (["--base", "random-sd15-9ch", "--inpaint", "controlnet"], "is an inpainting base; choose --inpaint model"),
        (["--base", "random-sd15-9ch", "--jump-length", "2"], "jump-length: says how RePaint walks, and 'model' does"),
        (["--base", "random-sd15-9ch", "--strength", "0.1"], "strength=0.1 of 4 steps leaves none to walk"),
    ],
)  # fmt: skip
def test_what_cannot_be_painted_so_is_one_line(files, tmp_path, more, words, capsys):
    generate(files, *more, "--out", tmp_path / "o.png", code=2)
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o.png").exists()


def test_nets_and_bases_for_holes_need_one(files, tmp_path, capsys):
    common = ["generate", "--prompt", "x", "--seed", "1", "--out", str(tmp_path / "o.png")]
    assert main([*common, "--base", "random-sd15", "--controlnet", str(files / "random-sd15-hole")]) == 2
    assert "paints what is masked of a picture; give --image FILE --mask FILE" in capsys.readouterr().err
    assert main([*common, "--base", "random-sd15-9ch"]) == 2
    assert "cannot paint from text alone" in capsys.readouterr().err
    assert main(["annotate", "--type", "inpaint", "-q", str(files / "picture.png"), "--out", str(tmp_path / "d")]) == 0
    mask = next((tmp_path / "d" / "conditions").rglob("*.png"))
    assert main([*common, "--base", "random-sd15", "--control", str(mask), "--controlnet", str(files / "edges")]) == 2
    assert "is a mask; give it with --mask FILE" in capsys.readouterr().err


# Outpainting


@pytest.mark.parametrize("way", ["repaint", "controlnet"])
def test_a_picture_is_enlarged_and_its_old_part_stays(files, tmp_path, way, capsys):
    """Maps of the old size and of the new one are the same control, black where there was no picture."""
    picture, edges = pixels(files / "picture.png"), pixels(files / "edges.png")
    Image.fromarray(np.pad(edges, ((0, 3), (9, 0), (0, 0)))).save(tmp_path / "wide.png")
    hole = ["--controlnet", f"inpaint={files / 'random-sd15-hole'}"] if way == "controlnet" else []
    common = ["generate", "--image", str(files / "picture.png"), "--outpaint", "9,0,0,3", "--prompt", "a ball"]
    common += ["--base", "random-sd15", "--inpaint", way, *map(str, hole), "--seed", "3", "--steps", "4"]
    common += ["--sampler", "ddim", "--controlnet", str(files / "edges")]
    walk = ["--jump-length", "2", "--jump-samples", "1"] if way == "repaint" else []
    for name, control in (("one", files / "edges.png"), ("other", tmp_path / "wide.png")):
        assert main([*common, *walk, "--control", str(control), "--out", str(tmp_path / f"{name}.png")]) == 0
    assert "seconds in all" in capsys.readouterr().err
    made = pixels(tmp_path / "one.png")
    assert made.shape == (67, 73, 3)
    assert (made[:64, 9:] == picture).all()
    assert (made[:, :9] != made[:, 9:10]).any()
    assert (made == pixels(tmp_path / "other.png")).all()
    assert main(["generate", "--replay", str(tmp_path / "one.png"), "--out", str(tmp_path / "again.png")]) == 0
    assert "bit for bit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--outpaint", "8,8"], "expected LEFT,TOP,RIGHT,BOTTOM in pixels, e.g. 0,0,256,0"),
        (["--outpaint", "0,0,0,0"], "outpaint=0,0,0,0: expected pixels to add at left, top, right, bottom"),
        (["--outpaint", "0,-8,0,0"], "outpaint=0,-8,0,0: expected pixels to add"),
        (["--outpaint", "0,8,0,0", "--invert-mask"], "invert-mask: there is no mask"),
        (["--feather", "3"], "give --mask FILE or --outpaint LEFT,TOP,RIGHT,BOTTOM"),
    ],
)
def test_room_that_cannot_be_added_is_one_line(files, tmp_path, more, words, capsys):
    given = ["generate", "--image", str(files / "picture.png"), "--base", "random-sd15", "--prompt", "x", "--seed", "1"]
    assert main([*given, *more, "--out", str(tmp_path / "o.png")]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "o.png").exists()


def test_what_comes_along_with_the_base_is_found_by_its_name(monkeypatch):
    """Of any base: the sibling that reads masks is called as it, with -9ch behind."""
    from controlkit.generation.ways import complete

    assert complete({"base": "random-sd15", "inpaint": "model"}, ()) == {"inpaint": "model", "base": "random-sd15-9ch"}
    monkeypatch.setattr(bases, "RANDOM_BASES", ("random-sd15",))
    assert complete({"base": "random-sd15", "inpaint": "model"}, ()) == {"inpaint": "model"}
