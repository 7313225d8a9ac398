"""What a LoRA adds to a weight, in float32: LoRA, LoCon, LoHa, LoKr, with Tucker cores, DoRA and whole differences.

    W  weight of the base: (o, i) of a linear layer, (o, i, k, k) of a convolution      W' = W + m · delta
    r  rank        s  scale = alpha / r (1 where no alpha is given)        m  the user's weight

LoRA, LoCon   s · up @ down                                                   arXiv:2106.09685, LyCORIS: 2309.14859
LoHa          s · (w1_a @ w1_b) ∘ (w2_a @ w2_b)
LoKr          s · w1 ⊗ w2, each whole or a product; s = 1 where both are whole
Tucker        the product of two factors goes through a core of (r, r, k, k)
DoRA          d · V / |V| - W with V = W + delta, the norm over all axes but that of d       arXiv:2402.09353
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    Factors = Mapping[str, torch.Tensor]

# Role in the formulas <- the ends of names that tools give it.
ROLES = {
    "up": ("lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora.up.weight", "lora_linear_layer.up.weight"),
    "down": ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora.down.weight",
             "lora_linear_layer.down.weight"),
    "mid": ("lora_mid.weight",),
    "alpha": ("alpha",),
    "dora": ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight"),
    **{f"loha_{name}": (f"hada_{name}",) for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": (f"lokr_{name}",) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "diff": ("diff", "w_norm"),
    "diff_b": ("diff_b", "b_norm"),
}  # fmt: skip

REFUSED = {
    "on_input": "(IA)³", "a1.weight": "GLoRA", "oft_blocks": "OFT", "oft_diag": "OFT", "lora_embedding_A": "embeddings",
}  # fmt: skip


def weight_delta(factors: Factors, weight: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """delta for a weight, in its shape. `scale` None: alpha of the file over the rank."""
    factors = {role: tensor.to(weight.device).float() for role, tensor in factors.items()}
    weight = weight.float()
    delta = _product(factors, tuple(weight.shape), scale)
    if delta.numel() != weight.numel() and delta.ndim == weight.ndim == 4:
        # conv_in of a text-to-image base on an inpainting one: mask and masked picture get nothing.
        delta = _pad_inputs(delta, weight.shape[1])
    delta = delta.reshape(weight.shape)
    if "dora" not in factors:
        return delta
    magnitude = factors["dora"]
    if magnitude.ndim == 1:
        magnitude = magnitude.reshape(-1, *[1] * (weight.ndim - 1))
    sum_ = weight + delta
    axes = [axis for axis in range(weight.ndim) if magnitude.shape[axis] == 1]
    norm = sum_.pow(2).sum(dim=axes, keepdim=True).sqrt().clamp_min(1e-12)
    return magnitude * sum_ / norm - weight


def delta_size(factors: Factors) -> tuple[int, int]:
    """(outputs, inputs times kernel) of the delta, from the shapes of its factors alone; to be checked before use."""
    if "diff" in factors:
        shape = tuple(factors["diff"].shape)
        return shape[0], math.prod(shape[1:])
    if "loha_w1_a" in factors:
        a, b = factors["loha_w1_a"], factors["loha_w1_b"]
        if "loha_t1" in factors:
            return a.shape[1], b.shape[1] * math.prod(factors["loha_t1"].shape[2:])
        return a.shape[0], b.shape[1]
    if any(role.startswith("lokr_") for role in factors):
        (o1, i1), (o2, i2) = _kron_size(factors, "w1"), _kron_size(factors, "w2")
        return o1 * o2, i1 * i2
    down = factors["down"]
    kernel = factors["mid"].shape[2:] if "mid" in factors else down.shape[2:]
    return factors["up"].shape[0], down.shape[1] * math.prod(kernel)


def _kron_size(factors: Factors, which: str) -> tuple[int, int]:
    if (whole := factors.get(f"lokr_{which}")) is not None:
        return whole.shape[0], math.prod(whole.shape[1:])
    a, b = factors[f"lokr_{which}_a"], factors[f"lokr_{which}_b"]
    if which == "w2" and "lokr_t2" in factors:
        return a.shape[1], b.shape[1] * math.prod(factors["lokr_t2"].shape[2:])
    return a.shape[0], b.shape[1]


def _product(factors: Factors, shape: tuple[int, ...], scale: float | None) -> torch.Tensor:
    import torch

    def scaled(delta: torch.Tensor, rank: int) -> torch.Tensor:
        if scale is not None:
            return scale * delta
        return float(factors["alpha"]) / rank * delta if "alpha" in factors else delta

    if "diff" in factors:
        return factors["diff"]
    if "loha_w1_a" in factors:
        halves = [
            _tucker(factors[f"loha_t{half}"], factors[f"loha_w{half}_a"], factors[f"loha_w{half}_b"])
            if f"loha_t{half}" in factors
            else factors[f"loha_w{half}_a"] @ factors[f"loha_w{half}_b"]
            for half in (1, 2)
        ]
        return scaled(halves[0] * halves[1], factors["loha_w1_b"].shape[0])
    if any(role.startswith("lokr_") for role in factors):
        return _kronecker(factors, shape, scaled)
    up, down = factors["up"], factors["down"]
    rank = down.shape[0]
    if "mid" in factors:
        return scaled(_tucker(factors["mid"], up.flatten(1).T, down.flatten(1)), rank)
    delta = up.flatten(1) @ down.flatten(1)
    return scaled(torch.reshape(delta, (up.shape[0], *down.shape[1:])), rank)


def _kronecker(
    factors: Factors, shape: tuple[int, ...], scaled: Callable[[torch.Tensor, int], torch.Tensor]
) -> torch.Tensor:
    import torch

    first = factors["lokr_w1"] if "lokr_w1" in factors else factors["lokr_w1_a"] @ factors["lokr_w1_b"]
    if "lokr_w2" in factors:
        second = factors["lokr_w2"]
    elif "lokr_t2" in factors:
        second = _tucker(factors["lokr_t2"], factors["lokr_w2_a"], factors["lokr_w2_b"])
    else:
        second = factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    kernel = shape[2:]
    inputs = second.numel() // (second.shape[0] * math.prod(kernel))
    second = second.reshape(second.shape[0], inputs, *kernel)
    first = first.reshape(*first.shape, *[1] * len(kernel))
    product = torch.kron(first.contiguous(), second.contiguous())
    lower = factors.get("lokr_w1_b", factors.get("lokr_w2_b"))
    return product if lower is None else scaled(product, lower.shape[0])


def _tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """sum over p, q of core[p, q] b[q, i] a[p, o] -> (o, i, k, k)."""
    import torch

    return torch.einsum("pqkl,qi,po->oikl", core, b, a)


def _pad_inputs(delta: torch.Tensor, inputs: int) -> torch.Tensor:
    import torch

    padding = delta.new_zeros(delta.shape[0], inputs - delta.shape[1], *delta.shape[2:])
    return torch.cat([delta, padding], dim=1)
