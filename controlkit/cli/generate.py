"""`controlkit generate`: prompts, control maps and pictures become pictures."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.execution_options import execution_options
from controlkit.cli.output import common_options, refuse_given

if TYPE_CHECKING:
    from controlkit.cli.output import Output
    from controlkit.generation.execution import Execution
    from controlkit.generation.generate import Picture
    from controlkit.generation.request import Request


@click.command()
@click.option("--control", "controls", multiple=True, metavar="[TYPE=]FILE[@WEIGHT[:START[:END]]]",
              help="A control map; more than one joins several.")  # fmt: skip
@click.option("--controlnet", "controlnets", multiple=True, metavar="[TYPE=]NET",
              help="The ControlNet for it: a folder, a file or a hub id.")  # fmt: skip
@click.option("--control-mode", "control_modes", multiple=True, metavar="MODE",
              help="balanced; prompt: the prompt comes first; control: the map comes first, also before what the "
                   "prompt leaves open. One for all controls, or one for each.  [default: balanced]")  # fmt: skip
@click.option("--control-mask", "control_masks", multiple=True, metavar="[TYPE=]FILE",
              help="Where the control holds: white wholly, grey in part, black not at all. One for all controls, one "
                   "for each (none: everywhere), or TYPE=FILE for one of them.")  # fmt: skip
@click.option("--control-layers", multiple=True, metavar="[TYPE=]WEIGHTS",
              help="How much each residual of the ControlNet counts, the finest first: 13 numbers for SD, 10 for "
                   "SDXL, apart by commas; or soft:0.825, the finer ones less. Given as masks are.")  # fmt: skip
@click.option("--resize", type=click.Choice(["crop", "pad", "fit"]), default="crop", show_default=True,
              help="A map of another shape: cut at the sides, black beside it, or squeezed.")  # fmt: skip
@click.option("--image", metavar="FILE",
              help="Start from this picture instead of from noise (img2img); with --mask what is mended.")  # fmt: skip
@click.option("--strength", type=float, metavar="0..1",
              help="How much of --image changes: the share of the steps that is walked.  [default: 0.6]")  # fmt: skip
@click.option("--hires", metavar="SCALE[:STRENGTH]",
              help="Paint twice: enlarge what was painted (Lanczos, in pixels; SCALE above 1, at most 4) and walk that "
                   "share of the steps again at the large size.  [default STRENGTH: 0.5]")  # fmt: skip
@click.option("--upscale", metavar="SCALE[:STRENGTH]",
              help="Enlarge --image (Lanczos; SCALE 1 to 8) and walk that share of the steps in overlapping tiles as "
                   "large as the base paints. A ControlNet for tile maps is shown the picture.  [default STRENGTH: "
                   "0.3]")  # fmt: skip
@click.option("--mask", metavar="FILE",
              help="Paint only what is white here of --image; all else stays bit for bit.")  # fmt: skip
@click.option("--outpaint", metavar="LEFT,TOP,RIGHT,BOTTOM",
              help="Enlarge --image by so many pixels and paint what is new; the old part stays.")  # fmt: skip
@click.option("--inpaint", type=click.Choice(["repaint", "model", "controlnet"]),
              help="By any base, by one that reads masks (9 channels), or by a ControlNet for it.  [default: what base "
                   "and ControlNet are made for, else repaint]")  # fmt: skip
@click.option("--invert-mask", is_flag=True, help="Black is painted.")
@click.option("--grow", type=int, metavar="PX", help="Make the mask larger on all sides.  [default: 0]")
@click.option("--feather", type=int, metavar="PX",
              help="Pass over into the picture within so many pixels around it.  [default: 8]")  # fmt: skip
@click.option("--only-masked", type=int, metavar="PX",
              help="Paint the masked part, and so many pixels around it, as large as the base paints.")  # fmt: skip
@click.option("--jump-length", type=int, metavar="J", help="RePaint: steps back at once.  [default: 5]")
@click.option("--jump-samples", type=int, metavar="R",
              help="RePaint: how often each stretch is walked; 1 never goes back.  [default: 5]")  # fmt: skip
@click.option("--jump-window", metavar="FROM:TO",
              help="RePaint: shares of the noise between which it goes back.  [default: 0.2:0.8]")  # fmt: skip
@click.option("--prompt", default="",
              help="What to paint, of any length. (word:1.3), (word) and [word] weigh as in webuis: what the text "
                   "encoder made of them is multiplied, and the mean restored. BREAK begins a new chunk.")  # fmt: skip
@click.option("--negative", default="", help="What not to paint.")
@click.option("--plain-prompt", is_flag=True, help="Brackets and BREAK in prompts are text like any other.")
@click.option("--base", metavar="BASE",
              help="SD 1.x, 2.x or SDXL: a folder, .safetensors, .ckpt or hub id.  [default: toybox]")  # fmt: skip
@click.option("--prediction", type=click.Choice(["epsilon", "v_prediction", "sample"]),
              help="What the base predicts.  [default: what it says, else a guess, which is said]")  # fmt: skip
@click.option("--tokenizer", metavar="FOLDER_OR_ID", help="For a base in a file.  [default: one that lies near]")
@click.option("--lora", "loras", multiple=True, metavar="FILE[@WEIGHT]",
              help="A LoRA, LoCon, LoHa or LoKr of any tool; more than one add up.")  # fmt: skip
@click.option("--hypernetwork", "hypernetworks", multiple=True, metavar="FILE[@WEIGHT]",
              help="A hypernetwork of webuis; more than one follow one another.")  # fmt: skip
@click.option("--embedding", "embeddings", multiple=True, metavar="FILE",
              help="A textual inversion, called in the prompt by the file's name.")  # fmt: skip
@click.option("--vae", metavar="FILE_OR_FOLDER", help="A VAE in the place of the base's.")
@click.option("--sampler", help="How the noise is removed.  [default: dpmpp_2m_karras; with RePaint ddim]")
@click.option("--eta", type=float, metavar="0..1",
              help="Noise of each step, for ddim and tcd.  [default: 0, none; with RePaint 1]")  # fmt: skip
@click.option("--steps", default=20, show_default=True, help="Steps of the sampler.")
@click.option("--cfg", type=float, help="How strongly the prompt counts; 1: no guidance.  [default: the base's, 7.5]")
@click.option("--cfg-interval", metavar="FROM:TO",
              help="Guide in this share of the steps alone; others take half the time.  [default: 0:1]")  # fmt: skip
@click.option("--cfg-rescale", default=0.0, metavar="0..1",
              help="Against the washed-out contrast of a high --cfg.  [default: 0, off; 0.7 is usual]")  # fmt: skip
@click.option("--clip-skip", default=1, metavar="N", show_default=True,
              help="The prompt is read N - 1 layers before the usual one, as webuis count (diffusers' clip_skip is one "
                   "less); the negative prompt is not, as in diffusers.")  # fmt: skip
@click.option("--seed", type=int, help="Picture i starts from SEED + i.  [default: a random one, which is said]")
@click.option("--num", default=1, show_default=True, help="Pictures.")
@click.option("--batch-size", default=1, show_default=True, metavar="B",
              help="Pictures painted together: faster on a GPU, within 1/255 of each painted alone.")  # fmt: skip
@click.option(
    "--size", metavar="WxH", help="Pixels.  [default: the control map's, else the picture's, else the base's]"
)
@click.option("--out", default="outputs", show_default=True, type=click.Path(path_type=Path),
              help="A folder, or FILE.png for one picture.")  # fmt: skip
@click.option("--requests", metavar="FILE.jsonl", type=click.Path(path_type=Path),
              help="Paint a request a line: JSON with the names of these options, which stand where a line says "
                   "nothing. Pictures that --out has already are not painted again.")  # fmt: skip
@click.option("--grid", is_flag=True, help="Also a sheet of the pictures with their seeds.")
@click.option("--sweep", "sweeps", multiple=True, metavar="NAME=FROM:TO:STEP",
              help="A picture for each value, and a sheet of them; a second one goes down the sheet. NAME is weight, "
                   "cfg, sampler, seed, steps, strength, hires-strength or control-every; NAME=a,b,c too.")  # fmt: skip
@click.option("--replay", metavar="IMAGE.png", type=click.Path(path_type=Path),
              help="Make this picture again, from the settings inside.")  # fmt: skip
@click.option("--annotate", is_flag=True, help="The control FILE is a photograph: make its map first, and keep it.")
@click.option("--control-half", is_flag=True,
              help="Control guidance's half with the prompt alone: half the time, a stronger control.")  # fmt: skip
@click.option("--control-every", default=1, metavar="K", show_default=True,
              help="Ask the ControlNet in every Kth step alone; its last answer stands in those between.")  # fmt: skip
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
              help="Precision.  [default: float16 on cuda, else float32]")  # fmt: skip
@execution_options
@common_options(answers=True)
def command(
    controls: tuple[str, ...],
    controlnets: tuple[str, ...],
    control_modes: tuple[str, ...],
    control_masks: tuple[str, ...],
    control_layers: tuple[str, ...],
    loras: tuple[str, ...],
    hypernetworks: tuple[str, ...],
    embeddings: tuple[str, ...],
    base: str | None,
    seed: int | None,
    num: int,
    out: Path,
    replay: Path | None,
    requests: Path | None,
    grid: bool,
    sweeps: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    execution: Execution,
    output: Output,
    **others: Any,
) -> int:
    """Paint pictures: from a prompt, from a picture (--image), under control maps (--control) or without.

    FILE of --control is a map that `controlkit annotate` made, or a photograph with --annotate. The same settings give
    the same picture; they stand in the PNG as JSON, and in the words of webuis. No safety checker is loaded.
    """
    from controlkit.errors import RequestError
    from controlkit.generation.options import request_of
    from controlkit.models.bases import DEFAULT_BASE

    if replay:
        refuse_beside_replay()
        return replayed(replay, out=out, device=device, output=output)
    if base is None and not requests:
        base = DEFAULT_BASE
        output.say(f"base: {base}, a small one that knows drawn scenes alone; a real one: --base FOLDER_FILE_OR_ID")
    if seed is None and not requests:
        seed = secrets.randbelow(2**31)
        output.say(f"seed: {seed}")
    options = {
        "control": controls or None,
        "controlnet": controlnets or None,
        "control-mode": control_modes or None,
        "control-mask": control_masks or None,
        "control-layers": control_layers or None,
        "lora": loras or None,
        "hypernetwork": hypernetworks or None,
        "embedding": embeddings or None,
        "base": base,
        "seed": seed,
        "num": num,
        **{name.replace("_", "-"): value for name, value in others.items()},
    }
    if requests and (grid or sweeps):
        raise RequestError("--requests goes without --grid and --sweep: its pictures may be of any size")
    how: dict[str, Any] = {"device": device, "dtype": dtype, "execution": execution, "output": output}
    if requests:
        from controlkit.cli.generate_many import painted_many

        return painted_many(requests, options, out=out, **how)
    if grid or sweeps:
        from controlkit.cli.generate_sheets import painted_sheet

        return painted_sheet(request_of(options), sweeps, out=out, **how)
    return painted(request_of(options), out=out, **how)


def painted(
    request: Request, *, out: Path, device: str | None, dtype: str | None, execution: Execution, output: Output
) -> int:
    """Paint a request and write its pictures."""
    place = Place.of(out, request.num)

    from controlkit.generation.generate import generate
    from controlkit.models.devices import choose_device, choose_precision

    where = choose_device(device)
    precision = choose_precision(dtype, where)
    written = []
    with output.progress("generate", "tiles" if request.upscale else "steps") as progress:
        for picture in generate(
            request, device=where, dtype=precision, execution=execution, say=output.say, progress=progress
        ):
            written.append(write(picture, place, output))
    if output.as_json:
        output.answer("", {"pictures": written})
    return 0


def replayed(path: Path, *, out: Path, device: str | None, output: Output) -> int:
    """Paint a picture again, and say whether it is the same."""
    from controlkit.generation.replay import open_replay

    replay = open_replay(path)
    place = Place.of(out, 1)

    import numpy as np
    import torch

    from controlkit.data.pictures import read_picture
    from controlkit.generation.batches import Batch
    from controlkit.generation.generate import load_models, paint
    from controlkit.generation.plan import make_plan
    from controlkit.models.devices import choose_device

    where = choose_device(device or replay.device)
    replay.say_what_differs(where.type, output.say)
    plan = make_plan(replay.request, lambda text: None)  # what was guessed then stands in the settings
    replay.check_pixels(plan)
    before = read_picture(path)
    models = load_models(plan, device=where, dtype=getattr(torch, replay.dtype))
    with output.progress("generate", "tiles" if replay.request.upscale else "steps") as progress:
        picture, *_ = paint(
            plan,
            models,
            device=where,
            execution=replay.execution,
            batches=[Batch.again(plan, replay.settings)],
            progress=progress,
        )
    picture = replace(picture, settings=picture.settings | {"batch": replay.settings["batch"]})
    written = write(picture, place, output)
    difference = int(np.abs(picture.image.astype(int) - before).max())
    output.say(f"the same picture as {path}, bit for bit" if not difference
               else f"not the picture in {path}: its pixels differ by up to {difference} of 255")  # fmt: skip
    if output.as_json:
        output.answer("", {"pictures": [written], "largest_difference": difference})
    return 0


def refuse_beside_replay() -> None:
    """A replayed picture has its settings; only where to paint and to write may be said."""
    refuse_given(
        ("replay", "out", "device", "quiet", "debug", "as_json"), "--replay takes all settings from the picture"
    )


@dataclass(frozen=True)
class Place:
    """Where pictures go: a folder, which numbers them, or one file."""

    path: Path
    one_file: bool

    @staticmethod
    def of(out: Path, num: int) -> Place:
        """Refused before anything is painted if it cannot be written."""
        from controlkit.errors import RequestError
        from controlkit.files import need_writable

        one_file = out.suffix.lower() == ".png"
        if one_file and num > 1:
            raise RequestError(f"--out {out} is one file, --num {num} are several pictures; give a folder")
        need_writable(out.parent if one_file else out, "--out")
        return Place(out, one_file)


def write(picture: Picture, place: Place, output: Output) -> dict[str, Any]:
    """Write a picture with its settings, and what was made beside it; print its path, or give it for --json."""
    from controlkit.files import atomic_write_bytes
    from controlkit.generation.infotext import PARAMETERS, infotext
    from controlkit.generation.settings import encode_picture

    png = encode_picture(picture.image, picture.settings, texts={PARAMETERS: infotext(picture.settings)})
    if place.one_file:
        path = place.path
        atomic_write_bytes(path, png)
    else:
        path = write_new(place.path, picture.seed, png)
    for name, made in {**picture.made_maps, **picture.previews}.items():
        atomic_write_bytes(path.with_name(f"{path.stem}.{name}.png"), made)
    if not output.as_json:
        click.echo(str(path))
    return {"path": str(path), "seed": picture.seed}


def write_new(folder: Path, seed: int, png: bytes) -> Path:
    """A picture under the next free number."""
    return write_numbered(folder, f"seed{seed}", png)


def write_numbered(folder: Path, name: str, png: bytes) -> Path:
    """Under the next free number; a file that is there is never written over, also when two runs share the folder."""
    from controlkit.files import atomic_create_bytes

    taken = [int(path.name[:6]) for path in folder.glob("[0-9]" * 6 + "_*.png")]
    number = max(taken, default=0) + 1
    while True:
        path = folder / f"{number:06d}_{name}.png"
        try:
            atomic_create_bytes(path, png)
        except FileExistsError:
            number += 1
        else:
            return path
