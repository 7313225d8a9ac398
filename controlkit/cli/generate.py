"""`controlkit generate`: prompts, control maps and pictures become pictures."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click

from controlkit.cli.execution_options import execution_options
from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output
    from controlkit.generation.execution import Execution


@click.command()
@click.option("--control", "controls", multiple=True, metavar="[TYPE=]FILE[@WEIGHT[:START[:END]]]",
              help="A control map; more than one joins several.")  # fmt: skip
@click.option("--controlnet", "controlnets", multiple=True, metavar="[TYPE=]NET",
              help="The ControlNet for it: a folder, a file or a hub id.")  # fmt: skip
@click.option("--control-mode", "control_modes", multiple=True, metavar="MODE",
              help="balanced; prompt: the prompt comes first; control: the map comes first, also before what the "
                   "prompt leaves open. One for all controls, or one for each.  [default: balanced]")  # fmt: skip
@click.option("--resize", type=click.Choice(["crop", "pad", "fit"]), default="crop", show_default=True,
              help="A map of another shape: cut at the sides, black beside it, or squeezed.")  # fmt: skip
@click.option("--image", metavar="FILE", type=click.Path(path_type=Path),
              help="Start from this picture instead of from noise (img2img).")  # fmt: skip
@click.option("--strength", type=float, metavar="0..1",
              help="How much of --image changes: the share of the steps that is walked.  [default: 0.6]")  # fmt: skip
@click.option("--prompt", default="", help="What to paint.")
@click.option("--negative", default="", help="What not to paint.")
@click.option("--base", metavar="BASE",
              help="SD 1.x, 2.x or SDXL: a folder, .safetensors, .ckpt or hub id.  [default: toybox]")  # fmt: skip
@click.option("--prediction", type=click.Choice(["epsilon", "v_prediction", "sample"]),
              help="What the base predicts.  [default: what it says, else a guess, which is said]")  # fmt: skip
@click.option("--tokenizer", metavar="FOLDER_OR_ID", help="For a base in a file.  [default: one that lies near]")
@click.option("--lora", "loras", multiple=True, metavar="FILE[@WEIGHT]",
              help="A LoRA, LoCon, LoHa or LoKr of any tool; more than one add up.")  # fmt: skip
@click.option("--embedding", "embeddings", multiple=True, metavar="FILE", type=click.Path(path_type=Path),
              help="A textual inversion, called in the prompt by the file's name.")  # fmt: skip
@click.option("--vae", metavar="FILE_OR_FOLDER", help="A VAE in the place of the base's.")
@click.option("--sampler", default="dpmpp_2m_karras", show_default=True, help="How the noise is removed.")
@click.option("--eta", default=0.0, metavar="0..1", help="Noise of each step, for ddim and tcd.  [default: 0, none]")
@click.option("--steps", default=20, show_default=True, help="Steps of the sampler.")
@click.option("--cfg", default=7.5, show_default=True, help="How strongly the prompt counts; 1: no guidance.")
@click.option("--cfg-rescale", default=0.0, metavar="0..1",
              help="Against the washed-out contrast of a high --cfg.  [default: 0, off; 0.7 is usual]")  # fmt: skip
@click.option("--clip-skip", default=1, metavar="N", show_default=True,
              help="The prompt is read N - 1 layers before the usual one, as webuis count (diffusers' clip_skip is one "
                   "less); the negative prompt is not, as in diffusers.")  # fmt: skip
@click.option("--seed", type=int, help="Picture i starts from SEED + i.  [default: a random one, which is said]")
@click.option("--num", default=1, show_default=True, help="Pictures.")
@click.option(
    "--size", metavar="WxH", help="Pixels.  [default: the control map's, else the picture's, else the base's]"
)
@click.option("--out", default="outputs", show_default=True, type=click.Path(path_type=Path),
              help="A folder, or FILE.png for one picture.")  # fmt: skip
@click.option("--annotate", is_flag=True, help="The control FILE is a photograph: make its map first, and keep it.")
@click.option("--control-half", is_flag=True,
              help="Control guidance's half with the prompt alone: half the time, a stronger control.")  # fmt: skip
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
              help="Precision.  [default: float16 on cuda, else float32]")  # fmt: skip
@execution_options
@common_options(answers=True)
def command(
    controls: tuple[str, ...],
    controlnets: tuple[str, ...],
    control_modes: tuple[str, ...],
    resize: str,
    image: Path | None,
    strength: float | None,
    prompt: str,
    negative: str,
    base: str | None,
    prediction: str | None,
    tokenizer: str | None,
    loras: tuple[str, ...],
    embeddings: tuple[Path, ...],
    vae: str | None,
    sampler: str,
    eta: float,
    steps: int,
    cfg: float,
    cfg_rescale: float,
    clip_skip: int,
    seed: int | None,
    num: int,
    size: str | None,
    out: Path,
    annotate: bool,
    control_half: bool,
    device: str | None,
    dtype: str | None,
    execution: Execution,
    output: Output,
) -> int:
    """Paint pictures: from a prompt, from a picture (--image), under control maps (--control) or without.

    FILE of --control is a map that `controlkit annotate` made, or a photograph with --annotate. The same settings give
    the same picture; they stand in the PNG as JSON. No safety checker is loaded.
    """
    from controlkit.errors import RequestError
    from controlkit.files import atomic_write_bytes, need_writable
    from controlkit.generation.request import Net, Request, parse_controls, parse_size
    from controlkit.generation.settings import encode_picture
    from controlkit.models.bases import DEFAULT_BASE
    from controlkit.models.formats.lora import Lora

    if controls and not controlnets:
        raise RequestError(
            "no ControlNet is given; expected --controlnet FOLDER, e.g. --controlnet runs/circles/controlnet"
        )
    if base is None:
        base = DEFAULT_BASE
        output.say(f"base: {base}, a small one that knows drawn scenes alone; a real one: --base FOLDER_FILE_OR_ID")
    if seed is None:
        seed = secrets.randbelow(2**31)
        output.say(f"seed: {seed}")
    request = Request(
        controls=parse_controls(controls, control_modes),
        controlnets=tuple(Net.parse(text) for text in controlnets),
        image=image,
        strength=strength,
        prompt=prompt,
        negative=negative,
        base=base,
        prediction=prediction,
        tokenizer=tokenizer,
        loras=tuple(Lora.parse(text) for text in loras),
        embeddings=embeddings,
        vae=vae,
        sampler=sampler,
        eta=eta,
        steps=steps,
        cfg=cfg,
        cfg_rescale=cfg_rescale,
        clip_skip=clip_skip,
        seed=seed,
        num=num,
        size=parse_size(size) if size else None,
        resize=resize,
        annotate=annotate,
        control_half=control_half,
    )
    one_file = out.suffix.lower() == ".png"
    if one_file and num > 1:
        raise RequestError(f"--out {out} is one file, --num {num} are several pictures; give a folder")
    need_writable(out.parent if one_file else out, "--out")

    import torch

    from controlkit.generation.generate import generate
    from controlkit.models.devices import choose_device

    where = choose_device(device)
    precision = getattr(torch, dtype or ("float16" if where.type == "cuda" else "float32"))
    written = []
    with output.progress("generate", "steps") as progress:
        for picture in generate(
            request, device=where, dtype=precision, execution=execution, say=output.say, progress=progress
        ):
            png = encode_picture(picture.image, picture.settings)
            if one_file:
                path = out
                atomic_write_bytes(path, png)
            else:
                path = write_new(out, picture.seed, png)
            written.append({"path": str(path), "seed": picture.seed})
            for name, made in {**picture.made_maps, **picture.previews}.items():
                atomic_write_bytes(path.with_name(f"{path.stem}.{name}.png"), made)
            if not output.as_json:
                click.echo(str(path))
    if output.as_json:
        output.answer("", {"pictures": written})
    return 0


def write_new(folder: Path, seed: int, png: bytes) -> Path:
    """Under the next free number; a file that is there is never written over, also when two runs share the folder."""
    from controlkit.files import atomic_create_bytes

    taken = [int(path.name[:6]) for path in folder.glob("[0-9]" * 6 + "_*.png")]
    number = max(taken, default=0) + 1
    while True:
        path = folder / f"{number:06d}_seed{seed}.png"
        try:
            atomic_create_bytes(path, png)
        except FileExistsError:
            number += 1
        else:
            return path
