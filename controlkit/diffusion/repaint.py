"""RePaint: a network never trained for it paints a hole, the rest of the picture being known (arXiv:2201.09865).

    level   0 = clean … T = noise: how many of the T steps of the sampler are still to go
    known   x_0 of the picture
    hole    1 where it is to be painted, 0 where the picture stays; between them see `Repaint`

Behind every step the known part is put in its place, noised to the level that was reached (Algorithm 1). That alone
leaves the two parts strangers to each other: so the walk goes back up now and then, `jump` levels at once, and comes
down again `samples` times (Sec. 4.2).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from controlkit.diffusion.forward import Path, q_jump, q_sample
from controlkit.diffusion.repaint_walk import REPAINT_SAMPLERS, first_level, walk

if TYPE_CHECKING:
    from torch import Tensor

_VARIANCE_PRESERVING = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")
_SIGMAS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


class Repaint:
    """A scheduler that walks with another one inside, made by `make_repaint`. Pipelines take it for any scheduler.

    Its `timesteps` repeat where the walk does. The pipeline is to be given `begin(…)` as its latents: the known part at
    the level where the walk starts. With `strength` below 1 that is below T, and the hole starts from what was there.

    A hole value between 0 and 1 is no mixture, which would be neither of two pictures, but a time: the cell is known
    down to that share of the noise, and free from there on (Differential Diffusion, arXiv:2306.00950).
    """

    order = 1
    init_noise_sigma = 1.0  # the latents given are where the walk starts already

    def __init__(
        self,
        inner: Any,
        known: Tensor,
        hole: Tensor,
        *,
        jump: int = 10,
        samples: int = 10,
        window: tuple[float, float] = (0.0, 1.0),
        strength: float = 1.0,
    ) -> None:
        """`known` (B or 1, C, h, w); `hole` (B or 1, 1, h, w)."""
        kind = type(inner).__name__
        if kind not in (*_VARIANCE_PRESERVING, *_SIGMAS):
            raise ValueError(
                f"RePaint jumps back, which {kind} cannot follow: it remembers the steps before; use one of "
                f"{', '.join(REPAINT_SAMPLERS)}"
            )
        if not 0 < strength <= 1:
            raise ValueError(f"strength={strength:g}: expected more than 0, to 1")
        if hole.shape[-2:] != known.shape[-2:]:
            raise ValueError(f"hole {tuple(hole.shape)} over a picture {tuple(known.shape)}: expected one size")
        self.inner, self.known, self.hole = inner, known, hole
        self.jump, self.samples, self.window, self.strength = jump, samples, window, strength

    def __getattr__(self, name: str) -> Any:
        """Whatever else a pipeline asks of a scheduler."""
        if name == "inner":  # not there yet, while it is copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **options: Any) -> None:
        self.inner.set_timesteps(num_inference_steps, device=device, **options)
        self.steps = len(self.inner.timesteps)
        start = first_level(self.steps, self.strength)
        self.levels = walk(start, jump=self.jump, samples=self.samples, window=self.window)
        asked_at = [self.steps - before for before, after in pairwise(self.levels) if after < before]
        self.timesteps = self.inner.timesteps[asked_at]
        self._at = 0

    def begin(self, noise: Tensor) -> Tensor:
        """Where the walk starts (behind `set_timesteps`), from noise (B, C, h, w)."""
        start = self._path(self.levels[0])
        noised = q_sample(self.known.to(noise), noise, start)
        if self.levels[0] < self.steps:
            return noised
        free = noise * self.inner.init_noise_sigma
        return torch.where(self._free(self.levels[0], noise), free, noised)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        self._tell_inner()
        scaled: Tensor = self.inner.scale_model_input(sample, timestep)
        return scaled

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True
    ) -> Any:
        return self._step(model_output, timestep, sample, generator, return_dict)

    def _step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any, return_dict: bool, **options: Any
    ) -> Any:
        self._tell_inner()
        x = self.inner.step(model_output, timestep, sample, generator=generator, return_dict=False, **options)[0]
        self._at += 1
        level = self.levels[self._at]
        known = q_sample(self.known.to(x), _noise_like(x, generator), self._path(level))
        x = torch.where(self._free(level, x), x, known)
        if level and (above := self.levels[self._at + 1]) > level:
            x = q_jump(x, _noise_like(x, generator), self._path(level), self._path(above))
            self._at += 1
        if not return_dict:
            return (x,)
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        return SchedulerOutput(prev_sample=x)

    def _free(self, level: int, like: Tensor) -> Tensor:
        hole = self.hole.to(like.device)
        return (hole > 0) & (hole >= level / self.steps)

    def _path(self, level: int) -> Path:
        """Where a level stands, in the space in which the inner scheduler computes."""
        place = self.steps - level
        if type(self.inner).__name__ in _SIGMAS:
            return Path(torch.ones((), dtype=torch.float64), self.inner.sigmas[place].double().cpu())
        if level == 0:
            return Path.variance_preserving(1.0)
        return Path.variance_preserving(self.inner.alphas_cumprod[int(self.inner.timesteps[place])].double().cpu())

    def _tell_inner(self) -> None:
        """Schedulers count their steps, and here one is taken again and again."""
        if hasattr(self.inner, "_step_index"):
            self.inner._step_index = self.steps - self.levels[self._at]


class RepaintWithEta(Repaint):
    """Pipelines look at the signature of `step` to know whether eta means something."""

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        return self._step(model_output, timestep, sample, generator, return_dict, eta=eta)


def make_repaint(inner: Any, known: Tensor, hole: Tensor, **settings: Any) -> Repaint:
    """`Repaint` around a scheduler of diffusers, `settings` being those of its `__init__`."""
    kind = RepaintWithEta if type(inner).__name__ in ("DDIMScheduler", "TCDScheduler") else Repaint
    return kind(inner, known, hole, **settings)


def _noise_like(x: Tensor, generator: Any) -> Tensor:
    """Drawn where the generators live, one a picture or one for all, as the pipelines draw."""
    from diffusers.utils.torch_utils import randn_tensor

    noise: Tensor = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return noise
