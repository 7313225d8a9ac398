"""The model card of a run: what it is, how it was made, how it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from controlkit.models.bases import Base
    from controlkit.training.config import TrainConfig


def model_card(config: TrainConfig, base: Base, rows: int, metrics: list[dict[str, Any]], samples: list[Path]) -> str:
    """README.md of the run folder, in the form the hub reads."""
    condition = config.data.condition
    quarter = max(1, len(metrics) // 4)
    windows = [metrics[start : start + quarter] for start in range(0, len(metrics), quarter)]
    table = "\n".join(
        f"| {window[0]['step']} to {window[-1]['step']} | {sum(row['loss'] for row in window) / len(window):.4f} |"
        for window in windows
    )
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
## Use

    controlkit generate --base {config.base} --controlnet controlnet --control {condition}={condition}.png --prompt "…"

or in diffusers: `ControlNetModel.from_pretrained("controlnet")`.
{_notes(config)}
## Loss

The loss of a step hangs mostly on the noise level it drew, and says little about whether the map is
obeyed: look at the samples.

| steps | mean loss |
| --- | --- |
{table}
"""


def _notes(config: TrainConfig) -> str:
    """What whoever uses the ControlNet must know of the base that it learned with."""
    notes = ""
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
