"""`controlkit generate --requests`: many requests, shared by the processes that were launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.cli.generate import Place, write

if TYPE_CHECKING:
    from pathlib import Path

    from controlkit.cli.output import Output
    from controlkit.generation.execution import Execution


def painted_many(
    file: Path,
    options: dict[str, Any],
    *,
    out: Path,
    device: str | None,
    dtype: str | None,
    execution: Execution,
    output: Output,
) -> int:
    """Paint the requests of a file that are not painted yet. Each process takes a share of the lines."""
    from controlkit.errors import RequestError
    from controlkit.generation.many import fingerprints, paint_many, read_requests
    from controlkit.processes import Processes

    processes = Processes.launched()
    if out.suffix.lower() == ".png":
        raise RequestError(f"--out {out} is one file, --requests may be several pictures; give a folder")
    requests = read_requests(file, options)
    place = Place.of(out, 1)

    from controlkit.models.devices import choose_device, choose_precision

    if processes.count > 1 and device is None:
        from accelerate import PartialState

        device = str(PartialState().device)
    where = choose_device(device)
    precision = choose_precision(dtype, where)
    there = fingerprints(out)
    mine = processes.slice(requests)
    written = []
    with output.progress("generate", "pictures") as progress:
        for picture in paint_many(
            mine, device=where, dtype=precision, execution=execution, there=there, say=output.say, progress=progress
        ):
            written.append(write(picture, place, output))
    everything = processes.gather(written)
    processes.leave()
    if processes.first:
        kept = sum(request.num for request in requests) - len(everything)
        output.say(f"{len(everything)} pictures painted, {kept} were there · {out}")
        if output.as_json:
            output.answer("", {"pictures": everything, "kept": kept})
    return 0
