"""The options of `controlkit generate` that say how a picture is computed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlkit.generation.execution import OFFLOADS, Execution

if TYPE_CHECKING:
    from collections.abc import Callable

BACKEND = "inductor"  # of torch.compile


def execution_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command gets `execution`."""

    @functools.wraps(command)
    def with_execution(
        *args: Any,
        vae_tiling: bool | None,
        offload: str | None,
        compiles: bool,
        previews: int,
        preview_vae: Path | None,
        **options: Any,
    ) -> Any:
        execution = Execution(
            vae_tiling=vae_tiling,
            offload=offload,
            compile=BACKEND if compiles else None,
            previews=previews,
            preview_vae=preview_vae,
        )
        return command(*args, execution=execution, **options)

    for option in reversed(
        [
            click.option("--vae-tiling/--no-vae-tiling", default=None,
                         help="Decode in tiles, for less memory.  [default: from 2048x1024 pixels on]"),
            click.option("--offload", type=click.Choice(OFFLOADS),
                         help="Keep what waits off the GPU: whole networks, or (slow) all but the layer at work."),
            click.option("--compile", "compiles", is_flag=True,
                         help="Compile the networks at the first step, for minutes: worth it for many pictures."),
            click.option("--previews", type=int, default=0, metavar="N",
                         help="Keep what the picture looks like every N steps, beside it."),
            click.option("--preview-vae", type=click.Path(path_type=Path), metavar="FILE_OR_FOLDER",
                         help="A TAESD (AutoencoderTiny) that decodes them quickly.  [default: the base's VAE]"),
        ]
    ):  # fmt: skip
        with_execution = option(with_execution)
    return with_execution
