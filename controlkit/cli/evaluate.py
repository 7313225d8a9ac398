"""`controlkit evaluate`: does a ControlNet obey, and how surely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.output import common_options, refuse_given

if TYPE_CHECKING:
    from controlkit.cli.output import Output
    from controlkit.evaluation.evaluate import Answer
    from controlkit.evaluation.variants import Variant


@click.command()
@click.option("--controlnet", "controlnets", multiple=True, metavar="[TYPE=]NET",
              help="The ControlNet: a folder, a file or a hub id; several stand beside each other.")  # fmt: skip
@click.option("--pictures", metavar="TYPE=FOLDER",
              help="Paint nothing: score these pictures. Each belongs to the row whose picture has its name, or "
                   "whose map it was painted under.")  # fmt: skip
@click.option("--data", help="A dataset with maps of its type, or a world (rooms, circles).")
@click.option("--base", metavar="BASE", help="What it is for.  [default: toybox]")
@click.option("--num", type=int, help="The first so many rows.  [default: all]")
@click.option("--held-out", type=float, help="Only the rows that a training with that data.held_out kept back.")
@click.option("--weight", default=1.0, show_default=True, help="Of the control.")
@click.option("--sweep", metavar="NAME=FROM:TO:STEP",
              help="A report for each value, and their curve. NAME is weight, cfg, steps, sampler or "
                   "control-every; NAME=a,b,c too.")  # fmt: skip
@click.option("--sampler", default="dpmpp_2m_karras", show_default=True, help="How the noise is removed.")
@click.option("--steps", default=20, show_default=True, help="Steps of the sampler.")
@click.option("--control-every", default=1, metavar="K", show_default=True,
              help="Ask the ControlNet in every Kth step alone; its last answer stands in those between.")  # fmt: skip
@click.option("--cfg", type=float, help="How strongly the prompt counts; 1: no guidance.  [default: the base's, 7.5]")
@click.option("--negative", default="", metavar="TEXT", help="What the pictures are not to show.")
@click.option("--size", type=int, help="Pixels a side.  [default: the base's own]")
@click.option("--per-row", default=1, show_default=True,
              help="Pictures a row; its figure is over all of them.")  # fmt: skip
@click.option("--batch-size", default=1, show_default=True, help="Pictures painted together: what a GPU is quick at.")
@click.option("--seed", default=0, show_default=True,
              help="The pictures are painted from SEED, SEED + 1, … in the order of the rows.")  # fmt: skip
@click.option("--also", multiple=True, metavar="NAME[=WEIGHTS]",
              help="Measure more: clip_score, lpips, fid, kid, cmmd or fd_dinov2, by weights on this machine or by a "
                   "hub id; docs/measuring.md says by which.")  # fmt: skip
@click.option("--preset", metavar="NAME",
              help="Paint, read and measure as a published protocol did: controlnet-plus-plus.")  # fmt: skip
@click.option(
    "--out", default="report", show_default=True, type=click.Path(path_type=Path), help="The report's folder."
)
@click.option("--compare", nargs=2, type=click.Path(path_type=Path), metavar="REPORT REPORT",
              help="Paint nothing: say which of two reports is better.")  # fmt: skip
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
              help="Precision.  [default: float16 on cuda, else float32]")  # fmt: skip
@common_options(answers=True)
def command(
    controlnets: tuple[str, ...],
    pictures: str | None,
    data: str | None,
    base: str | None,
    num: int | None,
    held_out: float | None,
    weight: float,
    sweep: str | None,
    sampler: str,
    steps: int,
    control_every: int,
    cfg: float | None,
    negative: str,
    size: int | None,
    per_row: int,
    batch_size: int,
    seed: int,
    also: tuple[str, ...],
    preset: str | None,
    out: Path,
    compare: tuple[Path, Path] | None,
    device: str | None,
    dtype: str | None,
    output: Output,
) -> int:
    """Paint the rows of a dataset under their maps, annotate the pictures again, and compare.

    OUT gets scores.json, report.json and index.html, which shows the worst pictures first. Begun again, it
    paints only what is missing; under `accelerate launch -m controlkit evaluate …` the processes share the rows.
    """
    from controlkit.errors import RequestError

    if compare:
        return _compare(*compare, output)
    if bool(controlnets) == (pictures is not None) or data is None:
        raise RequestError(
            "expected --data DATASET and either --controlnet NET or --pictures TYPE=FOLDER; or --compare REPORT REPORT"
        )
    if pictures:
        refuse_what_paints(*(("device",) if also else ()))
    if preset:
        refuse_what_is_fixed(preset)

    import controlkit.toybox.register  # noqa: F401  (its worlds can be named, and its annotators read its pictures)
    from controlkit.cli.output import Output
    from controlkit.evaluation.evaluate import Question, evaluate, prepare
    from controlkit.evaluation.given import evaluate_pictures
    from controlkit.evaluation.presets import find_preset
    from controlkit.evaluation.report import write_report
    from controlkit.evaluation.variants import variants_of, write_overview
    from controlkit.files import need_writable
    from controlkit.generation.request import Net
    from controlkit.generation.sweeps import Sweep
    from controlkit.models.bases import DEFAULT_BASE, usual_cfg
    from controlkit.models.devices import choose_device, choose_precision
    from controlkit.processes import Processes

    asked: dict[str, Any] = {
        "data": data,
        "base": base or DEFAULT_BASE,
        "num": num,
        "held_out": held_out,
        "sampler": sampler,
        "steps": steps,
        "control_every": control_every,
        "cfg": usual_cfg(base or DEFAULT_BASE) if cfg is None else cfg,
        "weight": weight,
        "negative": negative,
        "size": size,
        "per_row": per_row,
        "batch_size": batch_size,
        "also": also,
        "seed": seed,
    }
    if preset:
        asked |= {"preset": preset, **find_preset(preset).settings}
    need_writable(out, "--out")
    processes = Processes.launched()
    if not processes.first:
        output = Output(quiet=True)
    where = choose_device(device)
    how: dict[str, Any] = {"processes": processes, "device": str(where)}
    if pictures:
        given = Net.parse(pictures)
        question = Question(pictures=given.name, condition=given.type, **asked)
        with output.progress("evaluate", "rows") as progress:
            answer, seen = evaluate_pictures(question, out, say=output.say, progress=progress, **how)
        if processes.first:
            _tell(answer, write_report(answer, seen, out), output)
        processes.leave()
        return 0

    values = Sweep.parse(sweep) if sweep else None
    nets = [Net.parse(text) for text in controlnets]
    variants = variants_of([Question(controlnet=net.name, condition=net.type, **asked) for net in nets], values)
    trials = [prepare(variant.question, say=output.say, **how) for variant in variants]
    precision = choose_precision(dtype, where)

    from controlkit.generation.pipelines import load_parts

    parts = load_parts(trials[0].base, dtype=precision, device=where)
    answered = []
    for variant, trial in zip(variants, trials, strict=True):
        with output.progress(f"evaluate {variant.label}", "rows") as progress:
            made = evaluate(trial, out, parts=parts, dtype=precision, progress=progress, processes=processes)
        answered.append((variant, *made))
    if processes.first and len(answered) == 1 and values is None:
        _, answer, shown = answered[0]
        _tell(answer, write_report(answer, shown, out), output)
    elif processes.first:
        _tell_all([(variant, answer) for variant, answer, _ in answered], write_overview(answered, values, out), output)
    processes.leave()
    return 0


def _tell(answer: Answer, page: Path, output: Output) -> None:
    better = "lower" if answer.lower_is_better else "higher"
    lines = [f"{answer.metric} over {len(answer.cases)} rows, {better} is better"]
    for row, score in answer.leading.items():
        lines.append(f"{row:<11}{score.mean:>8.4f} ({score.low:.4f}-{score.high:.4f})")
    if answer.obedience:
        share = answer.obedience
        lines.append(
            f"obedience  {share.mean:>8.0%} ({share.low:.0%}-{share.high:.0%}), of the way from no_control to vae"
        )
    for warning in answer.warnings:
        output.say(warning)
    for metric, scores in answer.scores.items():
        if metric != answer.metric and "control" in scores:
            lines.append(f"{metric} {scores['control'].mean:.4f} under control")
    output.answer("\n".join([*lines, f"look at {page}"]), answer.to_json())


def _tell_all(answered: list[tuple[Variant, Answer]], page: Path, output: Output) -> None:
    lines = []
    for variant, answer in answered:
        score = answer.leading["control"]
        share = f", obedience {answer.obedience.mean:.0%}" if answer.obedience else ""
        lines.append(f"{variant.label}: {answer.metric} {score.mean:.4f} ({score.low:.4f}-{score.high:.4f}){share}")
    reports = {variant.label: answer.to_json() for variant, answer in answered}
    output.answer("\n".join([*lines, f"look at {page}"]), {"page": str(page), "reports": reports})


def refuse_what_paints(*runs_on: str) -> None:
    """Options that say how to paint, beside pictures that are painted already."""
    refuse_given(
        ("pictures", "data", "num", "held_out", "also", *runs_on, "out", "quiet", "debug", "as_json"),
        "--pictures are painted already",
    )


def refuse_what_is_fixed(preset: str) -> None:
    """Options that say what a preset says already."""
    from controlkit.evaluation.presets import find_preset

    fixed = {*find_preset(preset).settings, "sweep"}
    others = {option.name or "" for option in click.get_current_context().command.params} - fixed
    refuse_given(tuple(others), f"--preset {preset} fixes how the pictures are painted")


def _compare(one: Path, other: Path, output: Output) -> int:
    from dataclasses import asdict

    from controlkit.errors import RequestError
    from controlkit.evaluation.report import REPORT, compare

    reports = []
    for folder in (one, other):
        file = folder / REPORT if folder.is_dir() else folder
        try:
            reports.append(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as reason:
            raise RequestError(f"--compare {folder}: no report.json that can be read ({reason})") from None
    try:
        found = compare(*reports)
    except (ValueError, KeyError) as reason:
        raise RequestError(f"--compare {one} {other}: {reason}") from None
    apart = found["difference"]
    figures = f"{apart.mean:+.4f} {found['metric']} ({apart.low:+.4f} to {apart.high:+.4f}, {apart.n} rows)"
    if found["better"] is None:
        text = f"no difference that is more than chance: {figures}"
    else:
        text = f"{(one, other)[found['better']]} is better: {figures}"
    output.answer(text, {**found, "difference": asdict(apart), "better": found["better"]})
    return 0
