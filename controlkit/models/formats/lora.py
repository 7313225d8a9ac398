"""LoRA files of any tool on any base: found a place for key by key, checked, then added to the weights.

From each layer of the base all names that tools give it go into one table (diffusers' and the original's names, with
dots or underscores, under every prefix), and the file's keys are looked up there. What a file says of each layer on its
own (rank, alpha) counts for that layer alone.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.formats import detect
from controlkit.models.formats.inspect import lora_family
from controlkit.models.formats.lora_deltas import REFUSED, ROLES, delta_size, weight_delta
from controlkit.models.formats.names import renamed
from controlkit.models.formats.reading import TensorFile, WeightedFile, read_tensors
from controlkit.models.formats.single_file import empty_model
from controlkit.models.formats.unet import unet_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlkit.models.bases import Base

Layer = tuple[str, str]
"""Component and module: ("unet", "down_blocks.0.resnets.0.conv1"); of a text encoder with "text_model."."""

# diffusers once kept LoRA layers in the attention's processor: …attn1.processor.to_q_lora.down.weight
_PROCESSOR = re.compile(r"(.+)\.processor\.to_(q|k|v|out)_lora\.(up|down)\.weight")


class Lora(WeightedFile):
    """A LoRA, of whatever kind and layout."""


@dataclass
class _Change:
    """What one file does to one layer."""

    weight: float
    factors: dict[str, str] = field(default_factory=dict)  # role -> name in the file
    scale: float | None = None


Plan = dict[Layer, list[tuple[TensorFile, _Change]]]


def plan_loras(base: Base, loras: tuple[Lora, ...], say: Callable[[str], None]) -> Plan:
    """Where each key of each file goes; a file for another family is refused. Loads no weight."""
    if not loras:
        return {}
    components = ["unet", *(f"text_encoder{suffix}" for suffix in base.text_parts())]
    models = {name: empty_model(name, base.config(name)) for name in components}
    shapes = {
        (component, canonical(component, name)): tuple(module.weight.shape)
        for component, model in models.items()
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
    }
    places = _places(base, list(shapes))
    plan: Plan = {}
    for lora in loras:
        file = read_tensors(lora.file.expanduser())
        if (kind := detect.kind_of(file)) != detect.LORA:
            raise RequestError(f"--lora {lora.file} is: {kind}; expected a LoRA")
        for layer, change in _changes(base, lora, file, places, shapes, say).items():
            plan.setdefault(layer, []).append((file, change))
    return plan


def apply_loras(parts: dict[str, Any], plan: Plan) -> None:
    """Add what was planned to the weights of loaded components, computed in float32, all files at once."""
    for component, part in parts.items():
        for name, module in part.named_modules() if hasattr(part, "named_modules") else ():
            if (changes := plan.get((component, canonical(component, name)))) is None:
                continue
            weight = module.weight.data
            total = weight.float()
            for file, change in changes:
                factors = {role: file[key] for role, key in change.factors.items()}
                if "diff_b" in factors:
                    bias = module.bias.data
                    module.bias.data = (bias.float() + change.weight * factors.pop("diff_b").to(bias)).to(bias.dtype)
                if factors:
                    total = total + change.weight * weight_delta(factors, weight, change.scale)
            module.weight.data = total.to(weight.dtype)


def canonical(component: str, name: str) -> str:
    """A text encoder's module with `text_model.` before it, whichever release of transformers it is of."""
    outside = ("text_model", "text_projection")
    return f"text_model.{name}" if component.startswith("text_encoder") and not name.startswith(outside) else name


def _places(base: Base, layers: list[Layer]) -> dict[str, Layer]:
    """Every name that a tool gives to a layer -> the layer."""
    table = unet_table(base.unet)
    places: dict[str, Layer] = {}
    for component, module in layers:
        if component == "unet":
            names = {module, renamed(module, table) or module}
            for name in names:
                flat = name.replace(".", "_")
                places |= dict.fromkeys((f"lora_unet_{flat}", f"lycoris_{flat}", f"unet.{name}"), (component, module))
            places[f"base_model.model.{module}"] = (component, module)
        else:
            flat = module.replace(".", "_")
            prefixes = ("lora_te2_",) if component.endswith("_2") else ("lora_te_", "lora_te1_", "lycoris_")
            places |= dict.fromkeys(
                (*(prefix + flat for prefix in prefixes), f"{component}.{module}"), (component, module)
            )
    return places


