"""The demonstration: the whole loop on a drawn world, as the commands that somebody could type.

It has no way of its own of doing anything. Here stand the commands of its stages, and what is made of their files: one
picture and one page.
"""

from __future__ import annotations

import html
import json
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.data.pictures import read_picture
from controlkit.errors import RequestError
from controlkit.evaluation.page import data_uri, html_page, verdict
from controlkit.evaluation.scores import Score
from controlkit.files import atomic_write_bytes, atomic_write_text, need_writable
from controlkit.generation.settings import encode_picture
from controlkit.generation.sheet import draw_sheet
from controlkit.toybox.worlds import find_world

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

STAMP = "demo.json"
PICTURE = "demo.png"
PAGE = "index.html"

WORLD = "rooms"
HELD_OUT = 0.02  # of the scenes: kept back from the training, to show and to evaluate on

_FORMAT = 1
_JUMP = 5  # steps that RePaint goes back at once, where nothing else is said: fewer cannot be walked
_SIZE = 64  # pixels a side, of the embedded base
_SIDE = 256  # of each picture on the sheet
_WIDEST = 1600  # pixels of a picture that fills the page
_COLUMNS = ("control", "before", "after", "inpainted")


@dataclass(frozen=True)
class Example:
    """The scene that is shown, which no training has seen, and the colour that its thing gets in the end."""

    seed: int
    index: int
    colours: tuple[str, str]

    @property
    def prompt(self) -> str:
        return find_world(WORLD).plan(self.seed, self.index).caption

    @property
    def other_prompt(self) -> str:
        return self.prompt.replace(*self.colours, 1)

    def mask(self) -> Picture:
        """White around the thing, as somebody would draw it by hand."""
        (thing,) = find_world(WORLD).plan(self.seed, self.index).facts["objects"]
        left, top, right, bottom = (round(share * _SIZE) for share in thing["rectangle"])
        mask = np.zeros((_SIZE, _SIZE, 3), np.uint8)
        mask[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = 255
        return mask


TRAINED = Example(9, 3, ("blue", "red"))
SHIPPED = Example(1000, 29, ("orange", "purple"))
SHIPPED_NET = "toybox-canny"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """What a demonstration does; where it is begun again, it must be the same."""

    quick: bool = False  # use the ControlNet that comes with the package instead of training one
    scenes: int | None = None  # None: 1500, quick 48
    train_steps: int = 450
    steps: int = 20  # of the sampler
    rows: int = 8  # scenes that are painted for the evaluation

    def __post_init__(self) -> None:
        least = {"scenes": self.example.index + 1, "train_steps": 1, "steps": _JUMP, "rows": 2}
        for name, lowest in least.items():
            if (value := getattr(self, name)) is not None and value < lowest:
                raise RequestError(f"--{name.replace('_', '-')} {value}: expected at least {lowest}")

    @property
    def example(self) -> Example:
        return SHIPPED if self.quick else TRAINED

    @property
    def count(self) -> int:
        return self.scenes or (48 if self.quick else 1500)


@dataclass(frozen=True)
class Stage:
    """One command of the demonstration, and what it is for."""

    title: str
    arguments: list[str]

    @property
    def command(self) -> str:
        return shlex.join(["controlkit", *self.arguments])


def claim(folder: Path, demo: Demo) -> None:
    """Make the folder this demonstration's, or refuse it: what is begun again goes on, anything else is left alone."""
    stamp = json.dumps({"format": _FORMAT, **asdict(demo)})
    need_writable(folder, "--out")
    file = folder / STAMP
    if not file.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise RequestError(f"--out {folder} is not empty and holds no demo; choose another folder")
    if file.exists() and (found := file.read_text(encoding="utf-8").strip()) != stamp:
        raise RequestError(f"--out {folder} holds another demo ({found[:200]}); choose another folder")
    atomic_write_text(file, stamp + "\n")
    atomic_write_bytes(folder / "mask.png", encode_picture(demo.example.mask(), {}))


def stages(folder: Path, demo: Demo) -> list[Stage]:
    """The commands in their order. Each goes on where it was stopped."""
    example, (before, after, inpainted) = demo.example, painted(folder)
    data, run = folder / "data", folder / "run"
    net = SHIPPED_NET if demo.quick else str(run / "controlnet")
    under = ["--control", str(control(folder, demo)), "--controlnet", net]
    how = ["--steps", str(demo.steps), "--seed", "1", "--out"]
    drawn = ["--world", WORLD, "--type", "depth", "--count", str(demo.count), "--seed", str(example.seed)]
    training = [f"data.path={data}", f"data.held_out={HELD_OUT:g}", f"output={run}", f"steps={demo.train_steps}"]
    training += [
        "samples.every=125",
        "samples.steps=10",
        "checkpoint_every=125",
        *(["--resume"] if run.exists() else []),
    ]
    asked = ["--data", str(data), "--num", str(demo.rows), "--steps", str(demo.steps), "--batch-size", "4"]
    asked += [] if demo.quick else ["--held-out", f"{HELD_OUT:g}"]
    anew = ["--image", str(after), "--mask", str(folder / "mask.png"), "--prompt", example.other_prompt]
    made = [
        Stage("Draw pictures with captions", ["toybox", "make", str(data), *drawn]),
        Stage("Make the control map of each: its edges", ["annotate", "--type", "canny", str(data)]),
        Stage("Train a ControlNet, which changes nothing at first", ["train", "--config", "toybox-canny", *training]),
        Stage("Paint from the prompt alone", ["generate", "--prompt", example.prompt, *how, str(before)]),
        Stage("Paint under the map", ["generate", "--prompt", example.prompt, *under, *how, str(after)]),
        Stage("Paint the thing anew, under the map", ["generate", *anew, *under, *how, str(inpainted)]),
        Stage("Does it follow?", ["evaluate", "--controlnet", net, *asked, "--out", str(folder / "report")]),
    ]
    return [stage for stage in made if not (demo.quick and stage.arguments[0] == "train")]


def control(folder: Path, demo: Demo) -> Path:
    """The map of the example."""
    return folder / "data" / "conditions" / "canny" / f"{demo.example.index:06d}.png.png"


def painted(folder: Path) -> list[Path]:
    """Before, after, inpainted."""
    return [folder / f"{name}.png" for name in _COLUMNS[1:]]


def write_results(folder: Path, demo: Demo, done: Sequence[tuple[Stage, float]]) -> dict[str, Any]:
    """The picture and the page, of the stages and the seconds that each took; the scores."""
    shown = [_large(read_picture(path)) for path in (control(folder, demo), *painted(folder))]
    sheet = draw_sheet([shown], [list(_COLUMNS)])
    atomic_write_bytes(folder / PICTURE, encode_picture(sheet, {}))
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    scores: dict[str, Any] = {name: report[name] for name in ("metric", "scores", "obedience")}
    atomic_write_text(folder / PAGE, _render(folder, demo, done, sheet, scores["obedience"]))
    return scores


def _render(
    folder: Path, demo: Demo, done: Sequence[tuple[Stage, float]], sheet: Picture, share: dict[str, Any] | None
) -> str:
    example = demo.example
    commands = "".join(
        f"<tr><th>{html.escape(stage.title)}<small>{seconds:.0f} s</small></th>"
        f"<td><pre>{html.escape(stage.command)}</pre></td></tr>"
        for stage, seconds in done
    )
    body = f"""<h1>From pictures to a picture that follows its map</h1>
<img class="whole" alt="control, before, after, inpainted" src="{data_uri(sheet, widest=_WIDEST)}">
<p class="facts"><i>before</i>: {html.escape(example.prompt)}, without control, as a ControlNet paints that has learned
nothing. <i>after</i>: the same prompt and seed under the map. <i>inpainted</i>: {html.escape(example.other_prompt)},
inside the white of mask.png alone.</p>
{verdict(Score(**share) if share else None)}
<p class="facts">{len(done)} commands, {sum(seconds for _, seconds in done):.0f} seconds. Every picture of the
evaluation, worst first: <a href="report/index.html">report/index.html</a></p>
{_curves(folder)}
<h2>What was typed</h2>
<div class="scroll"><table class="typed"><tbody>{commands}</tbody></table></div>"""
    return html_page("controlkit demo", body)


def _curves(folder: Path) -> str:
    """Of the training, where there was one that was long enough to have some."""
    file = folder / "run" / "curves.png"
    if not file.exists():
        return ""
    return f"""<h2>How it learned</h2>
<p class="facts">The map gain is what the right map takes off the loss, against a wrong one: control is there once it is
clearly above zero.</p>
<img class="whole" alt="curves of the training" src="{data_uri(read_picture(file), widest=_WIDEST)}">"""


def _large(picture: Picture) -> Picture:
    """Each pixel a square, so that nothing is smoothed over."""
    times = max(1, _SIDE // picture.shape[0])
    return picture.repeat(times, axis=0).repeat(times, axis=1)
