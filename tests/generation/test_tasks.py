"""Every task through one door: each family, with a picture or without, under no, one and two controls."""

import numpy as np
import pytest
import torch
from PIL import Image

from controlkit.cli.main import main
from controlkit.diffusion.samplers import SAMPLERS
from controlkit.errors import RequestError
from controlkit.generation.plan import make_plan
from controlkit.generation.request import Request
from controlkit.generation.settings import read_settings
from tests.conftest import draw_photo
from tests.painting import edges_of, pixels, reference, strong_net

FAMILIES = ["random-sd15", "random-sd21", "random-sdxl"]


def generate(*arguments, code=0):
    assert main(["generate", "--quiet", *map(str, arguments)]) == code


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(draw_photo(3, 48, 32)).save(path)
    return path


@pytest.fixture
def small_maps(tmp_path):
    """Two maps of the picture's size."""
    paths = [tmp_path / f"{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        Image.fromarray(edges_of(draw_photo(number, 48, 32))).save(path)
    return paths


@pytest.fixture(scope="session")
def pairs(nets, tmp_path_factory):
    """Two ControlNets for each family."""
    folder = tmp_path_factory.mktemp("pairs")
    return {name: [nets[name], strong_net(name, folder / name, seed=1)] for name in FAMILIES}


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("task", ["text", "picture"])
@pytest.mark.parametrize("base", FAMILIES)
def test_it_equals_diffusers_own_pipeline_pixel_for_pixel(base, task, count, pairs, small_maps, picture, tmp_path):
    asked = ["--base", base, "--prompt", "a red ball", "--negative", "blurry", "--cfg", 5, "--seed", 1, "--steps", 4]
    expected = {"prompt": "a red ball", "negative_prompt": "blurry", "guidance_scale": 5.0, "num_inference_steps": 4}
    maps, folders = small_maps[:count], pairs[base][:count]
    for path, window, folder in zip(maps, ["@0.8:0:0.7", "@0.5:0.3"], folders, strict=False):
        asked += ["--control", f"{path}{window}", "--controlnet", folder]
    if count == 1:
        expected |= {"controlnet_conditioning_scale": 0.8, "control_guidance_end": 0.7}
    if count == 2:
        expected |= {"controlnet_conditioning_scale": [0.8, 0.5]}
        expected |= {"control_guidance_start": [0.0, 0.3], "control_guidance_end": [0.7, 1.0]}
    if task == "picture":
        asked += ["--image", picture, "--strength", 0.5]
        expected |= {"picture": picture, "strength": 0.5}
    elif not count:
        asked += ["--size", "48x32"]
        expected |= {"width": 48, "height": 32}
    generate(*asked, "--out", tmp_path / "o.png")
    made = reference(base, folders, maps, generator=torch.Generator().manual_seed(1), **expected)
    assert made.shape == (32, 48, 3)
    assert np.array_equal(pixels(tmp_path / "o.png"), made)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # thousands, of numpy's, from within some schedulers
def test_every_sampler_walks_from_a_picture_as_diffusers_does(picture, tmp_path):
    """One loading of the models, all names; diffusers' pipeline is called with the sampler of that name."""
    from controlkit.diffusion.samplers import make_sampler
    from controlkit.generation.generate import load_models, paint
    from tests.painting import own_pipeline, picture_of

    pipeline = own_pipeline("random-sd15", picture=True)
    config = pipeline.scheduler.config
    models = None
    for name in SAMPLERS:
        request = Request(base="random-sd15", image=picture, prompt="x", sampler=name, steps=4, strength=0.5, cfg=1)
        plan = make_plan(request, lambda text: None)
        models = models or load_models(plan, device=torch.device("cpu"), dtype=torch.float32)
        (made,) = paint(plan, models)
        pipeline.scheduler = make_sampler(name, config)
        expected = pipeline(
            "x", image=picture_of(picture), strength=0.5, num_inference_steps=4, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0),
        ).images[0]  # fmt: skip
        assert np.array_equal(made.image, np.asarray(expected)), name


def test_more_strength_leaves_less_of_the_picture(tmp_path):
    """With the base that comes along, whose pictures mean something."""
    path = tmp_path / "p.png"
    Image.fromarray(draw_photo(3, 64, 64)).save(path)
    distances = []
    for strength in (0.1, 0.9):
        out = tmp_path / f"{strength}.png"
        generate("--image", path, "--strength", strength, "--steps", 10, "--seed", 1, "--prompt", "a red ball",
                 "--out", out)  # fmt: skip
        distances.append(np.abs(pixels(out).astype(int) - pixels(path)).mean())
    assert distances[0] < 0.6 * distances[1]


