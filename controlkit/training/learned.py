"""What a run trains: the ControlNet, the base's decoder where it is unlocked, and moving averages of both.

Each network is named as it is saved: `controlnet`, `unet`. An average shares what does not learn with its network.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from controlkit.files import atomic_folder
from controlkit.models.controlnets import save_controlnet
from controlkit.models.formats.convert import save_control_lora
from controlkit.training.loop import AVERAGE, follow
from controlkit.training.low_rank import LowRankControlNet, learn_at_low_rank
from controlkit.training.samples import for_use
from controlkit.training.sharding import (
    OptimizerState,
    ZeroState,
    put_together,
    share_out,
    without_weights,
)
from controlkit.training.speed import autocast, precision

if TYPE_CHECKING:
    from pathlib import Path

    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from diffusers import ControlNetModel, UNet2DConditionModel

    from controlkit.training.config import TrainConfig


_SHARED_BY = {"FSDP": "FSDP", "DEEPSPEED": "DeepSpeed"}


class Learned:
    """The networks of a run that learn, by name."""

    def __init__(self, config: TrainConfig, controlnet: ControlNetModel, unet: UNet2DConditionModel) -> None:
        self.decay = config.ema
        self.networks: dict[str, Any] = {"controlnet": controlnet}
        if config.control_lora:
            learn_at_low_rank(controlnet, config.control_lora, config.seed)
        if config.only_mid_control:
            keep_middle_alone(controlnet)
        if config.decoder:
            unlock_decoder(unet)
            self.networks["unet"] = unet
        self.averages = {name: average_of(net) for name, net in self.networks.items()} if config.ema else {}
        self.precision = precision(config)
        self.shared_by: str | None = None
        self._empty: dict[str, Any] = {}  # what whole copies are made of, where weights lie in shares

    def parameters(self) -> list[torch.nn.Parameter]:
        return [each for net in self.networks.values() for each in net.parameters() if each.requires_grad]

    def prepare(
        self, accelerator: Accelerator, optimizer: torch.optim.Optimizer
    ) -> tuple[dict[str, torch.nn.Module], AcceleratedOptimizer]:
        """The networks by name, and the optimizer, as accelerate wraps them. Where what learns lies in shares from here
        on, `saved`, `result` and the optimizer's state are asked for by all processes at once."""
        kind = accelerator.distributed_type.value
        self.shared_by = _SHARED_BY.get(kind)
        empty = {name: without_weights(net) for name, net in self.networks.items()} if kind == "FSDP" else {}
        if kind == "DEEPSPEED":
            for net in self.networks.values():
                net.forward = autocast(accelerator.device, self.precision)(net.forward)
        *wrapped, stepping = accelerator.prepare(*self.networks.values(), optimizer)
        self._empty = empty
        for name, average in self.averages.items() if empty else ():
            share_out(average, self.networks[name])
        self.optimizer = OptimizerState(optimizer)
        if kind == "DEEPSPEED":
            self.optimizer = ZeroState(optimizer, stepping.optimizer, self.parameters())
        return dict(zip(self.networks, wrapped, strict=True)), stepping

    def saved(self, *, here: bool = True) -> dict[str, Any]:
        """What a checkpoint holds; whole on the process that writes it, which alone needs it."""
        held = {**self.networks, **{name + AVERAGE: average for name, average in self.averages.items()}}
        if not self._empty:
            return held
        return {
            name: put_together(net, self._empty[name.removesuffix(AVERAGE)], here=here, device="cpu")
            for name, net in held.items()
        }

    def result(self) -> dict[str, Any]:
        """What is sampled from and handed over: the averages, where they are kept."""
        return {name: self._whole(name, self.averages.get(name, net)) for name, net in self.networks.items()}

    def _whole(self, name: str, network: Any) -> Any:
        return put_together(network, self._empty[name]) if self._empty else network

    def follow(self, step: int) -> None:
        """Behind a step of the optimizer."""
        follow(self.averages, self.networks, self.decay, step)


def keep_middle_alone(controlnet: ControlNetModel) -> None:
    """Control enters at the middle block alone (the original's only_mid_control).

    The zero convolutions of the skips stay zero for ever, which is the same and needs no setting wherever the net is
    used later.
    """
    for parameter in controlnet.controlnet_down_blocks.parameters():
        torch.nn.init.zeros_(parameter.requires_grad_(False))


def unlock_decoder(unet: UNet2DConditionModel) -> None:
    """The base's decoder learns too, in float32 (the original's sd_locked=False: output blocks and `out`)."""
    for part in (unet.up_blocks, unet.conv_norm_out, unet.conv_out):
        if part is not None:
            part.float().requires_grad_(True)


def average_of(network: Any) -> Any:
    """A copy that is to follow the network; what does not learn is shared."""
    shared = {id(each): each for each in network.parameters() if not each.requires_grad}
    return copy.deepcopy(network, shared).requires_grad_(False).eval()


def save_result(result: dict[str, Any], folder: Path, notes: dict[str, Any]) -> None:
    """`controlnet/`, and `unet/` where the decoder learned, in diffusers' layout and float32; of a Control-LoRA its
    small file too."""
    controlnet = result["controlnet"]
    if isinstance(controlnet, LowRankControlNet):
        path = folder / f"control_lora_{notes['condition']}.safetensors"
        save_control_lora(controlnet.control_lora(), controlnet.config, notes["condition"], path)
        controlnet = for_use(controlnet, torch.float32)
    save_controlnet(controlnet, folder / "controlnet", notes)
    if "unet" in result:
        with atomic_folder(folder / "unet") as unfinished:
            for_use(result["unet"], torch.float32).save_pretrained(unfinished, safe_serialization=True)
