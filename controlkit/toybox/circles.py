"""The world `circles`: a coloured disc on a coloured ground; the caption names both colours.

The tutorial task of the original ControlNet, drawn here: an outline goes in, the colours come from the prompt.
"""

from __future__ import annotations

import numpy as np

from controlkit.toybox.scene import COLOURS, Scene


def draw(seed: int, index: int, size: int) -> Scene:
    """Scene `index`. Centre and radius are shares of the picture, so that it is the same scene at every size."""
    random = np.random.default_rng([seed, index])
    radius = random.uniform(0.15, 0.35)
    x, y = random.uniform(radius + 0.05, 0.95 - radius, 2)
    disc, ground = random.choice(sorted(COLOURS), 2, replace=False)

    centres = (np.arange(size) + 0.5) / size
    distance = np.hypot(centres[None, :] - x, centres[:, None] - y)
    share = np.clip((radius - distance) * size + 0.5, 0, 1)[:, :, None]  # of the pixel inside the disc
    image = share * COLOURS[disc] + (1 - share) * COLOURS[ground]
    return Scene(
        image=np.round(image).astype(np.uint8),
        caption=f"a {disc} circle on a {ground} ground",
        facts={"disc": str(disc), "ground": str(ground), "x": x, "y": y, "radius": radius},
    )
