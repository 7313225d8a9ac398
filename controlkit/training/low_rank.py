"""Control-LoRA: the copy of the base's encoder learns as low-rank additions alone, what no UNet has learns in full.

A layer of the copy computes W_base + up @ down, where `up` begins at zero; the base's own weights, biases and norms
stay what they are. So the whole is a ControlNet like any other, and its small file holds what was learned
(`controlkit/models/formats/relative.py`), from which a run also goes on: the sums could not be undone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file

from controlkit.models.formats.reading import read_tensors
from controlkit.models.formats.relative import DOWN, UP, control_lora_file, control_lora_names, low_rank

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ADAPTER = "default"
_LEARNED = "control_lora.safetensors"
_OWN = "controlnet_"  # hint encoder and zero convolutions


class LowRankControlNet(ControlNetModel):  # type: ignore[misc]
    """A ControlNet with peft's layers in its copy of the encoder; made by `learn_at_low_rank`."""

    def whole(self) -> dict[str, torch.Tensor]:
        """The weights of the ControlNet that this one computes as."""
        state = {
            name.replace(".base_layer.", "."): value
            for name, value in self.state_dict().items()
            if ".lora_A." not in name and ".lora_B." not in name
        }
        for name, up, down in self._pairs():
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = weight + low_rank(up, down).reshape(weight.shape)
        return state

    def control_lora(self) -> dict[str, torch.Tensor]:
        """What the small file holds, under diffusers' names: pairs in the place of the weights that they add to."""
        tensors = self.whole()
        for name, up, down in self._pairs():
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{UP}": up, f"{name}.{DOWN}": down}
        return tensors

    def save_pretrained(self, folder: Path, **options: Any) -> None:
        """As a checkpoint holds it: the whole ControlNet for anybody, and the small file to go on from."""
        whole = ControlNetModel.from_config(self.config)
        whole.load_state_dict(self.whole())
        whole.save_pretrained(folder, **options)
        learned = control_lora_file(self.control_lora(), self.config)
        # Of several texts safetensors would write one or another first, and no two checkpoints would be equal.
        save_file({name: value.contiguous() for name, value in learned.items()}, folder / _LEARNED, {"format": "pt"})

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Take up what `save_pretrained` wrote, bit for bit."""
        learned = control_lora_names(read_tensors(folder / _LEARNED), self.config)
        for name, up, down in self._pairs():
            up.copy_(learned[f"{name}.{UP}"])
            down.copy_(learned[f"{name}.{DOWN}"])
        for name, parameter in self.named_parameters():
            if name.startswith(_OWN):
                parameter.copy_(learned[name])

    def _pairs(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """(module, up, down) of every layer that is added to."""
        for name, module in self.named_modules():
            if hasattr(module, "lora_A"):
                up, down = module.lora_B[_ADAPTER].weight, module.lora_A[_ADAPTER].weight
                yield name, up.detach(), down.detach()


def learn_at_low_rank(controlnet: ControlNetModel, rank: int, seed: int) -> None:
    """Make this very ControlNet one that learns so. `down` is random, a function of the seed."""
    from peft import LoraConfig

    layers = [
        name
        for name, module in controlnet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not name.startswith(_OWN)
    ]
    # A pattern of full names: by their ends alone, conv_in would be that of the hint encoder too.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules="|".join(map(re.escape, layers)))  # times alpha / r = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        controlnet.add_adapter(config, _ADAPTER)
    for name, parameter in controlnet.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith(_OWN))
    controlnet.__class__ = LowRankControlNet
