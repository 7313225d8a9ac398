"""The report of an evaluation, and one HTML page that opens from the disk with nothing beside it.

    scores.json    metric -> row -> mean, low, high, n; what other programs read. Where figures cannot be read without
                   it, "stated" says how they were made
    report.json    the question, who judged, what painted, and each picture's scores

The page shows the worst pictures first: the best ones look well under any ControlNet.
"""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.evaluation.page import data_uri, html_page, interval, verdict
from controlkit.evaluation.scores import difference
from controlkit.files import atomic_write_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from controlkit.evaluation.evaluate import Answer, Case
    from controlkit.evaluation.scores import Score

    Picture = NDArray[np.uint8]

SCORES, REPORT = "scores.json", "report.json"

SHOWN = 48
"""Rows of pictures on the page: from the worst to the best, evenly."""

_BINS = 24

_MEANING = {
    "control": "painted under control",
    "no_control": "the same prompts and noise without control",
    "chance": "what was painted, held against another row's map",
    "vae": "real pictures through the base's autoencoder: the best that it could paint",
    "real": "real pictures: the best that this annotator can see",
}


def write_report(answer: Answer, pictures: Callable[[Case], dict[str, Picture]], out: Path) -> Path:
    """All three files; the path of the page."""
    report = answer.to_json()
    atomic_write_text(out / SCORES, json.dumps(scores_json(answer), indent=1) + "\n")
    atomic_write_text(out / REPORT, json.dumps(report, indent=1, default=str) + "\n")
    page = out / "index.html"
    atomic_write_text(page, render(answer, pictures))
    return page


