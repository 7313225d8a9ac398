"""`controlkit COMMAND …`: finds the command, turns what it raises into one line and an exit code.

0 done · 1 some items failed (they are listed), or an error of our own · 2 the request was wrong · 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import click

from controlkit import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

# One file a command, in the order of the work; the file's `command` is the click command.
COMMANDS = {
    "annotate": "annotate",
    "annotators": "annotators",
    "fetch": "fetch",
    "train": "train",
    "generate": "generate",
    "evaluate": "evaluate",
    "inspect": "inspect",
    "convert": "convert",
    "pack": "pack",
    "base": "base",
    "toybox": "toybox",
    "demo": "demo",
    "doctor": "doctor",
}


class Commands(click.Group):
    """Imports the file of a command when it is asked for; none of them imports anything heavy at its top."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"controlkit.cli.{COMMANDS[cmd_name]}").command
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="controlkit", message="%(prog)s %(version)s")
def controlkit() -> None:
    """Make control maps, train ControlNets on them, and generate under their control.

    \b
    controlkit annotate --type canny data/            pictures -> a dataset with control maps
    accelerate launch train_controlnet.py data.path=data/
                                                      dataset -> a ControlNet
    controlkit generate --control edge.png --controlnet runs/canny/controlnet
                                                      map -> pictures that follow it
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; in-process for tests."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        return controlkit.main(args=argv, prog_name="controlkit", standalone_mode=False) or 0
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except click.exceptions.NoArgsIsHelpError as reason:
        click.echo(reason.format_message())
        return 2
    except click.ClickException as reason:
        where = reason.ctx.command_path if isinstance(reason, click.UsageError) and reason.ctx else "controlkit"
        _explain(reason, debug, f"{where}: {reason.format_message().rstrip('.')}; see {where} --help")
        return 2
    except ValueError as reason:  # RequestError, and the refusals of annotators and diffusion, which stand alone
        _explain(reason, debug, str(reason))
        return 2
    except OSError as reason:
        _explain(reason, debug, f"{reason.filename}: {reason.strerror}" if reason.filename else str(reason))
        return 2
    except Exception as reason:
        _explain(reason, debug, f"{type(reason).__name__}: {reason}; --debug shows where")
        return 1


def run() -> NoReturn:
    """The entry point of the installed command."""
    sys.exit(main())


def _explain(reason: Exception, debug: bool, line: str) -> None:
    if debug:
        traceback.print_exception(reason)
    click.echo(f"error: {line}", err=True)
