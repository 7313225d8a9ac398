"""The model card of a run: what it is, how it was made, whether it works, how it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit import __version__
from controlkit.models.inpaint_hint import INPAINT
from controlkit.training.telemetry import ACQUIRED, NOT_ACQUIRED
from controlkit.training.watch import looks_in

if TYPE_CHECKING:
    from pathlib import Path

    from controlkit.models.bases import Base
    from controlkit.training.config import TrainConfig

CURVES = "curves.png"


def model_card(config: TrainConfig, base: Base, rows: int, metrics: list[dict[str, Any]], samples: list[Path]) -> str:
    """README.md of the run folder, in the form the hub reads."""
    condition = config.data.condition
    picture = (
        f"![control, picture, made](samples/{samples[-1].name})\n\nEach row: the control map, the real picture, "
        f"what the ControlNet made of the map.\n"
        if samples
        else "No samples were made.\n"
    )
    return f"""---
base_model: {config.base}
tags: [controlnet, {condition}, diffusers]
---

# ControlNet: {condition} for {config.base}

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

    controlkit generate --base {config.base} --controlnet controlnet {_given(condition)} --prompt "…"

or in diffusers: `ControlNetModel.from_pretrained("controlnet")`.
{_notes(config)}
## Loss

The loss of a step hangs mostly on the noise level it drew, and says little about whether the map is obeyed.

| steps | mean loss |
| --- | --- |
{_loss_table([row for row in metrics if "loss" in row])}
"""


def _given(condition: str) -> str:
    """What a command takes beside the ControlNet."""
    return "--image picture.png --mask mask.png" if condition == INPAINT else f"--control {condition}={condition}.png"


def _notes(config: TrainConfig) -> str:
    """What whoever uses the ControlNet must know of the base that it learned with."""
    notes = ""
    if config.control_lora:
        notes += f"""
`control_lora_{config.data.condition}.safetensors` is the same as a Control-LoRA of rank {config.control_lora}: what the
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
        own = f"{read['mean']:.1%} of it ({read['low']:.1%} to {read['high']:.1%})"
        lines.append(
            f"\nBehind step {last['step']} the control takes {control['mean']:.1%} off the held-out loss "
            f"({control['low']:.1%} to {control['high']:.1%}); a row's own map beats another's by {own}."
        )
    scores = [row for row in metrics if "fidelity" in row]
    if scores:
        step, last = scores[-1]["step"], scores[-1]["fidelity"]
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
