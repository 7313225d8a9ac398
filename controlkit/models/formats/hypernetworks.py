"""Hypernetworks of webuis: small networks in front of the UNet's attention.

A file holds for each width d of what attention reads (768: the text of SD 1.x; 320, 640, 1280: the picture) a network
for the keys and one for the values. Keys are then made of c + m f_k(c) in the place of c, values of c + m f_v(c), with
the file's weight m; several files follow one another. f is a chain of linear layers, each with an activation and
perhaps a layer norm behind it. What the file says of its dropout counts in training alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.formats import detect
from controlkit.models.formats.reading import TensorFile, WeightedFile, read_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from controlkit.models.bases import Base

_NAME = re.compile(r"(\d+)\.([01])\.linear(?:\.(\d+)|([12]))\.(weight|bias)")
_FAMILIES = {768: "SD 1.x", 1024: "SD 2.x"}
_SIDES = ("to_k", "to_v")


class Hypernetwork(WeightedFile):
    """A hypernetwork, of whatever kind and layout."""


@dataclass(frozen=True)
class Found:
    """A file that was read: its networks by width and side, and the layers of each by their number there."""

    tensors: TensorFile
    weight: float
    layers: dict[tuple[int, str], dict[int, dict[str, str]]]  # (320, "to_k") -> 0 -> "weight" -> name in the file
    activation: str | None

    @property
    def widths(self) -> list[int]:
        return sorted({width for width, _ in self.layers})

    @property
    def activated_output(self) -> bool:
        """Whether the last layer has its activation too; so it is where the file does not say."""
        return bool(self.tensors.facts.get("activate_output", True))


def find_hypernetworks(base: Base, asked: tuple[Hypernetwork, ...]) -> list[Found]:
    """Refused where one is no hypernetwork, was made for another family, or is not whole."""
    takes = {int(base.unet["cross_attention_dim"]), *map(int, base.unet["block_out_channels"])}
    found = []
    for each in asked:
        read = read_hypernetwork(read_tensors(each.file.expanduser()), f"--hypernetwork {each.file}", each.weight)
        if strange := [width for width in read.widths if width not in takes]:
            raise RequestError(
                f"--hypernetwork {each.file} was made for {family_of(read.widths) or 'another network'} (it reads "
                f"{strange[0]} values), base {base.name!r} is {base.family}; choose one of its family"
            )
        found.append(read)
    return found


def read_hypernetwork(file: TensorFile, name: str, weight: float = 1.0) -> Found:
    """Which tensor is which layer; loads nothing that computes."""
    if (kind := detect.kind_of(file)) != detect.HYPERNETWORK:
        raise RequestError(f"{name} is: {kind}; expected a hypernetwork")
    layers: dict[tuple[int, str], dict[int, dict[str, str]]] = {}
    for key in file:
        if match := _NAME.fullmatch(key):
            width, side, number, old, role = match.groups()
            place = int(number) if number else int(old) - 1  # the first files call their two layers linear1 and linear2
            layers.setdefault((int(width), _SIDES[int(side)]), {}).setdefault(place, {})[role] = key
    activation = file.facts.get("activation_func")
    found = Found(file, weight, layers, None if activation in (None, "linear") else str(activation))
    _activation(found.activation, name)
    for (width, side), chain in layers.items():
        reads = width
        for _, layer in sorted(chain.items()):
            shape = file.shapes[layer["weight"]] if set(layer) == {"weight", "bias"} else ()
            if not shape or shape[-1] != reads:
                raise RequestError(f"{name}: its network for {side} of width {width} is not whole; get it again")
            reads = shape[0]
        if reads != width or (width, _SIDES[side == "to_k"]) not in layers:
            raise RequestError(f"{name}: its networks for width {width} are not whole; get it again")
    return found


def family_of(widths: list[int]) -> str | None:
    """By the width of its text."""
    return next((family for width, family in _FAMILIES.items() if width in widths), None)


def add_hypernetworks(unet: nn.Module, found: list[Found]) -> None:
    """Put them in front of the keys and values of a loaded UNet."""
    device = next(unet.parameters()).device
    for each in found:
        networks = {place: _Network(each, chain, device) for place, chain in each.layers.items()}
        for name, module in unet.named_modules():
            network = networks.get((getattr(module, "in_features", 0), name.rpartition(".")[2]))
            if network:
                module.register_forward_pre_hook(network)


class _Network:
    """c -> c + m f(c), in float32 as webuis compute it; a hook in front of a projection."""

    def __init__(self, found: Found, chain: dict[int, dict[str, str]], device: torch.device) -> None:
        import torch

        self.weight = found.weight
        parts: list[nn.Module] = []
        linears = [number for number, layer in sorted(chain.items()) if len(found.tensors.shapes[layer["weight"]]) == 2]
        for number, layer in sorted(chain.items()):
            weight, bias = (found.tensors[layer[role]].float() for role in ("weight", "bias"))
            kind: Any = torch.nn.Linear if number in linears else torch.nn.LayerNorm
            part = kind(*reversed(weight.shape), device="meta")
            part.load_state_dict({"weight": weight, "bias": bias}, assign=True)
            parts.append(part)
            if number in linears and found.activation and (number != linears[-1] or found.activated_output):
                parts.append(_activation(found.activation, str(found.tensors.path)))
        self.network, self.device = torch.nn.Sequential(*parts).eval().to(device), device

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        context, *others = args
        if context.device != self.device:  # a UNet that is offloaded computes elsewhere than it lies
            self.network.to(context.device)
            self.device = context.device
        exact = context.float()
        return (exact + self.weight * self.network(exact)).to(context.dtype), *others


def _activation(name: str | None, file: str) -> Any:
    """By its lower-case name in torch, as files state it."""
    from torch.nn.modules import activation

    known = {each.lower(): each for each in activation.__all__}
    try:
        # What webuis have called swish since their first version is the hard one.
        return None if name is None else getattr(activation, known["hardswish" if name == "swish" else name])()
    except (KeyError, TypeError):
        raise RequestError(f"{file}: its activation {name!r} is none that torch has; get another") from None
