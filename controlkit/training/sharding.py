"""Weights in shares: under FSDP each process holds a slice of every tensor that learns.

What is saved, looked at and painted with is whole, and put together by all processes at once: each must call what is
here, at the same moment. So the files of such a run are those of any other.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from controlkit.training.config import TrainConfig

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""What is gathered for a forward pass, and let go behind it, one after the other."""


def cannot_be_shared(config: TrainConfig) -> Iterator[str]:
    """The settings that ask for what FSDP does not do."""
    if config.decoder:
        yield "decoder=true: FSDP shares the weights of one network, and the base's decoder is a second"
    if config.channels_last:
        yield "channels_last=true: FSDP shares weights that lie in rows"
    if config.optimizer != "adamw":
        yield f"optimizer={config.optimizer}: under FSDP adamw alone keeps its state in shares"
    if config.mixed_precision == "fp16":
        yield "mixed_precision=fp16: its scaled gradients are not shared; take bf16"


def without_weights(network: Any) -> Any:
    """A copy that knows the shapes of its tensors alone."""
    tensors: dict[int, torch.Tensor] = {
        id(each): torch.nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=each.requires_grad)
        for each in network.parameters()
    }
    tensors |= {id(each): torch.empty_like(each, device="meta") for each in network.buffers()}
    return copy.deepcopy(network, tensors)


def put_together(network: Any, empty: Any) -> Any:
    """The whole network, on each process: `empty`, as made by `without_weights`, filled with what lies in shares."""
    whole = without_weights(empty)
    whole.load_state_dict({name: whole_tensor(value) for name, value in network.state_dict().items()}, assign=True)
    return whole


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it is whole."""
    whole: torch.Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def local(value: torch.Tensor) -> torch.Tensor:
    """What of the tensor lies here: its storage, not a copy."""
    here: torch.Tensor = value.to_local() if hasattr(value, "to_local") else value
    return here


def share_of(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's share of a tensor that all have whole, cut as `like` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def share_out(average: Any, network: Any) -> None:
    """Cut the network's average as the network is cut."""
    for (name, whole), like in zip(list(average.named_parameters()), network.parameters(), strict=True):
        module, _, own = name.rpartition(".")
        share = torch.nn.Parameter(share_of(whole, like), requires_grad=False) if like.requires_grad else like
        setattr(average.get_submodule(module), own, share)


def whole_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer, with tensors in shares put together in the memory of the CPU."""
    state = optimizer.state_dict()
    return {
        **state,
        "state": {
            index: {
                name: whole_tensor(value).cpu() if hasattr(value, "full_tensor") else value
                for name, value in values.items()
            }
            for index, values in state["state"].items()
        },
    }
