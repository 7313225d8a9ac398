"""RePaint's walk (arXiv:2201.09865, Sec. 4.2): down by single levels, back up now and then. Loads no library."""

from __future__ import annotations

from itertools import pairwise

REPAINT_SAMPLERS = ("ddim", "ddpm", "euler", "euler_a", "euler_karras", "lcm", "tcd")
"""Those whose step hangs on nothing but where it stands. Others remember steps, which the jumps make untrue."""


def walk(steps: int, *, jump: int = 10, samples: int = 10, window: tuple[float, float] = (0.0, 1.0)) -> list[int]:
    """The levels one after the other, from `steps` to 0. Each multiple of `jump` levels is reached `samples` times from
    above, as in the released code; only those within `window`, as shares of the steps, from noise 1 to clean 0."""
    if not 1 <= jump <= steps:
        raise ValueError(f"jump length {jump}: a walk of {steps} steps expects 1 to {steps}")
    if samples < 1:
        raise ValueError(f"jump samples {samples}: expected at least 1, which is to go down once")
    if not 0 <= window[0] <= window[1] <= 1:
        raise ValueError(f"jump window {window[0]:g} to {window[1]:g}: expected two shares of the steps, 0 to 1")
    points = [point + 1 for point in range(0, steps - jump, jump)]
    left = {level: samples - 1 for level in points if window[0] * steps <= level <= window[1] * steps}
    levels = [steps]
    while levels[-1] > 0:
        levels.append(levels[-1] - 1)
        if left.get(levels[-1], 0):
            left[levels[-1]] -= 1
            levels.append(levels[-1] + jump)
    return levels


def network_calls(levels: list[int]) -> int:
    """How often the network is asked on a walk: up costs nothing."""
    return sum(after < before for before, after in pairwise(levels))


def first_level(steps: int, strength: float) -> int:
    """The level where a walk of that strength begins."""
    return max(1, round(strength * steps))
