"""The model card of a run: what it is, how it was made, whether it works, how it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit import __version__
from controlkit.models.inpaint_hint import INPAINT
from controlkit.models.map_hint import CHANNELS
from controlkit.training.telemetry import ACQUIRED, NOT_ACQUIRED
from controlkit.training.watch import ALONE, looks_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from controlkit.models.bases import Base
    from controlkit.training.config import TrainConfig

CURVES = "curves.png"


def model_card(config: TrainConfig, base: Base, rows: int, metrics: list[dict[str, Any]], samples: list[Path]) -> str:
    """README.md of the run folder, in the form the hub reads."""
    types = config.data.condition
    named = " and ".join(types)
    picture = (
        f"![control, picture, made](samples/{samples[-1].name})\n\nEach row: the control map, the real picture, "
        f"what the ControlNet made of the map.\n"
        if samples
        else "No samples were made.\n"
    )
    return f"""---
base_model: {config.base}
tags: [controlnet, {", ".join(types)}, diffusers]
---

# ControlNet: {named} for {config.base}

Trained with controlkit {__version__} on {rows} pictures, {metrics[-1]["step"] if metrics else 0} steps of
{config.batch_size} rows a process. Base: {base.family}, which predicts {base.prediction_type}. Every setting is in
`config.yaml`. The licence of the base holds for what is made with it.

{picture}
## Does it follow its maps?

{_verdict(metrics)}

![the curves of the run]({CURVES})

The held-out loss is always of the same rows under the same noise. The control gain is by how much the ControlNet lowers
it, the map gain by how much it is lower with a row's own map than with that of another row: only the map gain says that
the map is read.

## Use

    controlkit generate --base {config.base} --controlnet controlnet {_given(types)} --prompt "…"

or in diffusers: `ControlNetModel.from_pretrained("controlnet")`.
{_notes(config)}
## Loss

The loss of a step hangs mostly on the noise level it drew, and says little about whether the map is obeyed.

| steps | mean loss |
| --- | --- |
{_loss_table([row for row in metrics if "loss" in row])}
"""


def _given(types: Sequence[str]) -> str:
    """What a command takes beside the ControlNet."""
    if INPAINT in types:
        return "--image picture.png --mask mask.png"
    return " ".join(f"--control {type}={type}.png" for type in types)


def _notes(config: TrainConfig) -> str:
    """What whoever uses the ControlNet must know of the base that it learned with."""
    notes = ""
    if len(types := config.data.condition) > 1:
        notes += f"""
It reads maps of several types at once, or some of them: leave out `--control` of those that you have not. In diffusers
its map is a tensor (1, {CHANNELS * len(types)}, height, width) in 0 to 1: three channels for each type in the order
{", ".join(types)}, and zeros for a map that is not given.
"""
    if config.control_lora:
        notes += f"""
`control_lora_{types[0]}.safetensors` is the same as a Control-LoRA of rank {config.control_lora}: what the
ControlNet adds to its base, in a small file for webui, ComfyUI and `controlkit generate --controlnet`.
"""
    if config.decoder:
        notes += """
The base's decoder learned along. Give the pipeline both: `unet=UNet2DConditionModel.from_pretrained("unet")`.
"""
    if config.objective.zero_terminal_snr:
        notes += """
The schedule was rescaled to zero terminal SNR. Sample with a scheduler that has `rescale_betas_zero_snr=True` and
`timestep_spacing="trailing"`.
"""
    return notes


def _verdict(metrics: list[dict[str, Any]]) -> str:
    lines = []
    events = {row["event"]: row for row in metrics if "event" in row}
    if ACQUIRED in events:
        lines.append(f"**Yes: control was acquired at step {events[ACQUIRED]['since']}.**")
    elif NOT_ACQUIRED in events:
        missing = events[NOT_ACQUIRED]
        lines.append(f"**No: control was not acquired by step {missing['step']}.**")
        lines += [f"\n- {reason}" for reason in missing["diagnosis"]]
    else:
        lines.append("Nothing was looked at yet that could tell.")
    if looks := looks_in(metrics):
        last = looks[-1]
        control, read = last["control_gain_share"], last["map_gain_share"]
        own = f"{read['mean']:z.1%} of it ({read['low']:z.1%} to {read['high']:z.1%})"
        lines.append(
            f"\nBehind step {last['step']} the control takes {control['mean']:z.1%} off the held-out loss "
            f"({control['low']:z.1%} to {control['high']:z.1%}); a row's own map beats another's by {own}."
        )
        for type, gains in last.get(ALONE, {}).items():
            control, read = gains["control_gain_share"], gains["map_gain_share"]
            lines.append(
                f"\nThe {type} map alone, the others black, takes {control['mean']:z.1%} off it; its own beats "
                f"another's by {read['mean']:z.1%} ({read['low']:z.1%} to {read['high']:z.1%})."
            )
    scores = {row["fidelity"]["metric"]: row for row in metrics if "fidelity" in row}
    for row in scores.values():
        step, last = row["step"], row["fidelity"]
        beside = [f"{name} {last[key]:.3f}" for name, key in _BESIDE if key in last]
        lines.append(
            f"\nThe samples of step {step}, annotated again: {last['metric']} {last['mean']:.3f} ({last['low']:.3f} to "
            f"{last['high']:.3f} over {last['n']}){'; ' if beside else ''}{', '.join(beside)}."
        )
    return "\n".join(lines)


_BESIDE = (("by chance", "chance"), ("real pictures", "real"))


def _loss_table(steps: list[dict[str, Any]]) -> str:
    quarter = max(1, -(-len(steps) // 4))
    windows = [steps[start : start + quarter] for start in range(0, len(steps), quarter)]
    return "\n".join(
        f"| {window[0]['step']} to {window[-1]['step']} | {sum(row['loss'] for row in window) / len(window):.4f} |"
        for window in windows
    )
