"""`controlkit toybox make`: the drawn worlds as datasets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

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
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--config", "config_name", metavar="NAME_OR_FILE", help="A YAML of yours, or one of ours by name.")
@click.option("--dry-run", is_flag=True, help="Check the config, print it resolved, train nothing.")
@click.option("--resume", is_flag=True, help="Go on from the newest sound checkpoint in the output folder.")
@common_options(answers=True)
def train(settings: tuple[str, ...], config_name: str | None, dry_run: bool, resume: bool, output: Output) -> int:
    """Train a small network on what is known of drawn scenes: `learn=scenes` reads which things a picture holds."""
    import controlkit.toybox.register  # noqa: F401  (its worlds can be named as path)
    from controlkit.cli.output import Output
    from controlkit.config import build, find_config, to_dict, to_yaml
    from controlkit.processes import Processes
    from controlkit.toybox.lessons import LessonConfig, train_lesson

    config = build(LessonConfig, find_config(config_name) if config_name else None, settings)
    if dry_run:
        output.answer(to_yaml(config) + "# nothing was trained", to_dict(config))
        return 0
    processes = Processes.launched()
    if not processes.first:
        output = Output(quiet=True)
    with output.progress("train", "steps") as progress:
        result = train_lesson(config, resume=resume, say=output.say, progress=progress)
    if processes.first:
        output.answer(f"{result} is ready; look at {result.parent / 'samples'}", {"result": str(result)})
    return 0


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
