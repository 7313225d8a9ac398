"""Annotators: a picture goes in, its control map comes out.

    from annotators import ANNOTATORS
    edges = ANNOTATORS.create("canny", low=80)(image)

One contract for all (`annotators.contract`): uint8 (H, W, 3) RGB in, the same size out, black background, a declared
set of values, the same map for the same picture, the picture untouched. This package stands alone and loads no heavy
library until an annotator is called.
"""

from annotators import (  # noqa: F401  (importing a file registers what it holds)
    canny,
    canny_kornia,
    colours,
    depth_anything,
    depth_midas,
    drawings,
    inpaint,
    lineart,
    mlsd,
    normal,
    pose_dwpose,
    pose_mediapipe,
    pose_openpose,
    pose_vitpose,
    segment_anything,
    segmentation,
    shuffle,
    soft_edges,
)
from annotators.contract import Annotator, annotate_many
from annotators.registry import ANNOTATORS
from annotators.weights import MissingWeights

__all__ = ["ANNOTATORS", "Annotator", "MissingWeights", "annotate_many"]