def _changes(
    base: Base,
    lora: Lora,
    file: TensorFile,
    places: dict[str, Layer],
    shapes: dict[Layer, tuple[int, ...]],
    say: Callable[[str], None],
) -> dict[Layer, _Change]:
    changes: dict[Layer, _Change] = {}
    homeless, names = [], {}
    for key in file:
        module, role = _split(lora, key)
        layer = places.get(module)
        if role is None or layer is None:
            homeless.append(key)
            continue
        changes.setdefault(layer, _Change(lora.weight)).factors[role] = key
        names[layer] = module
    made_for = lora_family(file)
    stranger = f"--lora {lora.file} was made for {made_for or 'another network'}, base {base.name!r} is {base.family}"
    if not changes:
        raise RequestError(
            f"{stranger}; none of its {len(file)} tensors has a place there; choose a LoRA of its family"
        )
    for layer, change in changes.items():
        factors = {role: _Shaped(file.shapes[key]) for role, key in change.factors.items()}
        problem = _problem(factors, shapes[layer])
        if problem:
            raise RequestError(f"{stranger}: at {names[layer]!r} {problem}; choose a LoRA of its family")
        change.scale = _peft_scale(file, layer, factors)
    if homeless:
        say(
            f"--lora {lora.file}: {len(homeless)} of {len(file)} tensors have no place in base {base.name!r} and are "
            f"left out, e.g. {homeless[0]}"
        )
    return changes


@dataclass(frozen=True)
class _Shaped:
    """A tensor of which the shape is known."""

    shape: tuple[int, ...]


def _problem(factors: dict[str, Any], shape: tuple[int, ...]) -> str | None:
    """Why these factors do not fit a weight of that shape."""
    whole = {role: each for role, each in factors.items() if role not in ("alpha", "dora", "diff_b")}
    if not whole and "diff_b" in factors:
        return None
    try:
        size = delta_size(whole)
    except (KeyError, IndexError) as reason:
        return f"it lacks {reason}"
    wanted = (shape[0], math.prod(shape[1:]))
    widened = (
        len(shape) == 4 and size[0] == wanted[0] and size[1] < wanted[1] and wanted[1] // math.prod(shape[2:]) == 9
    )
    return None if size == wanted or widened else f"it changes a weight of {size}, which is {wanted} there"


def _split(lora: Lora, key: str) -> tuple[str, str | None]:
    """The module's name in the file, and the role of the tensor; refused if the kind is one that is not read."""
    if old := _PROCESSOR.fullmatch(key):
        name = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}[old[2]]
        return f"{old[1]}.{name}", old[3]
    for role, ends in ROLES.items():
        for end in ends:
            if key.endswith(f".{end}"):
                return key.removesuffix(f".{end}"), role
    for end, kind in REFUSED.items():
        if key.endswith(f".{end}"):
            raise RequestError(f"--lora {lora.file} is of the kind {kind}; expected LoRA, LoCon, LoHa or LoKr")
    return key, None


def _peft_scale(file: TensorFile, layer: Layer, factors: dict[str, Any]) -> float | None:
    """peft keeps alpha in its config, which diffusers writes into the metadata; None: alpha is in the file, or 1."""
    if "alpha" in factors or "down" not in factors or "lora_adapter_metadata" not in file.metadata:
        return None
    component, module = layer
    try:
        stated = json.loads(file.metadata["lora_adapter_metadata"])
        alpha = stated.get(f"{component}.lora_alpha")
        patterns = stated.get(f"{component}.alpha_pattern") or {}
        for pattern, value in patterns.items():
            if re.fullmatch(rf"(.*\.)?{pattern}", module):
                alpha = value
        rank = factors["down"].shape[0]
        if alpha is None:
            return None
        return float(alpha) / (math.sqrt(rank) if stated.get(f"{component}.use_rslora") else rank)
    except (ValueError, AttributeError, TypeError, re.error):
        raise RequestError(f"{file.path}: its metadata lora_adapter_metadata is damaged; get it again") from None
