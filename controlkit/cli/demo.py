"""`controlkit demo`: the whole loop, typed by the program itself."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output


@click.command()
@click.option("--quick", is_flag=True, help="Use the ControlNet that comes with the package instead of training one.")
@click.option("--out", default="demo", show_default=True, type=click.Path(path_type=Path), help="A folder of its own.")
@click.option("--scenes", type=int, help="Scenes to draw.  [default: 1500, quick 48]")
@click.option("--train-steps", default=450, show_default=True, help="Steps of the training.")
@click.option("--steps", default=20, show_default=True, help="Steps of the sampler.")
@click.option("--rows", default=8, show_default=True, help="Scenes to paint for the evaluation.")
@common_options(answers=True)
def command(quick: bool, out: Path, scenes: int | None, train_steps: int, steps: int, rows: int, output: Output) -> int:
    """See the whole loop without a network: pictures are drawn and annotated, a ControlNet is trained on them, and
    pictures are painted, inpainted and measured under it.

    Each stage is a command, which is said before it runs. OUT gets demo.png (control, before, after, inpainted) and
    index.html. Begun again, it goes on.
    """
    from controlkit.errors import RequestError

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RequestError("controlkit demo runs in one process; call it without a launcher")
    from controlkit.toybox.demo import PAGE, PICTURE, Demo, claim, stages, write_results

    demo = Demo(quick=quick, scenes=scenes, train_steps=train_steps, steps=steps, rows=rows)
    claim(out, demo)
    planned, done = stages(out, demo), []
    for number, stage in enumerate(planned, 1):
        output.say(f"\n[{number}/{len(planned)}] {stage.title}\n$ {stage.command}")
        begun = time.monotonic()
        if code := _run(stage.arguments, output):
            output.warn(f"stopped at: {stage.command}")
            return code
        done.append((stage, time.monotonic() - begun))
    scores = write_results(out, demo, done)
    files = {"picture": str(out / PICTURE), "page": str(out / PAGE)}
    text = f"\n{sum(seconds for _, seconds in done):.0f} seconds · {files['picture']} · {files['page']}"
    output.answer(text, {**files, **scores, "commands": [stage.command for stage, _ in done]})
    return 0


def _run(arguments: list[str], output: Output) -> int:
    """A command as the command line runs it. What it answers is no answer of this one's: it goes where messages go."""
    from controlkit.cli.main import main

    with contextlib.ExitStack() as elsewhere:
        to = elsewhere.enter_context(Path(os.devnull).open("w")) if output.quiet else sys.stderr
        elsewhere.enter_context(contextlib.redirect_stdout(to))
        return main([*arguments, *(["--quiet"] if output.quiet else [])])
