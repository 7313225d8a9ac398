"""`controlkit toybox make`: the drawn worlds as datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.from_scratch import run, run_options
from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output


@click.group()
def command() -> None:
    """Draw the embedded worlds: pictures whose contents are exactly known."""


@command.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--world", required=True, help="circles or rooms.")
@click.option("--type", "types", metavar="TYPE[,TYPE…]", help="The maps.  [default: all the world has, and canny]")
@click.option("--count", required=True, type=click.IntRange(1), help="Scenes.")
@click.option("--size", default=64, show_default=True, type=click.IntRange(8), help="Pixels a side.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Other seeds give other scenes.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Processes that draw.")
@common_options(answers=True)
def make(
    out: Path, world: str, types: str | None, count: int, size: int, seed: int, workers: int, output: Output
) -> int:
    """Draw COUNT scenes of a world into OUT, with captions and control maps, ready for training.

    The same seed gives the same bytes, with any number of workers. A larger COUNT adds to what is there.
    """
    from controlkit.toybox.make import make as draw

    with output.progress("draw", "scenes") as progress:
        chosen = tuple(name.strip() for name in types.split(",")) if types is not None else None
        draw(out, world, types=chosen, count=count, size=size, seed=seed, workers=workers, progress=progress)
    output.answer(f"{count} scenes of {world} · {out}", {"scenes": count, "world": world, "out": str(out)})
    return 0


@command.command()
@run_options
def train(**options: Any) -> int:
    """Train a small network on what is known of drawn scenes: `learn=scenes` reads which things a picture holds."""
    from controlkit.toybox.lessons import LessonConfig, train_lesson

    return run(LessonConfig, train_lesson, **options)


@command.command("eval")
@click.argument("reader", type=click.Choice(["scenes", "depth", "pose"]))
@click.option("--weights", type=click.Path(path_type=Path), help="RUN/network.  [default: the one that comes along]")
@click.option("--num", default=500, show_default=True, type=click.IntRange(2), help="Scenes, never trained on.")
@click.option("--seed", type=click.IntRange(0), help="Of the scenes.  [default: one that no training uses]")
@common_options(answers=True)
def evaluate(reader: str, weights: Path | None, num: int, seed: int | None, output: Output) -> int:
    """Measure a reader of drawn scenes: what they hold, how near everything is, or where the dolls' joints are."""
    from controlkit.toybox.measure import UNSEEN
    from controlkit.toybox.measure_readers import measure_reader

    seed = UNSEEN if seed is None else seed
    with output.progress("draw", "scenes") as progress:
        scores = measure_reader(reader, weights, num=num, seed=seed, progress=progress)
    lines = [f"{reader} · {num} scenes of seed {seed}"]
    for metric, score in scores.items():
        lines.append(f"{metric:<20}{score['mean']:>8.4f} ({score['low']:.4f}-{score['high']:.4f}, n={score['n']})")
    output.answer("\n".join(lines), {"reader": reader, "num": num, "seed": seed, "scores": scores})
    return 0
