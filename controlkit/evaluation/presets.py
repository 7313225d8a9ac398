"""Published protocols by name: how the pictures are painted, and how they are read and measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from annotators import ANNOTATORS, MissingWeights
from controlkit.errors import RequestError, known
from controlkit.evaluation.obedience import Judge, reading_contents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from controlkit.data.rows import Row


@dataclass(frozen=True)
class Reading:
    """How pictures of a type are read, and the figure that the protocol gives. `makes_maps`: the maps that are painted
    under are read from the real pictures in the same way, whatever maps the dataset has."""

    metric: str
    backend: str
    options: dict[str, Any]
    makes_maps: bool


@dataclass(frozen=True)
class Preset:
    """`settings` are those of a Question."""

    name: str
    source: str
    settings: dict[str, Any]
    readings: dict[str, Reading]
    departures: tuple[str, ...]

    def judge(self, condition: str, rows: Sequence[Row]) -> Judge:
        """Refused in one line where it cannot work here."""
        reading = self.reading(condition)
        annotator: Any = ANNOTATORS.create(condition, reading.backend, **reading.options)
        try:
            getattr(annotator, "ready", annotator.libraries)()
        except (ImportError, MissingWeights) as reason:
            raise RequestError(f"--preset {self.name}: {reason}") from None
        return reading_contents(Judge(annotator, leads=reading.metric), rows)

    def reading(self, condition: str) -> Reading:
        if condition not in self.readings:
            raise RequestError(
                f"--preset {self.name}: no figure of {condition} can be given: {known(condition, self.readings)}"
            )
        return self.readings[condition]

    def stated(self, condition: str) -> dict[str, Any]:
        """All that it fixes, for the report."""
        about = {"name": self.name, "source": self.source, **self.settings, **asdict(self.reading(condition))}
        return {**about, "departures": list(self.departures)}


def find_preset(name: str) -> Preset:
    if name not in PRESETS:
        raise RequestError(f"--preset {name}: {known(name, PRESETS)}")
    return PRESETS[name]


_OFFLINE = {"offline": True}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="controlnet-plus-plus",
            source="arXiv:2404.07987 and the evaluation of liming-ai/ControlNet_Plus_Plus",
            settings={
                "size": 512,
                "sampler": "unipc",
                "steps": 20,
                "cfg": 7.5,
                "weight": 1.0,
                "negative": "worst quality, low quality",
                "per_row": 4,
            },
            readings={
                "canny": Reading("canny_f1_exact", "kornia", {"low": 0.1, "high": 0.2}, makes_maps=True),
                "softedge": Reading("softedge_ms_ssim", "hed", _OFFLINE, makes_maps=True),
                "lineart": Reading("lineart_ms_ssim", "realistic", _OFFLINE, makes_maps=True),
                "depth": Reading(
                    "depth_rmse_8bit",
                    "depth-anything",
                    {"weights": "Intel/dpt-large", "resolution": 384, **_OFFLINE},
                    makes_maps=False,
                ),
            },
            departures=(
                "each picture has a seed of its own; there one stream of noise ran through all of them",
                "lineart is not inverted in 8 bits, where exact zeros would turn round",
                "depth is not cut to whole grey levels before it is compared",
                "segmentation is left out: it was read by a Mask2Former of mmseg",
            ),
        ),
    )
}
