"""Paints the pictures of an evaluation, and finds again what was painted under the same settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.data.pictures import read_picture
from controlkit.errors import RequestError
from controlkit.files import atomic_write_bytes
from controlkit.generation.settings import encode_picture, read_settings
from controlkit.models.devices import able
from controlkit.models.map_hint import map_hint

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from controlkit.data.rows import Row
    from controlkit.evaluation.evaluate import Question

    Picture = NDArray[np.uint8]

PICTURES = "pictures"


@dataclass(frozen=True)
class Hint:
    """What a ControlNet for these types reads of a map of one of them, the others black."""

    types: tuple[str, ...]
    type: str

    def __call__(self, control_map: Picture) -> torch.Tensor:
        return map_hint(self.types, {self.type: control_map})[None]


class Easel:
    """A picture's name says its settings, so that several questions can paint into one folder, and what they share is
    painted once."""

    def __init__(
        self, pipeline: Any, question: Question, models: dict[str, Any], side: int, hint: Hint, out: Path
    ) -> None:
        self.pipeline, self.question, self.models, self.side, self.out = pipeline, question, models, side, out
        self.hint = hint
        self.names: dict[tuple[int, str], list[str]] = {}  # number and row of the report -> files

    def paint(self, number: int, row: Row, control_map: Picture | None) -> list[Picture]:
        """`per_row` pictures under the map; without one the base alone, which is the same for every ControlNet."""
        first = self.question.seed + number * self.question.per_row
        which = "no_control" if control_map is None else "control"
        self.names[number, which] = []
        return [
            self._picture(number, row, control_map, which, seed) for seed in range(first, first + self.question.per_row)
        ]

    def _picture(self, number: int, row: Row, control_map: Picture | None, which: str, seed: int) -> Picture:
        question = self.question
        settings = {
            **{name: value for name, value in self.models.items() if control_map is not None or name != "controlnet"},
            **{"prompt": row.caption, "picture": row.content, "size": self.side},
            **{name: getattr(question, name) for name in ("negative", "sampler", "steps", "cfg")},
            "seed": seed,
        }
        weight = 0.0
        if control_map is not None:
            weight = question.weight
            settings |= {"map": _digest(control_map), "weight": weight}
        name = f"{PICTURES}/{number:06d}.{which}.{sha256(json.dumps(settings).encode()).hexdigest()[:8]}.png"
        self.names[number, which].append(name)
        path = self.out / name
        if path.exists() and _same(path, settings):
            return read_picture(path)
        if control_map is None:
            control_map = np.zeros((self.side, self.side, 3), np.uint8)  # of weight 0: it says the size alone
        made = self._paint(row.caption, control_map, weight, seed)
        atomic_write_bytes(path, encode_picture(made, settings))
        return made

    def _paint(self, prompt: str, control_map: Picture, weight: float, seed: int) -> Picture:
        import torch

        painted = self.pipeline(
            prompt=prompt,
            negative_prompt=self.question.negative or None,
            image=self.hint(control_map),
            num_inference_steps=self.question.steps,
            guidance_scale=self.question.cfg,
            controlnet_conditioning_scale=weight,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images[0]
        if not np.isfinite(painted).all():
            raise RequestError(f"a picture is not a number in {self.models['dtype']}; use --dtype float32 or bfloat16")
        return np.asarray((painted * 255).round().astype(np.uint8), dtype=np.uint8)

    def through_vae(self, picture: Picture) -> Picture:
        import torch

        from controlkit.generation.inpainting import encode
        from controlkit.generation.unguided import to_pictures

        vae = self.pipeline.vae
        with torch.no_grad():
            latents = encode(vae, picture) / vae.config.scaling_factor + (vae.config.shift_factor or 0)
            with able(vae):
                (picture,) = to_pictures(vae.decode(latents.to(vae.dtype)).sample)
        return np.ascontiguousarray(picture)


def files_of(names: Sequence[str], row: str) -> dict[str, str]:
    """The first picture under the row's name, the others under it with their number."""
    return {row if place == 0 else f"{row} {place + 1}": name for place, name in enumerate(names)}


def _same(path: Path, settings: dict[str, Any]) -> bool:
    try:
        found = read_settings(path)
    except (RequestError, ValueError, KeyError):
        return False
    return {name: found.get(name) for name in settings} == settings


def _digest(control_map: Picture) -> str:
    return sha256(control_map.tobytes()).hexdigest()
