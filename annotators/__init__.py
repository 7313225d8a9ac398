"""Annotators: a picture goes in, its control map comes out.

    from annotators import ANNOTATORS
    edges = ANNOTATORS.create("canny", low=80)(image)

One contract for all (`annotators.contract`): uint8 (H, W, 3) RGB in, the same size out, black background, a declared
set of values, the same map for the same picture, the picture untouched. This package stands alone and loads no heavy
library until an annotator is called.
"""

from annotators import canny  # noqa: F401  (importing a file registers what it holds)
from annotators.contract import Annotator
from annotators.registry import ANNOTATORS

__all__ = ["ANNOTATORS", "Annotator"]
