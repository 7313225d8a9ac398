"""`controlkit annotate`: a folder of pictures becomes a dataset with control maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from annotators import Annotator
    from controlkit.cli.output import Output


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--type", "types", required=True, metavar="TYPE[,TYPE…]", help="The maps to make, e.g. canny.")
@click.option("--out", type=click.Path(path_type=Path), help="Put the dataset here; pictures are linked or copied.")
@click.option("--set", "settings", multiple=True, metavar="TYPE.NAME=VALUE", help="A parameter, e.g. canny.low=80.")
@click.option("--workers", type=click.IntRange(1), help="Pictures at a time.  [default: the number of cores]")
@click.option("--overwrite", is_flag=True, help="Make every map anew, also those that are up to date.")
@click.option("--strict", is_flag=True, help="Stop at the first bad picture.")
@common_options(answers=True)
def command(
    data: Path,
    types: str,
    out: Path | None,
    settings: tuple[str, ...],
    workers: int | None,
    overwrite: bool,
    strict: bool,
    output: Output,
) -> int:
    """Make control maps for the pictures in DATA and its subfolders.

    Maps go to DATA/conditions/TYPE/, rows to DATA/metadata.jsonl, so that
    `datasets.load_dataset("imagefolder", data_dir=DATA)` has the columns image, text and TYPE. Pictures are never
    touched. What is up to date is skipped, so an interrupted run goes on by running it again. A picture that cannot be
    read goes to DATA/errors.jsonl and costs nothing else.
    """
    from controlkit.cli.output import Output
    from controlkit.data.annotate import Job, annotate
    from controlkit.data.pictures import BadPicture
    from controlkit.processes import Processes

    annotators = make_annotators(types, settings)
    processes = Processes.launched()
    workers = workers or max(1, (os.cpu_count() or 1) // processes.count)
    job = Job(data=data, out=out or data, annotators=annotators, workers=workers, overwrite=overwrite, strict=strict)
    if not processes.first:
        output = Output(quiet=True)
    done = -1
    with output.progress("annotate", "pictures") as show:

        def advance(total: int) -> None:
            nonlocal done
            done += 1
            show(done, total)

        try:
            report = annotate(job, processes, advance)
        except BadPicture as reason:  # only under --strict
            output.warn(f"error: stopped by --strict: {reason}")
            return 1
    processes.leave()
    if not processes.first:
        return 0  # the first one answers for all
    for error in report.errors[:20]:
        output.warn(f"failed: {data / error['file_name']}: {error['reason']}")
    if len(report.errors) > 20:
        output.warn(f"failed: {len(report.errors) - 20} more, all in {job.out / 'errors.jsonl'}")
    failed = f", {len(report.errors)} failed" if report.errors else ""
    text = f"{report.pictures} pictures: {report.made} maps made, {report.kept} were up to date{failed} · {job.out}"
    counts = {"pictures": report.pictures, "made": report.made, "kept": report.kept}
    output.answer(text, {**counts, "errors": report.errors, "out": str(job.out)})
    return 1 if report.errors else 0


def make_annotators(types: str, settings: tuple[str, ...]) -> dict[str, Annotator]:
    """`--type canny,depth --set canny.low=80` as annotators by type."""
    from annotators import ANNOTATORS
    from controlkit.errors import RequestError

    names = [name.strip() for name in types.split(",") if name.strip()]
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, dot, parameter = key.partition(".")
        if not (equals and dot):
            raise RequestError(f"--set {setting!r}: expected TYPE.NAME=VALUE, e.g. canny.low=80")
        if name not in options:
            raise RequestError(f"--set {setting!r}: {name!r} is not among the types asked for: {', '.join(names)}")
        options[name][parameter] = value
    if not options:
        raise RequestError(f"--type {types!r} names no type; known: {', '.join(ANNOTATORS)}")
    return {name: ANNOTATORS.create(name, **chosen) for name, chosen in options.items()}
