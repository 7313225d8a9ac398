"""`controlkit annotate`: pictures become a dataset with control maps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output
    from controlkit.data.annotate import Report
    from controlkit.processes import Processes


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--type", "types", metavar="TYPE[,TYPE…]", help="The maps to make, e.g. canny,depth.  [required]")
@click.option("--out", type=click.Path(path_type=Path), help="Put the dataset here; pictures are linked or copied.")
@click.option("--fps", type=click.FloatRange(0, min_open=True), help="Frames a second of a video.  [default: all]")
@click.option("--set", "settings", multiple=True, metavar="TYPE.NAME=VALUE", help="A parameter, e.g. canny.low=80.")
@click.option("--backend", "backends", multiple=True, metavar="TYPE=BACKEND", help="Another way, e.g. depth=midas.")
@click.option("--weights", multiple=True, metavar="TYPE=PATH_OR_ID", help="A folder, a file or a hub id.")
@click.option("--from-json", type=click.Path(path_type=Path), metavar="DIR", help="Draw poses from OpenPose's JSON.")
@click.option("--caption", "caption_model", metavar="MODEL", help="Write missing captions with an image-to-text model.")
@click.option("--captions", type=click.Choice(["names"]), help="Take missing captions from the file names.")
@click.option("--depth16", is_flag=True, help="Write depth with 16 bits too, as the column depth16.")
@click.option("--device", metavar="D", help="Of the networks: cpu, cuda:1, …  [default: the GPU if there is one]")
@click.option("--offline", is_flag=True, help="Never ask the hub for weights that are not here.")
@click.option("--batch-size", type=click.IntRange(1), help="Pictures in a network at a time.  [default: 8]")
@click.option("--workers", type=click.IntRange(1), help="Pictures at a time.  [default: the number of cores]")
@click.option("--overwrite", is_flag=True, help="Make every map anew, also those that are up to date.")
@click.option("--strict", is_flag=True, help="Stop at the first bad picture.")
@click.option("--shards", type=click.Path(path_type=Path), metavar="DIR", help="Write webdataset tars of it all, too.")
@click.option("--rows-per-shard", type=click.IntRange(1), help="Rows in one of the tars.  [default: 1000]")
@click.option("--check", is_flag=True, help="Look through an annotated folder; write nothing.")
@common_options(answers=True)
@click.pass_context
def command(
    context: click.Context,
    data: Path,
    types: str | None,
    out: Path | None,
    fps: float | None,
    settings: tuple[str, ...],
    backends: tuple[str, ...],
    weights: tuple[str, ...],
    from_json: Path | None,
    caption_model: str | None,
    captions: str | None,
    depth16: bool,
    device: str | None,
    offline: bool,
    batch_size: int | None,
    workers: int | None,
    overwrite: bool,
    strict: bool,
    shards: Path | None,
    rows_per_shard: int | None,
    check: bool,
    output: Output,
) -> int:
    """Make control maps for the pictures in DATA: a folder with its subfolders, one picture, a quoted glob; or, with
    --out, a zip or tar archive (webdataset too), a parquet file or a folder of them, a video.

    Maps go to DATA/conditions/TYPE/, rows to DATA/metadata.jsonl, so that
    `datasets.load_dataset("imagefolder", data_dir=DATA)` has the columns image, text and TYPE. Pictures are never
    touched. What is up to date is skipped, so an interrupted run goes on by running it again. A picture that cannot be
    read goes to DATA/errors.jsonl and costs nothing else. --shards writes the dataset as webdataset tars, too.

    Captions come from metadata.jsonl, a .txt beside the picture, or prompt.json in the layout of the original
    ControlNet's tutorial; those that are there are never replaced.

    --check names missing pairs, maps of another size, inverted, constant and outdated ones, duplicates, and captions
    that are empty or longer than CLIP reads (their tokens are counted from below, without its vocabulary).
    """
    if check:
        return _check(context, data, types, workers, output)
    if types is None:
        raise click.MissingParameter(
            ctx=context, param=next(each for each in context.command.params if each.name == "types")
        )
    import controlkit.toybox.register  # noqa: F401  (its readers are backends too)
    from controlkit.cli.annotator_options import make_annotators
    from controlkit.cli.output import Output
    from controlkit.data.annotate import BATCH_SIZE, Job, annotate
    from controlkit.data.pictures import BadPicture
    from controlkit.data.shards import ROWS, write_shards
    from controlkit.errors import RequestError
    from controlkit.files import need_writable
    from controlkit.processes import Processes

    processes = Processes.launched()
    own_device = _own_device(processes)
    annotators = make_annotators(
        types,
        settings=settings,
        backends=backends,
        weights=weights,
        from_json=from_json,
        device=device or own_device,
        offline=offline,
    )
    networks = caption_model is not None or any(hasattr(annotator, "device") for annotator in annotators.values())
    if device and not networks:
        raise RequestError(f"--device {device}: none of {', '.join(annotators)} runs a network")
    if caption_model and captions:
        raise RequestError(f"--caption {caption_model} and --captions {captions}: choose one of the two")
    if rows_per_shard and shards is None:
        raise RequestError(f"--rows-per-shard {rows_per_shard}: goes with --shards DIR")
    if depth16 and "depth" not in annotators:
        raise RequestError(f"--depth16: depth is not among the types to be made: {', '.join(annotators)}")
    together = caption_model is not None or any(hasattr(annotator, "batch") for annotator in annotators.values())
    if batch_size and not together:
        raise RequestError(f"--batch-size {batch_size}: none of {', '.join(annotators)} computes pictures together")
    job = Job(
        data=data,
        out=out,
        annotators=annotators,
        workers=workers or max(1, (os.cpu_count() or 1) // processes.count),
        batch_size=batch_size or BATCH_SIZE,
        depth16=depth16,
        names_as_captions=captions == "names",
        caption_model=caption_model,
        device=device or own_device,
        offline=offline,
        fps=fps,
        overwrite=overwrite,
        strict=strict,
    )
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
    written = None
    if shards:
        need_writable(shards, "--shards")
        processes.gather([None])  # the rows are written
        written = write_shards(report.out, shards, rows_per_shard or ROWS, processes)
    processes.leave()
    if not processes.first:
        return 0  # the first one answers for all
    _answer(report, output)
    if written is not None:
        output.say(f"{written} shards · {shards}")
    return 1 if report.errors else 0


def _answer(report: Report, output: Output) -> None:
    for error in report.errors[:20]:
        output.warn(f"failed: {_on_one_line(str(report.folder / error['file_name']))}: {error['reason']}")
    if len(report.errors) > 20:
        output.warn(f"failed: {len(report.errors) - 20} more, all in {report.out / 'errors.jsonl'}")
    failed = f", {len(report.errors)} failed" if report.errors else ""
    captioned = f", {report.captioned} captions written" if report.captioned else ""
    maps = f"{report.made} maps made, {report.kept} were up to date"
    text = f"{report.pictures} pictures: {maps}{captioned}{failed} · {report.out}"
    counts = {"pictures": report.pictures, "made": report.made, "kept": report.kept, "captioned": report.captioned}
    output.answer(text, {**counts, "errors": report.errors, "out": str(report.out)})


def _check(context: click.Context, data: Path, types: str | None, workers: int | None, output: Output) -> int:
    from controlkit.data.check import check
    from controlkit.errors import RequestError
    from controlkit.processes import Processes

    others = {"data", "types", "workers", "check", "quiet", "debug", "as_json"}
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") == click.core.ParameterSource.COMMANDLINE
        if given and option.name not in others:
            raise RequestError(f"{option.opts[0]} does not go with --check, which looks and writes nothing")
    processes = Processes.launched()
    processes.leave()
    if not processes.first:
        return 0  # looking is not shared
    chosen = [name.strip() for name in types.split(",") if name.strip()] if types else None
    pictures, findings = check(data, chosen, workers or os.cpu_count() or 1)
    lines = [f"{_on_one_line(each.file_name)}: {each.text}" for each in findings]
    summary = f"{pictures} pictures: {len(findings) or 'no'} problem{'' if len(findings) == 1 else 's'} found · {data}"
    answer = [{"file_name": each.file_name, "kind": each.kind, "text": each.text} for each in findings]
    output.answer("\n".join([*lines, summary]), {"pictures": pictures, "findings": answer})
    return 1 if findings else 0


def _on_one_line(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _own_device(processes: Processes) -> str | None:
    """The accelerator of this process where several share a machine."""
    if processes.count == 1:
        return None
    from accelerate import PartialState

    return str(PartialState().device)
