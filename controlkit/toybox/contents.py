"""How `controlkit evaluate` tells whether pictures of drawn worlds hold what their captions name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from controlkit.evaluation.contents import ContentJudge
from controlkit.evaluation.metrics import Metric
from controlkit.toybox.classifier import Contents
from controlkit.toybox.lessons import load_network
from controlkit.toybox.measure import judge

if TYPE_CHECKING:
    from annotators.contract import Image


def scene_judge() -> ContentJudge:
    """`prompt_fidelity`, as `controlkit base eval` has it: all colours are there, and as many things as asked."""
    network = load_network("scenes", None)

    def read(picture: Image) -> tuple[Contents, int]:
        seen = judge(network, [picture])
        return seen.contents[0], seen.counts[0]

    def agrees(found: tuple[Contents, int], wanted: Contents) -> float:
        contents, count = found
        return float(wanted.colours <= contents.colours and len(wanted.things) == count)

    return ContentJudge(read, lambda says: Contents.of(json.loads(says)), (Metric("prompt_fidelity", agrees),))