def render(answer: Answer, pictures: Callable[[Case], dict[str, Picture]]) -> str:
    """The page. `pictures` are those of a case by name, among them `map` and `read from it`."""
    question = answer.question
    kind = answer.judge
    ranked = worst_first(answer)
    title = f"Does {html.escape(question.controlnet or question.pictures or '')} obey?"
    settings = f"{len(answer.cases)} rows of {question.data}"
    if question.controlnet:
        settings += (
            f" · base {question.base} · {question.sampler}, {question.steps} steps, cfg {question.cfg:g}, "
            f"weight {question.weight:g}, seeds from {question.seed}"
        )
        if question.control_every > 1:
            settings += f" · the ControlNet asked every {question.control_every} steps"
        settings += f" · preset {question.preset}" if question.preset else ""
        settings += f" · {question.size} pixels a side" if question.size else ""
        settings += f" · without {question.negative!r}" if question.negative else ""
        settings += f" · {question.per_row} pictures a row" if question.per_row > 1 else ""
    reading = (
        f"{answer.metric}, {'lower' if answer.lower_is_better else 'higher'} is better · read by {kind['type']}"
        f"={kind['backend']} {json.dumps(kind['parameters'])}"
    )
    shown = (
        ranked if len(ranked) <= SHOWN else [ranked[place * (len(ranked) - 1) // (SHOWN - 1)] for place in range(SHOWN)]
    )
    seen = {case.place: _with_overlay(pictures(case)) for case in shown}
    heads = "".join(f"<th>{name}</th>" for name in seen[shown[0].place])
    sheet = "\n".join(_row(case, case.scores[answer.metric]["control"], seen[case.place]) for case in shown)
    body = f"""<h1>{title}</h1>
{verdict(answer.obedience)}
<p class="facts">{html.escape(settings)}<br>{html.escape(reading)}</p>
<h2>Scores</h2>
{_table(answer)}
{"".join(f"<p>{html.escape(warning)}</p>" for warning in answer.warnings)}
<h2>How they are spread</h2>
{_histogram(answer)}
<h2>Worst first</h2>
<p class="facts">{len(shown)} of {len(ranked)} rows, from the worst to the best. In <i>both</i> the map is red, what was
read from the picture is cyan, and white where they meet.</p>
<div class="scroll"><table class="sheet"><thead><tr><th>score</th>{heads}</tr></thead>
<tbody>
{sheet}
</tbody></table></div>
{_stated(answer)}"""
    return html_page(title, body)


def scores_json(answer: Answer) -> dict[str, Any]:
    report = answer.to_json()
    return {**report["scores"], **({"stated": report["stated"]} if answer.stated else {})}


def worst_first(answer: Answer) -> list[Case]:
    sign = -1 if answer.lower_is_better else 1
    scored = [case for case in answer.cases if "control" in case.scores.get(answer.metric, {})]
    return sorted(scored, key=lambda case: sign * case.scores[answer.metric]["control"])


def overlay(wanted: Picture, found: Picture) -> Picture:
    """The map in red, what was found in cyan."""
    one, other = wanted.max(axis=2), found.max(axis=2)
    return np.dstack([one, other, other])


def compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two report.json: how far the leading metric differs over the rows that both painted, and whether that is more
    than noise."""
    if one["metric"] != other["metric"] or one["judge"] != other["judge"]:
        raise ValueError(f"{one['metric']} and {other['metric']}, or read in other ways: expected one measure for both")
    mine, theirs = (
        {
            (case["content"], case["number"]): case["scores"].get(report["metric"], {}).get("control")
            for case in report["cases"]
        }
        for report in (one, other)
    )
    both = [key for key in mine if mine[key] is not None and theirs.get(key) is not None]
    if len(both) < 2:
        raise ValueError(f"{len(both)} rows are in both reports; expected at least 2")
    found = difference([mine[key] for key in both], [theirs[key] for key in both])
    assert found.low is not None
    assert found.high is not None
    sure = found.low > 0 or found.high < 0
    first_is_better = (found.mean < 0) == one["lower_is_better"]
    return {"metric": one["metric"], "difference": found, "better": (0 if first_is_better else 1) if sure else None}


def _table(answer: Answer) -> str:
    """A column a metric, the leading one first; below each figure its interval."""
    rows = "".join(
        f"<tr><th>{row}<small>{meaning}</small></th>{''.join(map(_cell, each))}</tr>"
        for row, meaning in _MEANING.items()
        if any(each := [scores.get(row) for scores in answer.scores.values()])
    )
    head = "<tr><th></th>" + "".join(f"<th class='number'>{metric}</th>" for metric in answer.scores) + "</tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _stated(answer: Answer) -> str:
    """How the figures were made that cannot be read without it."""
    told = "".join(
        f"<details open><summary>{html.escape(name)}</summary><div class='scroll'><table class='typed'>"
        + "".join(
            f"<tr><th>{html.escape(fact)}</th><td class='facts'>{_words(value)}</td></tr>"
            for fact, value in facts.items()
        )
        + "</table></div></details>"
        for name, facts in answer.stated.items()
    )
    return f"<h2>How it was measured</h2>{told}" if told else ""


def _words(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "<br>".join(_words(each) for each in value)
    return html.escape(value if isinstance(value, str) else json.dumps(value))


def _cell(score: Score | None) -> str:
    if score is None:
        return "<td></td>"
    between = f"{interval(score)}, " if score.low is not None else ""
    return f"<td class='number'>{score.mean:.4f}<small>{between}n {score.n}</small></td>"


def _histogram(answer: Answer) -> str:
    """How many pictures have which score, with control and without."""
    scores = [case.scores.get(answer.metric, {}) for case in answer.cases]
    values = {row: [each[row] for each in scores if row in each] for row in ("no_control", "control")}
    every = [value for each in values.values() for value in each]
    if not every:
        return ""
    low, high = min(every), max(every)
    high = high if high > low else low + 1
    counts = {row: np.histogram(each, bins=_BINS, range=(low, high))[0] for row, each in values.items()}
    tallest = max(1, *(int(count.max()) for count in counts.values()))
    bars = "".join(
        f'<rect class="{row}" x="{place * 720 / _BINS + 1:.1f}" y="{180 - 170 * count / tallest:.1f}" '
        f'width="{720 / _BINS - 2:.1f}" height="{170 * count / tallest:.1f}"/>'
        for row, each in counts.items()
        for place, count in enumerate(each)
    )
    ticks = "".join(
        f'<text x="{x}" y="198" text-anchor="{anchor}">{value:.2f}</text>'
        for x, value, anchor in ((0, low, "start"), (360, (low + high) / 2, "middle"), (720, high, "end"))
    )
    legend = '<p class="legend"><i class="control"></i> under control <i class="no_control"></i> without</p>'
    return f'<svg viewBox="0 0 720 204" role="img" aria-label="histogram of the scores">{bars}{ticks}</svg>{legend}'


def _with_overlay(pictures: dict[str, Picture]) -> dict[str, Picture]:
    """Behind what was read, the map and that on each other."""
    made: dict[str, Picture] = {}
    for name, picture in pictures.items():
        made[name] = picture
        if name == "read from it":
            made["both"] = overlay(pictures["map"], picture)
    return made


def _row(case: Case, score: float, pictures: dict[str, Picture]) -> str:
    cells = "".join(f'<td><img alt="{name}" src="{data_uri(picture)}"></td>' for name, picture in pictures.items())
    prompt = html.escape(case.prompt)
    return (
        f"<tr><th>{score:.3f}<small>row {case.number}</small></th>{cells}</tr>"
        f'<tr class="prompt"><td></td><td colspan="{len(pictures)}">{prompt}</td></tr>'
    )
