"""`--grid` and `--sweep`: the cells are the pictures one gets alone, laid where their labels say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from controlkit.cli.main import main
from controlkit.errors import RequestError
from controlkit.generation.request import Control, Net, Request
from controlkit.generation.settings import read_settings
from controlkit.generation.sheet import draw_grid, draw_sheet
from controlkit.generation.sweeps import Sweep, cells
from tests.conftest import draw_photo
from tests.painting import edges_of, pixels

COMMON = ["--base", "random-sd15", "--prompt", "x", "--size", "32x32", "--steps", 2]


def generate(*arguments, code=0):
    assert main(["generate", "--quiet", *map(str, arguments)]) == code


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("weight=0:1.5:0.25", (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)),
        ("strength=0.1:0.3:0.1", (0.1, 0.2, 0.3)),
        ("cfg=1,7.5", (1.0, 7.5)),
        ("seed=3:5:1", (3, 4, 5)),
        ("steps=4,8", (4, 8)),
        ("sampler=ddim,euler_a", ("ddim", "euler_a")),
    ],
)
def test_a_sweep_is_parsed(text, values):
    assert Sweep.parse(text).values == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weight", "expected NAME=FROM:TO:STEP or NAME=a,b,c"),
        ("wieght=0:1:1", "unknown setting 'wieght': did you mean 'weight'?"),
        ("cfg=a,b", "expected numbers"),
        ("cfg=0:1", "expected numbers, FROM:TO:STEP or a,b,c"),
        ("cfg=0:1:0", "expected FROM below TO and a STEP above 0"),
        ("steps=1.5,2", "steps takes whole numbers"),
        ("seed=0:100000:1", "more than 400 values"),
    ],
)
def test_a_bad_sweep_is_refused(text, words):
    with pytest.raises(RequestError, match=words.replace("?", ".")):
        Sweep.parse(text)


def test_each_setting_reaches_its_field():
    request = Request(
        prompt="x", image=Path("p.png"), controls=(Control(file=Path("c.png")),), controlnets=(Net(name="n"),)
    )
    for text, read in [
        ("weight=0.5,2", lambda cell: cell.controls[0].weight),
        ("cfg=2,3", lambda cell: cell.cfg),
        ("sampler=ddim,lms", lambda cell: cell.sampler),
        ("seed=2,3", lambda cell: cell.seed),
        ("steps=5,6", lambda cell: cell.steps),
        ("strength=0.5,0.7", lambda cell: cell.strength),
    ]:
        sweep = Sweep.parse(text)
        assert tuple(read(cell) for cell in cells(request, [sweep])[0]) == sweep.values


def where_it_stands(sheet, image):
    """Row and column of the picture's corner, found by its pixels."""
    height, width = image.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width, 3))[:, :, 0]
    return [tuple(place) for place in np.argwhere((windows == image).all(axis=(2, 3, 4)))]


def test_the_sheet_of_two_sweeps_has_every_picture_in_its_place(tmp_path, capsys):
    generate(*COMMON, "--sweep", "seed=1,2,3", "--sweep", "cfg=2,9", "--out", tmp_path)
    *paths, sheet_path = capsys.readouterr().out.split()
    assert len(paths) == 6
    assert sheet_path.endswith("000007_sheet.png")
    places = {}
    for path in map(Path, paths):
        settings = read_settings(path)
        ((row, column),) = where_it_stands(pixels(sheet_path), pixels(path))
        places[settings["cfg"], settings["seed"]] = row, column
    rows, columns = (sorted({place[axis] for place in places.values()}) for axis in (0, 1))
    assert places == {(cfg, seed): (rows[[2, 9].index(cfg)], columns[seed - 1]) for cfg in (2, 9) for seed in (1, 2, 3)}
    generate(*COMMON, "--seed", 2, "--cfg", 9, "--out", tmp_path / "alone.png")
    assert any(np.array_equal(pixels(path), pixels(tmp_path / "alone.png")) for path in paths)


def test_a_sweep_of_weights_goes_over_all_controls(nets, tmp_path, capsys):
    edge = tmp_path / "edge.png"
    Image.fromarray(edges_of(draw_photo(0, 32, 32))).save(edge)
    generate(*COMMON, "--seed", 1, "--control", edge, "--controlnet", nets["random-sd15"], "--sweep", "weight=0:1:0.5",
             "--out", tmp_path / "out")  # fmt: skip
    *paths, _ = map(Path, capsys.readouterr().out.split())
    assert [read_settings(path)["controls"][0]["weight"] for path in paths] == [0, 0.5, 1]
    assert not np.array_equal(pixels(paths[0]), pixels(paths[2]))


def test_a_grid_shows_all_pictures_of_a_request(tmp_path, capsys):
    generate(*COMMON, "--seed", 1, "--num", 3, "--grid", "--out", tmp_path)
    *paths, sheet_path = capsys.readouterr().out.split()
    assert len(paths) == 3
    assert all(len(where_it_stands(pixels(sheet_path), pixels(path))) == 1 for path in paths)


def test_labels_are_written_and_never_on_a_picture():
    colour = (10, 200, 30)  # letters are grey
    images = [np.full((32, 32, 3), colour, np.uint8)] * 2
    for labels in (["a", "b"], ["a much longer label than the picture is wide"] * 2):
        sheet = draw_grid(images, labels)
        assert (sheet == colour).all(axis=2).sum() == 2 * 32 * 32
        assert (sheet.max(axis=2) < 64).any()
    assert draw_sheet([images], [["a", "b"]], ["beside"]).shape[1] > draw_grid(images, ["a", "b"]).shape[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sweep", "weight=0,1"], "--sweep weight: there is no control"),
        (["--sweep", "cfg=1,2", "--sweep", "cfg=3,4"], "--sweep cfg is given twice"),
        (["--sweep", "cfg=1,2", "--sweep", "seed=3,4", "--sweep", "steps=1,2"], "3 sweeps; expected at most two"),
        (["--sweep", "cfg=1,2", "--num", "2"], "--num 2: a sweep paints one picture a cell"),
        (["--sweep", "sampler=ddim,eulr"], "unknown sampler 'eulr': did you mean"),
        (["--sweep", "hires-strength=0.5,1"], "--sweep hires-strength: there is no second pass"),
        (["--sweep", "strength=0.5,1"], "strength=0.5: says how much of a picture changes"),
        (["--sweep", "steps=1,2000"], "2000 steps: the schedule of this base has 1000"),
        (["--sweep", "seed=0:30:1", "--sweep", "cfg=1:20:1"], "these sweeps make 620 pictures; expected at most 400"),
        (["--grid", "--out", "o.png"], "is one file, a sheet has its pictures beside it"),
        (["--grid", "--requests", "r.jsonl"], "--requests goes without --grid and --sweep"),
    ],
)  # fmt: skip
def test_a_wrong_sheet_is_one_line_and_paints_nothing(arguments, words, tmp_path, capsys):
    generate("--out", tmp_path / "out", *COMMON, "--seed", 1, *arguments, code=2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not list(tmp_path.rglob("*.png"))
