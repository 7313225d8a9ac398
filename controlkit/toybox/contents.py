"""How `controlkit evaluate` tells whether pictures of drawn worlds hold what their captions name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from controlkit.evaluation.contents import ContentJudge
from controlkit.evaluation.metrics import Metric
from controlkit.evaluation.sets import SetFigure, frechet
from controlkit.toybox.classifier import Contents
from controlkit.toybox.lessons import load_network
from controlkit.toybox.measure import judge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from annotators.contract import Image
    from controlkit.data.rows import Row


def scene_judge() -> ContentJudge:
    """`prompt_fidelity`, as `controlkit base eval` has it: all colours are there, and as many things as asked; and
    `frechet_scenes`, by the classifier's features, between what was painted and the real pictures of the same rows."""
    network = load_network("scenes", None)

    def read(picture: Image) -> tuple[Contents, int, NDArray[np.float64]]:
        seen = judge(network, [picture])
        return seen.contents[0], seen.counts[0], seen.moments.mean  # of one picture: its features

    def agrees(found: tuple[Contents, int, Any], wanted: Contents) -> float:
        contents, count, _ = found
        return float(wanted.colours <= contents.colours and len(wanted.things) == count)

    def wanted(row: Row, real: Image) -> Contents:
        return Contents.of(json.loads(row.columns["scene"]))

    return ContentJudge(
        read,
        wanted,
        (Metric("prompt_fidelity", agrees),),
        features=lambda found: found[2],
        figures=(SetFigure("frechet_scenes", frechet, enough=500),),
    )
