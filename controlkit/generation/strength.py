"""How much of a picture changes: the share of the steps that is walked from it on."""

from __future__ import annotations

import math


def walked(steps: int, strength: float) -> int:
    """Of the steps those that are walked: as diffusers counts them, rounded down."""
    return int(steps * strength)


def problem_of(strength: float, steps: int, *, said: str, option: str) -> str | None:
    """Why nobody can walk that, or None. `said` is how it was asked for, `option` what stands before a strength."""
    if not 0 < strength <= 1:
        return f"{said}: expected above 0 (the picture as it is) to 1 (all of it anew)"
    if steps >= 1 and walked(steps, strength) < 1:
        return (
            f"{said} of {steps} steps leaves none to walk; use --steps {math.ceil(1 / strength)} or more, or "
            f"{option}{math.ceil(1000 / steps) / 1000:g}"
        )
    return None
