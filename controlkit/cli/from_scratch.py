"""What `base train` and `toybox train` have in common: a config, a run, what it leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.output import Output, common_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments of a command that trains as a config says."""
    for option in (
        common_options(answers=True),
        click.option("--resume", is_flag=True, help="Go on from the newest sound checkpoint in the output folder."),
        click.option("--dry-run", is_flag=True, help="Check the config, print it resolved, train nothing."),
        click.option(
            "--config", "config_name", metavar="NAME_OR_FILE", help="A YAML of yours, or one of ours by name."
        ),
        click.argument("settings", nargs=-1, metavar="[KEY=VALUE]…"),
    ):
        command = option(command)
    return command


def run(
    kind: type,
    train: Callable[..., Path],
    *,
    settings: tuple[str, ...],
    config_name: str | None,
    dry_run: bool,
    resume: bool,
    output: Output,
) -> int:
    """Train what a config of this kind says."""
    import controlkit.toybox.register  # noqa: F401  (its worlds can be named as data)
    from controlkit.config import build, find_config, to_dict, to_yaml
    from controlkit.processes import Processes

    config: Any = build(kind, find_config(config_name) if config_name else None, settings)
    if dry_run:
        output.answer(to_yaml(config) + "# nothing was trained", to_dict(config))
        return 0
    processes = Processes.launched()
    if not processes.first:
        output = Output(quiet=True)
    with output.progress("train", "steps") as progress:
        result = train(config, resume=resume, say=output.say, progress=progress)
    if processes.first:
        output.answer(f"{result} is ready; look at {result.parent / 'samples'}", {"result": str(result)})
    return 0