def test_the_size_is_the_pictures_and_a_map_comes_before_it(nets, edge, tmp_path, capsys):
    large = tmp_path / "large.png"
    Image.fromarray(draw_photo(3, 200, 100)).save(large)
    asked = ["--base", "random-sd15", "--image", large, "--steps", 2, "--seed", 1]
    assert main(["generate", *map(str, asked), "--out", str(tmp_path / "a.png")]) == 0
    assert "painting at 88x48 for a picture of 200x100: random-sd15 paints at about 64x64" in capsys.readouterr().err
    assert pixels(tmp_path / "a.png").shape == (48, 88, 3)
    asked += ["--control", edge, "--controlnet", nets["random-sd15"]]
    assert main(["generate", *map(str, asked), "--out", str(tmp_path / "b.png")]) == 0
    assert "large.png is 200x100, the picture 96x64: its middle is used, 25% is cut off" in capsys.readouterr().err
    assert pixels(tmp_path / "b.png").shape == (64, 96, 3)


def test_without_map_or_picture_the_size_is_the_bases(tmp_path):
    generate("--base", "random-sd15", "--prompt", "x", "--steps", 1, "--seed", 1, "--out", tmp_path / "o.png")
    assert pixels(tmp_path / "o.png").shape == (64, 64, 3)


def test_a_picture_is_read_as_people_see_it(tmp_path):
    """Turned by EXIF: painted upright, as from the turned pixels themselves."""
    upright = draw_photo(3, 64, 96)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(upright).save(tmp_path / "upright.png")
    for name in ("turned", "upright"):
        generate("--base", "random-sd15", "--image", tmp_path / f"{name}.png", "--steps", 2, "--seed", 1,
                 "--out", tmp_path / f"{name}-o.png")  # fmt: skip
    assert np.array_equal(pixels(tmp_path / "turned-o.png"), pixels(tmp_path / "upright-o.png"))


def test_the_png_holds_the_picture_it_started_from(picture, tmp_path):
    import hashlib

    generate("--base", "random-sd15", "--image", picture, "--steps", 2, "--seed", 1, "--out", tmp_path / "o.png")
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    written = read_settings(tmp_path / "o.png")["image"]
    assert len(written.pop("pixels_sha256")) == 64
    assert written == {"file": str(picture), "sha256": digest, "strength": 0.6}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to paint from: expected --prompt TEXT, --control FILE or --image FILE"),
        (
            ["--prompt", "x", "--strength", "0.5"],
            "strength=0.5: says how much of a picture changes",
        ),
        (["--image", "p.png", "--strength", "0"], "strength=0: expected above 0 (the picture as it is) to 1"),
        (["--image", "p.png", "--strength", "1.5"], "strength=1.5: expected above 0 (the picture as it is) to 1"),
        (
            ["--image", "p.png", "--strength", "0.1", "--steps", "5"],
            "strength=0.1 of 5 steps leaves none to walk; use --steps 10 or more, or --strength 0.2",
        ),
        (["--image", "p.png"], "p.png: there is no such file"),
    ],
)
def test_a_wrong_request_is_one_line(arguments, words, tmp_path, capsys):
    generate("--base", "random-sd15", "--seed", 1, *arguments, "--out", tmp_path / "o.png", code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "o.png").exists()


def test_the_advice_for_too_few_steps_works():
    for steps, strength in [(5, 0.1), (3, 0.3), (7, 0.01), (1, 0.6)]:
        with pytest.raises(RequestError, match="leaves none to walk") as refused:
            Request(image="p.png", steps=steps, strength=strength)
        words = str(refused.value).replace(",", "").split()
        assert Request(image="p.png", steps=int(words[words.index("--steps") + 1]), strength=strength).walked_steps >= 1
        assert Request(image="p.png", steps=steps, strength=float(words[-1])).walked_steps >= 1


def test_strength_1_is_said(picture, tmp_path, capsys):
    asked = ["--base", "random-sd15", "--image", picture, "--strength", 1, "--steps", 2, "--seed", 1]
    assert main(["generate", *map(str, asked), "--out", str(tmp_path / "o.png")]) == 0
    assert "strength 1: every step is walked" in capsys.readouterr().err
    assert not np.array_equal(pixels(tmp_path / "o.png"), pixels(picture))
