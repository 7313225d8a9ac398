"""`controlkit train`, and the arguments of train_controlnet.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output

FIRST_CONFIG = "toybox-canny"


@click.command()
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]…")
@click.option("--config", "config_name", metavar="NAME_OR_FILE", help="A YAML of yours, or one of ours by name.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, print settings, memory and time; train nothing.",
)
@click.option("--resume", is_flag=True, help="Go on from the newest sound checkpoint in the output folder.")
@common_options(answers=True)
def command(settings: tuple[str, ...], config_name: str | None, dry_run: bool, resume: bool, output: Output) -> int:
    """Train a ControlNet, in one process.

    On several GPUs or machines: `accelerate launch train_controlnet.py` with the same arguments. KEY=VALUE overrides
    the config, e.g. `data.path=data lr=2e-5 steps=20000`; `--dry-run` prints all there are. With neither --config nor
    base=, the config `toybox-canny` serves: a first run on drawn scenes and the base that comes with the package.
    """
    import controlkit.toybox.register  # noqa: F401  (its worlds can be named as data.path)
    from controlkit.cli.output import Output
    from controlkit.config import build, find_config, to_dict, to_yaml
    from controlkit.models.bases import DEFAULT_BASE, find_base
    from controlkit.processes import Processes
    from controlkit.training.config import TrainConfig, check_against_base, read_rows

    notes = []
    if config_name is None and not any(setting.startswith("base=") for setting in settings):
        config_name = FIRST_CONFIG
        notes.append(f"config: {config_name}, made for the small base {DEFAULT_BASE}; yours: base=FOLDER_OR_HUB_ID")
    config = build(TrainConfig, find_config(config_name) if config_name else None, settings)
    if dry_run:
        from controlkit.training.launch import asked_to_share
        from controlkit.training.plan import describe, plan

        base = find_base(config.base, prediction=config.base_prediction, tokenizer=config.base_tokenizer)
        for guess in base.guesses:
            output.say(guess)
        check_against_base(config, base)
        rows = read_rows(config, output.say)
        expected = plan(config, base, len(rows), Processes.launched().count, asked_to_share(config))
        data = to_dict(config) | {"rows": len(rows), "family": base.family, "plan": expected}
        told = [f"{len(rows)} rows · {base.family} · nothing was trained", *describe(expected).splitlines()]
        output.answer(to_yaml(config) + "\n".join(f"# {note}" for note in told), data)
        return 0

    from train_controlnet import train

    processes = Processes.launched()
    if not processes.first:
        output = Output(quiet=True)

    def say(text: str) -> None:
        """The note comes before the first thing that is said: not before a refusal, which is one line."""
        while notes:
            output.say(notes.pop())
        output.say(text)

    with output.progress("train", "steps") as progress:
        folder = train(config, resume=resume, say=say, progress=progress)
    if processes.first:
        result = {"run": str(folder), "controlnet": str(folder / "controlnet"), "steps": config.steps}
        text = f"{folder / 'controlnet'} is ready; look at {folder / 'samples'} and {folder / 'README.md'}"
        output.answer(text, result)
    return 0
