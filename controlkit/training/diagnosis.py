"""Why the control was not acquired: from what the run itself has seen, in a line or a few."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any

from controlkit.training.map_facts import map_problems
from controlkit.training.watch import ACQUIRED_SHARE, ALONE, is_clear

if TYPE_CHECKING:
    from controlkit.training.config import TrainConfig
    from controlkit.training.map_facts import MapFacts

_FAINT = 0.02
"""Of the base's prediction: a control that moves it by less has hardly been learned."""

_WORSE = 0.02
"""Of the held-out loss: a young control makes it a little worse before it makes it better."""

_CLIPPED = 10.0
"""Times `max_grad_norm`: gradients of which less than a tenth is left."""


def diagnose(
    config: TrainConfig, maps: list[MapFacts], looks: list[dict[str, Any]], steps: list[dict[str, Any]]
) -> list[str]:
    """What is wrong, or what to try; `steps` are the lines of metrics.jsonl with the loss of each step."""
    found = map_problems(maps)
    if looks:
        found += [_of_learning(config, looks[-1], steps, maps_are_good=not found)]
        found += [
            f"{type} maps alone are not followed yet: the loss falls by {gains['control_gain_share']['mean']:z.1%} "
            f"under them, and a row's own beats another's by {gains['map_gain_share']['mean']:+z.1%}"
            for type, gains in looks[-1].get(ALONE, {}).items()
            if not is_clear(gains)
        ]
    return found


def _of_learning(config: TrainConfig, last: dict[str, Any], steps: list[dict[str, Any]], *, maps_are_good: bool) -> str:
    control, own_map, influence = last["control_gain_share"], last["map_gain_share"], last["influence"]
    step, lr = last["step"], f"lr={config.lr:g}"
    norms = [row["grad_norm"] for row in steps if row.get("grad_norm") is not None]
    zeros = last["zero_convolutions"]
    if zeros and not any(zeros.values()):
        gradients = f"the gradients have a norm of {median(norms):.2g}" if norms else "no step was made"
        return f"the zero convolutions are dead: still exactly zero behind step {step}; {gradients}, {lr}"
    if control["high"] < -_WORSE:
        return (
            f"lr is too high: with the control the held-out loss is {-control['mean']:z.1%} worse than without it "
            f"({lr}; the control moves the prediction by {influence:z.1%}); lower lr, by 10 to begin with"
        )
    if influence < _FAINT:
        return (
            f"hardly anything was learned: the control moves the prediction by {influence:.2%} behind step {step} "
            f"({lr}; zero convolutions at {max(zeros.values(), default=0):.1g}); train longer, or raise lr, by 10 to "
            f"begin with"
        )
    if norms and median(norms) > _CLIPPED * config.max_grad_norm:
        return (
            f"most of each step is clipped: the gradients have a norm of {median(norms):.2g}, max_grad_norm is "
            f"{config.max_grad_norm:g}; lower lr ({config.lr:g})"
        )
    if control["low"] > ACQUIRED_SHARE and own_map["low"] > ACQUIRED_SHARE:
        return (
            f"control has only just appeared: behind step {step} a row's own map beats another's by "
            f"{own_map['mean']:z.1%} of the held-out loss, and a single look may be chance; train on"
        )
    if control["low"] > ACQUIRED_SHARE:
        why = (
            "either the maps do not belong to their pictures, or the sudden convergence is still to come"
            if maps_are_good
            else "as is to be expected of such maps"
        )
        return (
            f"the maps are not read: the loss falls by {control['mean']:z.1%} under the control, and as much with "
            f"another row's map ({own_map['mean']:+z.1%}); {why}"
        )
    return (
        f"no clear gain yet behind step {step}: {control['mean']:+z.1%} of the loss ({control['low']:+z.1%} to "
        f"{control['high']:+z.1%}); the sudden convergence often takes thousands of steps: train longer, or with "
        f"larger batches"
    )
