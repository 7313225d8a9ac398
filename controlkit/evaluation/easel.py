"""Paints the pictures of an evaluation, and finds again what was painted under the same settings."""

from __future__ import annotations

import json
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
    from collections.abc import Mapping, Sequence
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
        return map_hint(self.types, {self.type: control_map})


@dataclass(frozen=True)
class Sheet:
    """A picture that is to be painted."""

    number: int  # of the row
    which: str  # row of the report
    settings: dict[str, Any]
    control_map: Picture | None


class Easel:
    """A picture's name says its settings, so that several questions can paint into one folder, and what they share is
    painted once."""

    def __init__(
        self, pipeline: Any, question: Question, models: dict[str, Any], side: int, hint: Hint, out: Path
    ) -> None:
        self.pipeline, self.question, self.models, self.side, self.out = pipeline, question, models, side, out
        self.hint = hint
        self.names: dict[tuple[int, str], list[str]] = {}  # number and row of the report -> files

    def paint(self, rows: Mapping[int, Row], maps: Mapping[int, Picture] | None) -> dict[int, list[Picture]]:
        """`per_row` pictures of each row under its map; without maps the base alone, which is the same for every
        ControlNet. `batch_size` pictures are painted together, and anew where one of them is missing, since kernels
        round otherwise at another size."""
        which = "no_control" if maps is None else "control"
        sheets = [
            self._sheet(number, row, None if maps is None else maps[number], which, take)
            for number, row in rows.items()
            for take in range(self.question.per_row)
        ]
        painted: dict[int, list[Picture]] = {}
        for start in range(0, len(sheets), self.question.batch_size):
            together = sheets[start : start + self.question.batch_size]
            for sheet, picture in zip(together, self._pictures(together), strict=True):
                painted.setdefault(sheet.number, []).append(picture)
        return painted

    def _sheet(self, number: int, row: Row, control_map: Picture | None, which: str, take: int) -> Sheet:
        question = self.question
        settings = {
            **{name: value for name, value in self.models.items() if control_map is not None or name != "controlnet"},
            **{"prompt": row.caption, "picture": row.content, "size": self.side},
            **{name: getattr(question, name) for name in ("negative", "sampler", "steps", "cfg")},
            "seed": question.seed + number * question.per_row + take,
        }
        if control_map is not None:
            settings |= {
                **{"map": _digest(control_map), "weight": question.weight},
                **({"control_every": question.control_every} if question.control_every > 1 else {}),
            }
        return Sheet(number, which, settings, control_map)

    def _pictures(self, together: list[Sheet]) -> list[Picture]:
        paths = []
        for sheet in together:
            sheet.settings["together"] = len(together)
            name = f"{PICTURES}/{sheet.number:06d}.{sheet.which}.{_name(sheet.settings)}.png"
            self.names.setdefault((sheet.number, sheet.which), []).append(name)
            paths.append(self.out / name)
        there = [path.exists() and _same(path, sheet.settings) for path, sheet in zip(paths, together, strict=True)]
        if all(there):
            return [read_picture(path) for path in paths]
        made = self._paint(together)
        for path, sheet, picture, known in zip(paths, together, made, there, strict=True):
            if not known:
                atomic_write_bytes(path, encode_picture(picture, sheet.settings))
        return made

    def _paint(self, together: list[Sheet]) -> list[Picture]:
        import torch

        from controlkit.generation.silent import asked_every

        blank = np.zeros((self.side, self.side, 3), np.uint8)  # of weight 0: it says the size alone
        maps = [blank if sheet.control_map is None else sheet.control_map for sheet in together]
        with asked_every(self.pipeline, self.question.control_every):
            painted = self.pipeline(
                prompt=[sheet.settings["prompt"] for sheet in together],
                negative_prompt=[self.question.negative] * len(together) if self.question.negative else None,
                image=torch.stack([self.hint(each) for each in maps]),
                num_inference_steps=self.question.steps,
                guidance_scale=self.question.cfg,
                controlnet_conditioning_scale=together[0].settings.get("weight", 0.0),
                generator=[torch.Generator().manual_seed(sheet.settings["seed"]) for sheet in together],
                output_type="np",
            ).images
        if not np.isfinite(painted).all():
            raise RequestError(f"a picture is not a number in {self.models['dtype']}; use --dtype float32 or bfloat16")
        return list((painted * 255).round().astype(np.uint8))

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


def _name(settings: dict[str, Any]) -> str:
    return sha256(json.dumps(settings).encode()).hexdigest()[:8]


def _same(path: Path, settings: dict[str, Any]) -> bool:
    try:
        found = read_settings(path)
    except (RequestError, ValueError, KeyError):
        return False
    return {name: found.get(name) for name in settings} == settings


def _digest(control_map: Picture) -> str:
    return sha256(control_map.tobytes()).hexdigest()
