"""`controlkit base`: diffusion models from scratch, trained and sampled."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.from_scratch import run, run_options
from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from controlkit.cli.output import Output
    from controlkit.generation.pixel_repaint import Known


@click.group()
def command() -> None:
    """Train a diffusion model from scratch (DDPM, IDDPM, latent diffusion), and sample it."""


@command.command()
@run_options
def train(**options: Any) -> int:
    """Train a base: `train=vae` its autoencoder, `train=unet` the diffusion model.

    Unconditional, by class or from captions (condition=none, class, text), in pixels or in the latents of an
    autoencoder (vae.path=RUN/vae). RUN/pipeline is laid out as diffusers has it: DDPMPipeline for pixels without
    captions, StableDiffusionPipeline for latents.
    """
    from controlkit.training.base import train_base
    from controlkit.training.base_config import BaseConfig

    return run(BaseConfig, train_base, **options)


@command.command()
@click.option("--base", required=True, type=click.Path(path_type=Path), help="The folder of a pipeline.")
@click.option("--num", default=1, show_default=True, type=click.IntRange(1), help="Pictures.")
@click.option("--sampler", help="How the noise is removed.  [default: ddim; with --mask ddpm]")
@click.option("--steps", type=click.IntRange(1), help="Steps of the sampler.  [default: 20; with --mask 250]")
@click.option("--image", type=click.Path(path_type=Path), help="A picture of the base's size, for --mask.")
@click.option("--mask", type=click.Path(path_type=Path),
              help="Of a model of pixels: paint what is white here of --image, by RePaint.")  # fmt: skip
@click.option("--jump-length", type=int, metavar="J", help="RePaint: steps back at once.  [default: 10]")
@click.option("--jump-samples", type=int, metavar="R",
              help="RePaint: how often each stretch is walked.  [default: 10]")  # fmt: skip
@click.option("--eta", default=0.0, show_default=True, help="ddim: 0 always the same picture, 1 as noisy as ddpm.")
@click.option("--class", "class_name", help="Of a class-conditional base: the class, by name or number.")
@click.option("--prompt", help="Of a text-conditional base: what to paint.")
@click.option("--cfg", default=4.0, show_default=True, help="How strongly class or prompt counts; 1: no guidance.")
@click.option("--seed", type=int, help="Picture i starts from SEED + i.  [default: a random one, which is said]")
@click.option("--out", default="outputs", show_default=True, type=click.Path(path_type=Path), help="A folder.")
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]")
@common_options(answers=True)
def sample(
    base: Path,
    num: int,
    sampler: str | None,
    steps: int | None,
    image: Path | None,
    mask: Path | None,
    jump_length: int | None,
    jump_samples: int | None,
    eta: float,
    class_name: str | None,
    prompt: str | None,
    cfg: float,
    seed: int | None,
    out: Path,
    device: str | None,
    output: Output,
) -> int:
    """Paint pictures with a base alone, without control; or, under a mask, a part of a picture."""
    from controlkit.cli.generate import write_new
    from controlkit.files import need_writable
    from controlkit.generation.pixel_repaint import PAPER_STEPS
    from controlkit.generation.settings import encode_picture, library_versions, weights_sha256
    from controlkit.generation.unguided import load_painter
    from controlkit.models.locate import read_json

    need_writable(out, "--out")
    known = _known(image, mask, jump_length, jump_samples, output)
    sampler = sampler or ("ddpm" if known else "ddim")
    steps = steps or (PAPER_STEPS if known else 20)
    if known:
        calls = known.check(read_json(base / "unet" / "config.json")["sample_size"], sampler, steps)
        output.say(f"RePaint: the network is asked {calls} times")
    if seed is None:
        seed = secrets.randbelow(2**31)
        output.say(f"seed: {seed}")
    paint = load_painter(base, class_name=class_name, prompt=prompt, cfg=cfg, device=device, known=known)
    pictures = paint(seeds=[seed + number for number in range(num)], sampler=sampler, steps=steps, eta=eta)
    common: dict[str, Any] = {
        "base": {"name": str(base), "sha256": weights_sha256(base)},
        "sampler": sampler,
        "steps": steps,
        "eta": eta,
        "class": class_name,
        "prompt": prompt,
        "cfg": cfg,
        "together": num,
        **(_settings(image, mask, known) if image and mask and known else {}),
        "versions": library_versions(),
    }
    written = []
    for number, picture in enumerate(pictures):
        path = write_new(out, seed + number, encode_picture(picture, {**common, "seed": seed + number}))
        written.append({"path": str(path), "seed": seed + number})
    output.answer("\n".join(str(each["path"]) for each in written), {"pictures": written})
    return 0


def _known(
    image: Path | None, mask: Path | None, jump: int | None, samples: int | None, output: Output
) -> Known | None:
    """What of a picture is known, where one is given."""
    from controlkit.errors import RequestError
    from controlkit.generation.pixel_repaint import PAPER_JUMP, PAPER_SAMPLES, Known

    if image and mask:
        return Known.read(image, mask, jump=jump or PAPER_JUMP, samples=samples or PAPER_SAMPLES, say=output.say)
    given = {"--image": image, "--mask": mask, "--jump-length": jump, "--jump-samples": samples}
    if names := [name for name, value in given.items() if value is not None]:
        raise RequestError(
            f"{', '.join(names)}: a part of a picture is painted by --image FILE and --mask FILE together"
        )
    return None


def _settings(image: Path, mask: Path, known: Known) -> dict[str, Any]:
    """What the PNG says of it."""
    from controlkit.files import sha256

    files = {name: {"file": str(file), "sha256": sha256(file)} for name, file in (("image", image), ("mask", mask))}
    return {**files, "jump": known.jump, "samples": known.samples}


@command.command("eval")
@click.option("--base", "base_name", help="An embedded name, a folder or a hub id.  [default: toybox]")
@click.option("--world", default="rooms", show_default=True, help="Whose captions: circles or rooms.")
@click.option(
    "--num", default=500, show_default=True, type=click.IntRange(2), help="Captions, of scenes never trained on."
)
@click.option(
    "--seed", type=click.IntRange(0), help="Of the scenes and the noise.  [default: one that no training uses]"
)
@click.option("--sampler", default="ddim", show_default=True, help="How the noise is removed.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1), help="Steps of the sampler.")
@click.option("--cfg", default=4.0, show_default=True, help="How strongly the prompt counts.")
@click.option("--classifier", type=click.Path(path_type=Path), help="Who judges.  [default: the one that comes along]")
@click.option("--out", type=click.Path(path_type=Path), help="Put the pictures and scores.json here.")
@click.option("--device", help="cpu, cuda, cuda:1, mps.  [default: the best there is]")
@common_options(answers=True)
def evaluate(
    base_name: str | None,
    world: str,
    num: int,
    seed: int | None,
    sampler: str,
    steps: int,
    cfg: float,
    classifier: Path | None,
    out: Path | None,
    device: str | None,
    output: Output,
) -> int:
    """Measure a base that was trained on the drawn worlds: does it paint what the captions say?

    Beside it stand the scenes through its autoencoder (the best that can come out), the scenes themselves (the best
    that the classifier can see), and the scenes judged by the captions of others (chance).
    """
    import json

    from controlkit.errors import RequestError
    from controlkit.files import atomic_write_bytes, atomic_write_text, need_writable
    from controlkit.generation.settings import encode_picture
    from controlkit.generation.unguided import load_prompt_pipeline
    from controlkit.models.bases import DEFAULT_BASE, find_base
    from controlkit.toybox.measure import UNSEEN, Question, measure_base

    question = Question(
        world=world, num=num, seed=UNSEEN if seed is None else seed, sampler=sampler, steps=steps, cfg=cfg
    )
    base_name = base_name or DEFAULT_BASE
    if out:
        need_writable(out, "--out")
    base = find_base(base_name)
    if base.folder.is_file():
        raise RequestError(f"base {base_name!r} is a single file; first: controlkit convert FILE FOLDER --to diffusers")
    if base.is_xl or base.inpaints:
        raise RequestError(f"base {base_name!r} is a {base.index['_class_name']}; expected a StableDiffusionPipeline")
    pipeline = load_prompt_pipeline(base.folder, device)
    with output.progress("paint", "pictures") as progress:
        scores, pictures = measure_base(pipeline, question, classifier=classifier, progress=progress)
    answer = {"base": base_name, **vars(question), "scores": scores}
    if out:
        for number, picture in enumerate(pictures):
            atomic_write_bytes(
                out / f"{number:05d}.png", encode_picture(picture, {"base": base_name, **vars(question)})
            )
        atomic_write_text(out / "scores.json", json.dumps(scores, indent=1) + "\n")
    output.answer("\n".join(_score_table(answer)), answer)
    return 0


def _score_table(answer: dict[str, Any]) -> list[str]:
    """Metrics by rows; a share in percent with its interval."""
    rows = list(dict.fromkeys(row for each in answer["scores"].values() for row in each))
    lines = [
        f"{answer['base']} · {answer['num']} captions of {answer['world']} · {answer['sampler']}, "
        f"{answer['steps']} steps, cfg {answer['cfg']:g}",
        " " * 20 + "".join(f"{row:>18}" for row in rows),
    ]
    for metric, by_row in answer["scores"].items():
        cells = []
        for row in rows:
            score = by_row.get(row)
            if score is None:
                cells.append("")
            elif score["low"] is None:
                cells.append(f"{score['mean']:.2f}")
            elif metric == "vae_psnr":
                cells.append(f"{score['mean']:.1f} dB")
            else:
                cells.append(f"{score['mean']:.1%} ({score['low']:.0%}-{score['high']:.0%})")
        lines.append(f"{metric:<20}" + "".join(f"{cell:>18}" for cell in cells))
    return lines
