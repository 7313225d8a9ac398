"""Several questions in one report: ControlNets beside each other, or a setting through several values.

Each has a report of its own in a folder of OUT; index.html and scores.json of OUT hold them together. All paint into
one folder, so that what several of them need, the pictures without control say, is painted once.
"""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError, known
from controlkit.evaluation.page import html_page, interval
from controlkit.evaluation.report import SCORES, write_report
from controlkit.files import atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from controlkit.evaluation.evaluate import Answer, Case, Question
    from controlkit.evaluation.scores import Score
    from controlkit.generation.sweeps import Sweep

SWEPT = ("weight", "cfg", "steps", "sampler", "control-every")

_WIDTH, _HEIGHT, _MARGIN = 720, 260, 46  # of a drawing
_COLOURS = ("#1f77d0", "#d0661f", "#2a9d5c", "#a04bc0", "#c03a5b", "#7a7a20")


@dataclass(frozen=True)
class Variant:
    """A question, what tells it from the others, and the place of its report below OUT."""

    label: str
    question: Question
    folder: str


def variants_of(questions: Sequence[Question], sweep: Sweep | None) -> list[Variant]:
    """Every question at every value."""
    if sweep and sweep.name not in SWEPT:
        raise RequestError(f"--sweep {sweep.name}: an evaluation sweeps {known(sweep.name, SWEPT)}")
    found = []
    for question in questions:
        for value, label in zip(sweep.values, sweep.labels, strict=True) if sweep else [(None, "")]:
            changed: dict[str, Any] = {sweep.field: value} if sweep else {}
            asked = replace(question, **changed)
            words = [asked.controlnet or "", label] if len(questions) > 1 or not label else [label]
            found.append((" · ".join(word for word in words if word), asked))
    return [
        Variant(label, question, f"{number:02d}-" + re.sub(r"[^\w.=]+", "-", label).strip("-")[-60:])
        for number, (label, question) in enumerate(found, 1)
    ]


def write_overview(
    answered: Sequence[tuple[Variant, Answer, Callable[[Case], dict[str, Any]]]], sweep: Sweep | None, out: Path
) -> Path:
    """The report of each, and the page that leads to them."""
    scores: dict[str, dict[str, Any]] = {}
    for variant, answer, pictures in answered:
        write_report(answer, pictures, out / variant.folder)
        for metric, rows in answer.to_json()["scores"].items():
            scores.setdefault(metric, {})[variant.label] = rows["control"]
    atomic_write_text(out / SCORES, json.dumps(scores, indent=1) + "\n")
    page = out / "index.html"
    atomic_write_text(page, render_overview([(variant, answer) for variant, answer, _ in answered], sweep))
    return page


def render_overview(answered: Sequence[tuple[Variant, Answer]], sweep: Sweep | None) -> str:
    title = f"How {sweep.name} changes obedience" if sweep else "Which ControlNet obeys?"
    rows = "".join(
        f'<tr><th><a href="{html.escape(variant.folder)}/index.html">{html.escape(variant.label)}</a>'
        f"<small>{answer.metric}, {'lower' if answer.lower_is_better else 'higher'} is better</small></th>"
        + "".join(_cell(answer.leading.get(row)) for row in _ROWS)
        + _cell(answer.obedience, percent=True)
        + "</tr>"
        for variant, answer in answered
    )
    heads = "".join(f"<th class='number'>{name}</th>" for name in (*_ROWS, "obedience"))
    metrics = dict.fromkeys(answer.metric for _, answer in answered)
    curves = "".join(_curve(metric, answered, sweep) for metric in metrics) if sweep and _numeric(sweep) else ""
    body = f"""<h1>{title}</h1>
<p class="facts">{len(answered)} reports, each with its pictures, the worst first.</p>
{curves}
<h2>Scores</h2>
<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"""
    return html_page(title, body)


_ROWS = ("control", "no_control", "vae", "real")


def _numeric(sweep: Sweep) -> bool:
    return len(sweep.values) > 1 and not isinstance(sweep.values[0], str)


def _cell(score: Score | None, *, percent: bool = False) -> str:
    if score is None:
        return "<td></td>"
    shown = f"{score.mean:.0%}" if percent else f"{score.mean:.4f}"
    return f"<td class='number'>{shown}<small>{interval(score, percent=percent)}</small></td>"


def _curve(metric: str, answered: Sequence[tuple[Variant, Answer]], sweep: Sweep) -> str:
    """The leading metric over the values, a line for each ControlNet with its 95 % interval; without control dashed."""
    lines: dict[str, list[Point]] = {}
    for variant, answer in answered:
        if answer.metric == metric:
            value = float(getattr(variant.question, sweep.field))
            point = Point(value, answer.leading["control"], answer.leading["no_control"].mean)
            lines.setdefault(str(variant.question.controlnet), []).append(point)
    points = [point for line in lines.values() for point in line]
    axes = Axes.around(points)
    drawn, legend = [], []
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line.sort(key=lambda point: point.value)
        band = [(point.value, point.high) for point in line] + [(point.value, point.low) for point in reversed(line)]
        drawn.append(f'<polygon points="{axes.path(band)}" fill="{colour}" opacity=".2"/>')
        for style, scores in (
            ("", [(point.value, point.control.mean) for point in line]),
            (' stroke-dasharray="5 4" opacity=".6"', [(point.value, point.no_control) for point in line]),
        ):
            drawn.append(
                f'<polyline points="{axes.path(scores)}" fill="none" stroke="{colour}" stroke-width="2"{style}/>'
            )
        legend.append(f'<i style="background:{colour}"></i> {html.escape(name)}')
    drawn += [
        f'<text x="{axes.x(value):.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{value:g}</text>'
        for value in sorted({point.value for point in points})
    ]
    drawn += [
        f'<text x="{_MARGIN - 6}" y="{axes.y(score):.1f}" text-anchor="end">{score:.2f}</text>'
        for score in (axes.low, axes.high)
    ]
    name = f"{metric} over {sweep.name}"
    return (
        f'<h2>{name}</h2><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{"".join(drawn)}</svg>'
        f'<p class="legend">{" ".join(legend)}, with its 95 % interval; dashed: without control</p>'
    )


@dataclass(frozen=True)
class Point:
    value: float
    control: Score
    no_control: float

    @property
    def low(self) -> float:
        return self.control.mean if self.control.low is None else self.control.low

    @property
    def high(self) -> float:
        return self.control.mean if self.control.high is None else self.control.high


@dataclass(frozen=True)
class Axes:
    """Where values and scores lie on the drawing, y counted from above."""

    left: float
    right: float
    low: float
    high: float

    @staticmethod
    def around(points: Sequence[Point]) -> Axes:
        values = [point.value for point in points]
        scores = [score for point in points for score in (point.low, point.high, point.no_control)]
        return Axes(min(values), max(values), min(scores), max(scores))

    def x(self, value: float) -> float:
        return _MARGIN + (value - self.left) / ((self.right - self.left) or 1) * (_WIDTH - 2 * _MARGIN)

    def y(self, score: float) -> float:
        return _HEIGHT - _MARGIN - (score - self.low) / ((self.high - self.low) or 1) * (_HEIGHT - 2 * _MARGIN)

    def path(self, places: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(value):.1f},{self.y(score):.1f}" for value, score in places)
