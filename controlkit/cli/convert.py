"""`controlkit convert`: bases and ControlNets between diffusers' folders and single files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output


@click.command()
@click.argument("source", metavar="IN")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--to", "layout", required=True, type=click.Choice(["diffusers", "webui"]),
              help="diffusers: a folder. webui: one .safetensors under the names of the original code.")  # fmt: skip
@click.option("--prediction", type=click.Choice(["epsilon", "v_prediction", "sample"]),
              help="What the base predicts.  [default: what it says, else a guess, which is said]")  # fmt: skip
@click.option("--tokenizer", metavar="FOLDER_OR_ID", help="For a base in a file.  [default: one that lies near]")
@click.option("--base", metavar="BASE", help="For a Control-LoRA or difference ControlNet: the base it is added to.")
@common_options(answers=True)
def command(
    source: str,
    out: Path,
    layout: str,
    prediction: str | None,
    tokenizer: str | None,
    base: str | None,
    output: Output,
) -> int:
    """Write a base or a ControlNet in the other layout, every tensor bit for bit and in its own precision.

    \b
    controlkit convert model.safetensors model --to diffusers
    controlkit convert runs/mine/controlnet mine.safetensors --to webui
    controlkit convert control-lora.safetensors mine --to diffusers --base toybox

    OUT appears whole or not at all, and is never written over.
    """
    from controlkit.errors import RequestError
    from controlkit.files import need_writable
    from controlkit.models.bases import Base
    from controlkit.models.formats.convert import find_model, to_diffusers, to_webui

    if layout == "webui" and out.suffix != ".safetensors":
        raise RequestError(f"OUT {str(out)!r}: expected a name that ends in .safetensors")
    need_writable(out.absolute().parent, "OUT")
    model = find_model(source, prediction=prediction, tokenizer=tokenizer, base=base)
    if isinstance(model, Base):
        for guess in model.guesses:
            output.say(guess)
    (to_diffusers if layout == "diffusers" else to_webui)(model, out)
    kind = "base" if isinstance(model, Base) else "ControlNet"
    output.answer(str(out), {"out": str(out), "kind": kind, "layout": layout})
    return 0
