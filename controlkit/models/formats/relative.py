"""ControlNets that a file holds as what they add to a base: Control-LoRAs and "difference" files.

The hint encoder and the zero convolutions are in the file whole. What a ControlNet shares with the UNet it is a copy of
is there
    difference      W - W_base, without the tensors that hardly moved
    Control-LoRA    of low rank: W = W_base + reshape(up.flatten(1) @ down.flatten(1)), with no alpha; or whole
and whatever is not in the file is the base's own. So the same file is another ControlNet on another base. Sums are made
in float32, whatever the file and the base are kept in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.bases import Base, family
from controlkit.models.formats import detect
from controlkit.models.formats.configs import hint_config
from controlkit.models.formats.single_file import empty_model
from controlkit.models.formats.unet import controlnet_from_ldm, controlnet_to_ldm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from controlkit.models.formats.names import Tensors, Value
    from controlkit.models.formats.reading import Shape

    Shapes = Mapping[str, Shape]

UP, DOWN = "up", "down"
_OWN = "controlnet_"  # what no UNet has begins with it
_LORA_MARK = "lora_controlnet"
_MARKS = (_LORA_MARK, "difference")


def without_marks(values: Mapping[str, Value]) -> dict[str, Value]:
    """What of such a file belongs to the network."""
    return {name: value for name, value in values.items() if name not in _MARKS}


def control_lora_names(file: Mapping[str, Value], config: dict[str, Any]) -> dict[str, Value]:
    """A Control-LoRA's file under diffusers' names."""
    return controlnet_from_ldm(without_marks(file), config)


def control_lora_file(tensors: Tensors, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The way back: as Stability AI published theirs."""
    import torch

    return {_LORA_MARK: torch.zeros(0), **controlnet_to_ldm(tensors, config)}


def stated_family(shapes: Shapes) -> str | None:
    """The family that it was made for, by the width of the text; None where nothing in the file reads texts."""
    for name, shape in shapes.items():
        if name.endswith(("attn2.to_k.weight", f"attn2.to_k.{DOWN}")):
            xl = any(other.startswith("label_emb.") for other in shapes)
            return family({"cross_attention_dim": shape[1], "addition_embed_type": "text_time" if xl else None})
    return None


def config_on(base: Base, shapes: Shapes) -> dict[str, Any]:
    """The config of the ControlNet that the file makes with this base."""
    from accelerate import init_empty_weights
    from diffusers import ControlNetModel

    hint = hint_config(shapes, ldm=True)
    with init_empty_weights():
        net = ControlNetModel.from_unet(
            empty_model("unet", base.unet),
            conditioning_embedding_out_channels=tuple(hint["conditioning_embedding_out_channels"]),
            conditioning_channels=hint["conditioning_channels"],
            load_weights_from_unet=False,
        )
    stated = {name: value for name, value in net.config.items() if not name.startswith("_")}
    return {**stated, "in_channels": base.latent_channels}


def check_shapes(shapes: Shapes, config: dict[str, Any], what: str, base: str) -> None:
    """Refuse a file (under diffusers' names) of which a tensor is misshapen beside that base, or missing."""
    wanted = {name: tuple(value.shape) for name, value in empty_model("controlnet", config).state_dict().items()}
    if missing := sorted(name for name in wanted if name.startswith(_OWN) and name not in shapes):
        raise RequestError(f"{what} lacks {len(missing)} tensors of a ControlNet, e.g. {missing[0]!r}; get it again")
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        whole = wanted.get(f"{module}.weight" if kind in (UP, DOWN) else name)
        if (kind == DOWN and f"{module}.{UP}" not in shapes) or (kind == UP and f"{module}.{DOWN}" not in shapes):
            raise RequestError(f"{what} holds half of a low-rank pair, {name!r}; get it again")
        if whole is None:
            raise RequestError(f"{what} holds {name!r}, which no ControlNet of base {base!r} has; choose its own base")
        fits = {UP: shape[:1] == whole[:1], DOWN: shape[1:] == whole[1:]}.get(kind, shape == whole)
        if not fits:
            raise RequestError(
                f"{what}: {name!r} has shape {shape}, base {base!r} has {whole} there; choose the base that it was "
                f"made for"
            )


def added_up(kind: str, file: Tensors, base: Base, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of the ControlNet in float32, from those of the file under diffusers' names and the base's."""
    of_base = base.tensors("unet")
    whole = {}
    for name in empty_model("controlnet", config).state_dict():
        module, _, _ = name.rpartition(".")
        if name.startswith(_OWN) or (name in file and kind == detect.CONTROL_LORA):
            whole[name] = file[name].float()
            continue
        start = of_base[name].float()
        if name == "conv_in.weight":
            start = start[:, : config["in_channels"]]
        if name in file:
            start = start + file[name].float()
        elif name.endswith(".weight") and f"{module}.{UP}" in file:
            start = start + low_rank(file[f"{module}.{UP}"], file[f"{module}.{DOWN}"]).reshape(start.shape)
        whole[name] = start
    return whole


def low_rank(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """(o, ...): the product of a pair, of linear layers and convolutions alike."""
    return up.float().flatten(1) @ down.float().flatten(1)
