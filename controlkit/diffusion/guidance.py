"""Classifier-free guidance: what the prompt adds, taken w times (Ho & Salimans, arXiv:2207.12598).

    w     1 = the conditional prediction alone, as in diffusers; the paper's own w is one less
The predictions may be eps, x_0, v, score or flow: with x_t given they are affine in one another, and an affine map
passes through a weighted sum whose weights add up to 1.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def guide(unconditional: Tensor, conditional: Tensor, w: float, *, rescale: float = 0.0) -> Tensor:
    """unconditional + w (conditional - unconditional) (Eq. 6), (B, …).

    `rescale` (phi, 0 to 1) goes that far back to the contrast of the conditional prediction, item by item (Lin et
    al., arXiv:2305.08891, Eqs. 15 and 16, with phi = 0.7); there and here applied to what the network predicts.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"guidance rescale {rescale:g}: expected 0 (off) to 1")
    guided = unconditional + w * (conditional - unconditional)
    if rescale == 0:
        return guided
    inner = list(range(1, guided.ndim))
    contrast = conditional.std(inner, keepdim=True) / guided.std(inner, keepdim=True)
    return guided * (rescale * contrast + 1 - rescale)


def weight_at(sigma: float, w: float, interval: tuple[float, float] = (0.0, math.inf)) -> float:
    """w where low < sigma <= high, else 1 (Kynkäänniemi et al., arXiv:2404.07724).

    1 needs no unconditional prediction: the network can be spared that half. sigma is noise over signal, as in
    `Schedule.sigmas`.
    """
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(f"guidance interval ({low:g}, {high:g}): expected 0 <= low < high, both noise levels sigma")
    return w if low < sigma <= high else 1.0
