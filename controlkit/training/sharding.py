"""What learns, in shares: under FSDP each process holds a slice of weights, gradients and optimizer, under DeepSpeed's
ZeRO of gradients and optimizer alone.

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

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Of AdamW, the optimizer that is shared out."""


def cannot_be_shared(config: TrainConfig, how: str) -> Iterator[str]:
    """The settings that ask for what FSDP or DeepSpeed does not do."""
    if config.decoder:
        yield f"decoder=true: {how} shares out one network, and the base's decoder is a second; leave it out"
    if config.channels_last:
        yield f"channels_last=true: {how} shares out weights that lie in rows; take channels_last=false"
    if config.optimizer != "adamw":
        yield f"optimizer={config.optimizer}: under {how} adamw alone has its state in shares; take adamw"
    if config.mixed_precision == "fp16":
        yield f"mixed_precision=fp16: {how} is given no scaled gradients; take bf16"
    if config.compile:
        yield f"compile=true: {how} gathers and lets go between the layers that would become one; take compile=false"


def without_weights(network: Any) -> Any:
    """A copy that knows the shapes of its tensors alone."""
    tensors: dict[int, torch.Tensor] = {
        id(each): torch.nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=each.requires_grad)
        for each in network.parameters()
    }
    tensors |= {id(each): torch.empty_like(each, device="meta") for each in network.buffers()}
    return copy.deepcopy(network, tensors)


def put_together(network: Any, empty: Any, *, here: bool = True, device: str | None = None) -> Any:
    """The whole network on the processes that want it `here`, None on the others: `empty`, as made by
    `without_weights`, filled with what lies in shares. On `device`, or where the shares are."""
    state = {}
    for name, value in network.state_dict().items():
        tensor = whole_tensor(value)
        if here:
            state[name] = tensor.to(device)
    if not here:
        return None
    whole = without_weights(empty)
    whole.load_state_dict(state, assign=True)
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


class OptimizerState:
    """What an optimizer knows beside the weights; given and taken whole."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def give(self, *, here: bool) -> dict[str, Any]:
        """As the optimizer of one process would tell it, on the process that wants it; what lay in shares is in the
        memory of the CPU."""
        state = self.optimizer.state_dict()
        whole: dict[int, dict[str, Any]] = {}
        for index, values in state["state"].items():
            for name, value in values.items():
                found = whole_tensor(value) if hasattr(value, "full_tensor") else None
                if here:
                    whole.setdefault(index, {})[name] = value if found is None else found.cpu()
        return {**state, "state": whole}

    def take(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        for index, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    values[name] = share_of(value, parameters[index])
        self.optimizer.load_state_dict(state)
        _lay_out_like_parameters(self.optimizer)


class ZeroState(OptimizerState):
    """Under ZeRO: each process keeps the state of a stretch of all parameters, laid end to end."""

    def __init__(self, optimizer: torch.optim.Optimizer, zero: Any, parameters: list[torch.nn.Parameter]) -> None:
        super().__init__(optimizer)
        self.zero, self.parameters = zero, parameters

    def give(self, *, here: bool) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        (group,) = self.optimizer.param_groups
        (stretch,) = group["params"]
        step = self.optimizer.state[stretch]["step"]
        state: dict[int, dict[str, Any]] = {}
        for index, parameter in enumerate(self.parameters):
            for name in MOMENTS:
                whole = safe_get_full_optimizer_state(parameter, name)
                if here:
                    state.setdefault(index, {"step": step})[name] = whole.cpu()
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self.parameters)))}]}

    def take(self, state: dict[str, Any]) -> None:
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

        (group,), (saved,) = self.optimizer.param_groups, state["param_groups"]
        group.update({name: value for name, value in saved.items() if name != "params"})
        (stretch,) = group["params"]
        step = state["state"][0]["step"].to(stretch.device)
        self.optimizer.state[stretch] = {"step": step, **{name: torch.zeros_like(stretch) for name in MOMENTS}}
        (parameters,) = self.zero.bit16_groups
        lazy_init_hp_params_optimizer_state(parameters, stretch, self.optimizer.state)
        for index, parameter in enumerate(self.parameters):
            for name in MOMENTS:
                value = state["state"][index][name].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, name)


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Files hold rows; fused optimizers walk over weight and state side by side in memory, whatever their strides."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
