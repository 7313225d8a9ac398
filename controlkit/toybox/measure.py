"""How good a base is on the drawn worlds: does it paint what the caption says, and as the world looks?

Four rows give each figure its meaning: `base`, what it painted from the captions of scenes; `vae`, the scenes through
its autoencoder, the best that can come out; `real`, the scenes themselves, the best that the classifier can see; and
`chance`, the scenes judged by the captions of others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from controlkit.data.pictures import resize_picture
from controlkit.errors import RequestError
from controlkit.evaluation.frechet import Moments, frechet_distance
from controlkit.evaluation.scores import Score
from controlkit.generation.unguided import paint_prompts, to_pictures
from controlkit.toybox.classifier import FEATURES, Contents
from controlkit.toybox.lessons import load_network, to_pixels
from controlkit.toybox.worlds import find_world

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

ROWS = ("base", "vae", "real", "chance")
UNSEEN = 1_000_003  # the seed of the scenes: trainings take small ones

_TOGETHER = 25  # pictures that a network computes at a time
_JUDGED_AT = 64  # pixels a side that the classifier was made for


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the base: pictures of the captions of `num` scenes."""

    world: str = "rooms"
    num: int = 500
    seed: int = UNSEEN
    sampler: str = "ddim"
    steps: int = 20
    cfg: float = 4.0


@dataclass(frozen=True)
class Judged:
    """What the classifier saw in a row of pictures."""

    contents: list[Contents]
    counts: list[int]
    moments: Moments


def measure_base(
    pipeline: Any,
    question: Question,
    *,
    classifier: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[Picture]]:
    """metric -> row -> score, as a report's scores.json has them, and the pictures that the base painted."""
    if question.num < 2:
        raise RequestError(f"--num {question.num}: expected at least 2 pictures, or nothing can be compared")
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    plan = find_world(question.world).plan
    plans = [plan(question.seed, index) for index in range(question.num)]
    captions, asked = [each.caption for each in plans], [Contents.of(each.facts) for each in plans]
    real = [each.draw(size).image for each in plans]
    others = [plan(question.seed, question.num + index).draw(size).image for index in range(question.num)]
    progress(0, question.num)
    painted: list[Picture] = []
    for start in range(0, question.num, _TOGETHER):
        portion = range(start, min(start + _TOGETHER, question.num))
        painted += paint_prompts(
            pipeline,
            [captions[number] for number in portion],
            seeds=[question.seed + number for number in portion],
            sampler=question.sampler,
            steps=question.steps,
            cfg=question.cfg,
            together=_TOGETHER,
        )
        progress(len(painted), question.num)
    decoded = through_vae(pipeline.vae, real)

    network = load_network("scenes", classifier)
    seen = {"base": judge(network, painted), "vae": judge(network, decoded), "real": judge(network, real)}
    scores: dict[str, dict[str, Score]] = {}
    for row, judged in seen.items():
        for metric, score in fidelity(captions, asked, judged).items():
            scores.setdefault(metric, {})[row] = score
    # Every scene is judged by the caption of the next.
    for metric, score in fidelity(captions[1:] + captions[:1], asked[1:] + asked[:1], seen["real"]).items():
        scores[metric]["chance"] = score
    reference = judge(network, others).moments
    scores["frechet_scenes"] = {
        row: Score(frechet_distance(judged.moments, reference), None, None, question.num)
        for row, judged in seen.items()
    }
    scores["vae_psnr"] = {"vae": Score.of_values([psnr(*pair) for pair in zip(decoded, real, strict=True)])}
    return {metric: {row: asdict(score) for row, score in rows.items()} for metric, rows in scores.items()}, painted


def fidelity(captions: Sequence[str], asked: Sequence[Contents], seen: Judged) -> dict[str, Score]:
    """Shares of pictures in which what the caption names is seen."""
    pairs = list(zip(asked, seen.contents, strict=True))
    colours = [was.colours <= found.colours for was, found in pairs]
    count = [len(was.things) == number for was, number in zip(asked, seen.counts, strict=True)]
    things = [set(was.things) <= set(found.things) for was, found in pairs]
    scores = {
        "colours_found": Score.of_share(colours),
        "count_right": Score.of_share(count),
        "things_found": Score.of_share(things),
        "prompt_fidelity": Score.of_share([one and other for one, other in zip(colours, count, strict=True)]),
    }
    named = [
        right
        for caption, (was, found) in zip(captions, pairs, strict=True)
        for words, right in (
            (f"{was.floor} floor", was.floor == found.floor),
            (f"{was.wall} wall", was.wall == found.wall),
            (f"{was.wall} ground", was.wall == found.wall),
        )
        if words in caption
    ]
    if named:
        scores["surroundings_right"] = Score.of_share(named)
    return scores


def judge(network: Any, pictures: Sequence[Picture]) -> Judged:
    """What the classifier sees in pictures of any size."""
    moments, contents, counts = Moments(FEATURES), [], []
    for start in range(0, len(pictures), _TOGETHER):
        small = [resize_picture(each, (_JUDGED_AT, _JUDGED_AT)) for each in pictures[start : start + _TOGETHER]]
        with torch.no_grad():
            reading = network(to_pixels(np.stack(small)))
        contents += reading.contents()
        counts += reading.counts()
        moments.add(reading.features.numpy())
    return Judged(contents, counts, moments)


@torch.no_grad()
def through_vae(vae: Any, pictures: Sequence[Picture]) -> list[Picture]:
    """What comes back from the autoencoder."""
    decoded: list[Picture] = []
    for start in range(0, len(pictures), _TOGETHER):
        pixels = to_pixels(np.stack(pictures[start : start + _TOGETHER])).to(vae.device)
        decoded += to_pictures(vae.decode(vae.encode(pixels).latent_dist.mean).sample)
    return decoded


def psnr(one: Picture, other: Picture) -> float:
    """Peak signal to noise in dB; equal pictures count as 100."""
    error = np.square(one.astype(np.float64) - other).mean()
    return float(10 * np.log10(255**2 / error)) if error else 100.0
