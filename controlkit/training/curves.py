"""The curves of a run as one picture: loss, control gain, fidelity, and where the control was acquired."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.training.watch import ALONE, looks_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL.ImageDraw import ImageDraw

    Colour = tuple[int, int, int]

SCALE = 2  # drawn larger and averaged, for smooth lines
WIDTH, PANEL = 900, 250  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 40, 24  # margins of a panel
_TITLE, _TEXT = 15, 13  # pixels of type

_INK, _FAINT, _GRID = (40, 44, 52), (120, 126, 136), (228, 231, 236)
_BLUE, _ORANGE, _GREEN, _GREY = (31, 99, 181), (214, 106, 24), (38, 136, 78), (158, 164, 174)
_EVENT = (176, 32, 78)
_OF_TYPES = (_BLUE, _ORANGE, _GREEN, _GREY)
_SMOOTHED = 60  # places along the axis that the mean of the step losses is drawn at


@dataclass(frozen=True)
class Curve:
    label: str
    colour: Colour
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    curves: list[Curve] = field(default_factory=list)
    zero: bool = False  # zero belongs on the axis, and is drawn
    percent: bool = False


def draw_curves(metrics: list[dict[str, Any]]) -> NDArray[np.uint8] | None:
    """The picture of a metrics.jsonl, (H, W, 3) RGB; None if no step was logged."""
    from PIL import Image, ImageDraw

    panels = panels_of(metrics)
    if not panels:
        return None
    size = (WIDTH * SCALE, (PANEL * len(panels) + _BOTTOM) * SCALE)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    last = max(row["step"] for row in metrics)
    since = next((row["since"] for row in metrics if row.get("event") == "control acquired"), None)
    for number, panel in enumerate(panels):
        _draw_panel(draw, panel, number * PANEL, last, since, lowest=number == len(panels) - 1)
    return np.asarray(image.resize((size[0] // SCALE, size[1] // SCALE), Image.Resampling.BOX))


def panels_of(metrics: list[dict[str, Any]]) -> list[Panel]:
    """What there is to draw, from top to bottom."""
    steps = [row for row in metrics if "loss" in row]
    looks = looks_in(metrics)
    scores = [row for row in metrics if "fidelity" in row]
    if not steps:
        return []
    loss = Panel("loss", [_smoothed("training", _GREY, steps)])
    if looks:
        at = [row["step"] for row in looks]
        loss.curves.append(Curve("held out, without control", _ORANGE, at, _column(looks, "held_out_loss_silent")))
        loss.curves.append(Curve("held out", _BLUE, at, _column(looks, "held_out_loss")))
    panels = [loss]
    if looks:
        gains = Panel("share of the held-out loss taken off", zero=True, percent=True)
        for label, key, colour in (
            ("by the control (control gain)", "control_gain_share", _BLUE),
            ("by reading the right map (map gain)", "map_gain_share", _GREEN),
        ):
            gain = [row[key] for row in looks]
            mean, low, high = (_column(gain, name) for name in ("mean", "low", "high"))
            gains.curves.append(Curve(label, colour, at, mean, low, high))
        panels.append(gains)
        if ALONE in looks[-1]:
            panels.append(_of_each_type(looks))
    for metric in dict.fromkeys(row["fidelity"]["metric"] for row in scores):
        of_metric = [row for row in scores if row["fidelity"]["metric"] == metric]
        at, found = [row["step"] for row in of_metric], [row["fidelity"] for row in of_metric]
        better = "lower is better" if metric == "depth_rmse" else "higher is better"
        fidelity = Panel(f"how the samples follow their maps: {metric}, {better}", zero=True)
        mean, low, high = (_column(found, name) for name in ("mean", "low", "high"))
        for label, key in (("real pictures", "real"), ("chance", "chance")):
            if all(key in each for each in found):
                colour = _ORANGE if key == "real" else _GREY
                fidelity.curves.append(Curve(label, colour, at, _column(found, key), dashed=True))
        fidelity.curves.append(Curve("samples", _GREEN, at, mean, low, high))
        panels.append(fidelity)
    return panels


def _of_each_type(looks: list[dict[str, Any]]) -> Panel:
    """How much each map alone brings by being read."""
    panel = Panel("map gain of each map alone, the others black", zero=True, percent=True)
    for number, type in enumerate(looks[-1][ALONE]):
        gain = [row[ALONE][type]["map_gain_share"] for row in looks]
        mean, low, high = (_column(gain, name) for name in ("mean", "low", "high"))
        colour = _OF_TYPES[number % len(_OF_TYPES)]
        panel.curves.append(Curve(type, colour, [row["step"] for row in looks], mean, low, high))
    return panel


def _column(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    return [row[key] for row in rows]


def _smoothed(label: str, colour: Colour, steps: list[dict[str, Any]]) -> Curve:
    """Means over stretches of the run: single steps hang on the noise levels that they drew."""
    parts = np.array_split(np.array([(row["step"], row["loss"]) for row in steps]), min(_SMOOTHED, len(steps)))
    means = [part.mean(axis=0) for part in parts]
    return Curve(label, colour, [float(x) for x, _ in means], [float(y) for _, y in means])


def _draw_panel(draw: ImageDraw, panel: Panel, top: int, last: int, since: int | None, *, lowest: bool) -> None:
    from PIL import ImageFont

    title, text = (ImageFont.load_default(size * SCALE) for size in (_TITLE, _TEXT))
    x0, x1, y0, y1 = _LEFT, WIDTH - _RIGHT, top + _TOP, top + PANEL - _BOTTOM
    values = [value for curve in panel.curves for value in [*curve.y, *curve.low, *curve.high]]
    ticks = nice_ticks(min([*values, 0] if panel.zero else values), max([*values, 0] if panel.zero else values))

    def place(x: float, y: float) -> tuple[float, float]:
        across = x0 + (x1 - x0) * x / max(1, last)
        return across * SCALE, (y1 - (y1 - y0) * (y - ticks[0]) / (ticks[-1] - ticks[0])) * SCALE

    draw.text((x0 * SCALE, (top + 10) * SCALE), panel.title, fill=_INK, font=title)
    for tick in ticks:
        _, y = place(0, tick)
        axis = panel.zero and tick == 0
        draw.line([(x0 * SCALE, y), (x1 * SCALE, y)], fill=_GREY if axis else _GRID, width=SCALE)
        draw.text(((x0 - 8) * SCALE, y), _number(tick, ticks, panel.percent), fill=_FAINT, font=text, anchor="rm")
    for tick in nice_ticks(0, last, whole=True):
        if tick > last:
            continue
        x, _ = place(tick, ticks[0])
        draw.line([(x, y1 * SCALE), (x, (y1 + 4) * SCALE)], fill=_GREY, width=SCALE)
        draw.text((x, (y1 + 7) * SCALE), f"{tick:g}", fill=_FAINT, font=text, anchor="mt")
    if lowest:
        draw.text((x1 * SCALE, (y1 + 26) * SCALE), "steps", fill=_FAINT, font=text, anchor="rt")
    for curve in panel.curves:
        _draw_band(draw, curve, place)
    for curve in panel.curves:
        _draw_curve(draw, curve, place)
    if since is not None:
        (x, upper), (_, lower) = place(since, ticks[-1]), place(since, ticks[0])
        _dashed(draw, (x, upper), (x, lower), _EVENT)
        right = x > (x0 + x1) / 2 * SCALE
        beside = (x - 6 * SCALE, upper + 2 * SCALE) if right else (x + 6 * SCALE, upper + 2 * SCALE)
        if top == 0:
            draw.text(beside, f"control acquired: step {since}", fill=_EVENT, font=text, anchor="rt" if right else "lt")
    # The names of the curves, from the right, level with the title.
    end = float(x1 * SCALE)
    for curve in reversed(panel.curves):
        width = draw.textlength(curve.label, font=text)
        draw.text((end - width, (top + 12) * SCALE), curve.label, fill=curve.colour, font=text)
        end -= width + 18 * SCALE


def _draw_band(draw: ImageDraw, curve: Curve, place: Any) -> None:
    if curve.low and len(curve.x) > 1:
        band = [place(x, y) for x, y in zip(curve.x, curve.high, strict=True)]
        band += [place(x, y) for x, y in zip(curve.x, curve.low, strict=True)][::-1]
        pale: Any = tuple(round(255 - (255 - part) * 0.16) for part in curve.colour)
        draw.polygon(band, fill=pale)


def _draw_curve(draw: ImageDraw, curve: Curve, place: Any) -> None:
    points = [place(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
    if curve.dashed:
        for one, other in pairwise(points):
            _dashed(draw, one, other, curve.colour)
    else:
        draw.line(points, fill=curve.colour, width=2 * SCALE, joint="curve")
    if len(points) == 1 or (len(points) <= 40 and not curve.dashed):
        reach = (2.5 if len(points) > 1 else 4) * SCALE
        for x, y in points:
            draw.ellipse([(x - reach, y - reach), (x + reach, y + reach)], fill=curve.colour)


def _dashed(draw: ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: Colour) -> None:
    length, dash = math.dist(start, end), 5 * SCALE
    for begin in np.arange(0, length, 2 * dash):
        ends = [begin / length, min(1, (begin + dash) / length)]
        line = [tuple(a + (b - a) * share for a, b in zip(start, end, strict=True)) for share in ends]
        draw.line(line, fill=colour, width=SCALE + 1)


def nice_ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`, four or so steps of 1, 2, 2.5 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power * 4.5 >= span)
    if whole:
        step = max(1, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _number(tick: float, ticks: list[float], percent: bool) -> str:
    step = (ticks[1] - ticks[0]) * (100 if percent else 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step, digits) != round(step, 12):
        digits += 1  # steps of 2.5
    return f"{tick * 100:.{digits}f} %" if percent else f"{tick:.{digits}f}"
