"""Previews: at every N-th step the picture that the network expects at the end, x_0 as predicted.

The pipelines show a callback x_{t-1} alone. So the scheduler's `step` is watched, where x_t and the guided prediction
meet; nothing of what it computes is changed.
"""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import torch

from controlkit.diffusion.prediction import to_x0
from controlkit.generation.unguided import to_pictures
from controlkit.models.devices import able

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Previews:
    """Watches one pipeline; `take` hands over what was seen since the last time."""

    def __init__(self, pipeline: Any, *, every: int, steps: int, decoder: Any = None) -> None:
        """`decoder` is an AutoencoderTiny; without it the pipeline's VAE decodes."""
        self.pipeline, self.every, self.steps, self.decoder = pipeline, every, steps, decoder
        self.calls = 0
        self.seen: dict[int, list[NDArray[np.uint8]]] = {}
        step = pipeline.scheduler.step

        @functools.wraps(step)  # pipelines ask its signature what it takes
        def watched(model_output: Tensor, timestep: Any, sample: Tensor, *rest: Any, **options: Any) -> Any:
            self.look(model_output, timestep, sample)
            return step(model_output, timestep, sample, *rest, **options)

        pipeline.scheduler.step = watched

    def look(self, model_output: Tensor, timestep: Any, sample: Tensor) -> None:
        """Samplers of second order call twice a step; the first call is looked at. The last step is the picture."""
        order = self.pipeline.scheduler.order
        number, first = self.calls // order + 1, self.calls % order == 0
        self.calls += 1
        if first and number % self.every == 0 and number < self.steps:
            self.seen[number] = self.decode(predicted_x0(self.pipeline.scheduler, model_output, timestep, sample))

    @torch.no_grad()
    def decode(self, x_0: Tensor) -> list[NDArray[np.uint8]]:
        """Latents as pictures, in the precision of what decodes."""
        if self.decoder is not None:
            parameter = next(self.decoder.decoder.parameters())
            x_0 = x_0.to(parameter.device, parameter.dtype)
            return to_pictures(self.decoder.decode(x_0 / self.decoder.config.scaling_factor).sample)
        vae = self.pipeline.vae
        with able(vae):
            return to_pictures(vae.decode(x_0.to(vae.dtype) / vae.config.scaling_factor).sample)

    def take(self) -> list[dict[str, bytes]]:
        """For each picture of the batch its previews as PNGs: {"step-05": …}."""
        seen, self.seen, self.calls = self.seen, {}, 0
        count = max((len(pictures) for pictures in seen.values()), default=1)
        width = len(str(self.steps))
        return [
            {f"step-{number:0{width}d}": _png(pictures[which]) for number, pictures in seen.items()}
            for which in range(count)
        ]


def predicted_x0(scheduler: Any, model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
    """x_0 in float32. However a sampler scales its latents, the network saw x_t at the level that `timestep` says, and
    its prediction is about that."""
    x_t = scheduler.scale_model_input(sample, timestep).float()
    alpha_bar = level(scheduler.alphas_cumprod, float(timestep))
    return to_x0(scheduler.config.prediction_type, model_output.float(), x_t, alpha_bar)


def level(alpha_bars: Tensor, t: float) -> Tensor:
    """alpha_bar at a time that may lie between two, where log sigma is linear: so samplers place fractional times."""
    alpha_bars = alpha_bars.double().cpu()
    below = min(int(t), len(alpha_bars) - 1)
    if t == below or below + 1 == len(alpha_bars):
        return alpha_bars[below]
    log_sigma = ((1 - alpha_bars) / alpha_bars)[below : below + 2].log() / 2
    sigma = torch.lerp(log_sigma[0], log_sigma[1], t - below).exp()
    return 1 / (1 + sigma**2)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
