"""How much memory a step will take, told before a weight is loaded.

The networks are built from their configs on the meta device, where tensors have shapes and no contents, and a step's
forward pass runs over them: what autograd would keep for the backward pass is counted. Counted too is what automatic
mixed precision and fused attention make of it on a GPU. Not counted: CUDA's own context (about 0.5 GB), what the
allocator wastes, and the VAE at work, whose peak comes where little else is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from controlkit.models.controlnets import make_controlnet
from controlkit.models.map_hint import CHANNELS
from controlkit.models.quiet import quiet_libraries
from controlkit.training.config import TrainConfig, resolution
from controlkit.training.learned import Learned
from controlkit.training.objective import predict
from controlkit.training.speed import precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from controlkit.models.bases import Base


@dataclass(frozen=True)
class Forecast:
    """Bytes on one device at the fullest moment of a step."""

    base: int  # UNet, VAE and text encoders
    learned: int  # the ControlNet, and averages
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def in_shares(self, shared_by: str, processes: int) -> Forecast:
        """Where what learns is shared out over so many processes: under FSDP all of it, under DeepSpeed its gradients
        and optimizer, which then keeps weights of its own."""
        whole = shared_by == "DeepSpeed"
        return Forecast(
            base=self.base,
            learned=self.learned if whole else _share(self.learned, processes),
            gradients=_share(self.gradients, processes),
            optimizer=_share(self.optimizer + (self.gradients if whole else 0), processes),
            activations=self.activations,
        )


def forecast(config: TrainConfig, base: Base) -> Forecast:
    """What a run with this config holds on each of its devices."""
    quiet_libraries()
    import diffusers
    import transformers

    dtype = precision(config)
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(base.unet).to(dtype).requires_grad_(False)
        others: list[Any] = [diffusers.AutoencoderKL.from_config(base.vae)]
        for suffix in base.text_parts():
            kind = getattr(transformers, base.index[f"text_encoder{suffix}"][1])
            others.append(kind(kind.config_class(**_text_config(base, suffix))))
        controlnet = make_controlnet(
            unet,
            vae_factor=base.vae_factor,
            latent_channels=base.latent_channels,
            seed=config.seed,
            types=len(config.data.condition),
        ).float()
        nets = Learned(config, controlnet, unet)
        activations = _activations(config, base, unet, controlnet)
    known = {id(each) for net in nets.networks.values() for each in net.parameters()}
    averages = [each for net in nets.averages.values() for each in net.parameters() if id(each) not in known]
    learning = nets.parameters()
    return Forecast(
        base=_bytes(unet.parameters()) + sum(net.num_parameters() for net in others) * dtype.itemsize,
        learned=_bytes(controlnet.parameters()) + _bytes(averages),
        gradients=_bytes(learning),
        optimizer=sum(state_bytes(config.optimizer, each.shape) for each in learning),
        activations=activations,
    )


def state_bytes(optimizer: str, shape: torch.Size) -> int:
    """What the optimizer keeps for a float32 weight of that shape."""
    size = shape.numel()
    match optimizer:
        case "adamw":
            return 8 * size  # two moments
        case "lion":
            return 4 * size  # one
        case "adamw8bit":
            return 2 * size if size >= 4096 else 8 * size  # bitsandbytes leaves small ones in float32
        case "adafactor":
            return 4 * (size // shape[-1] + size // shape[-2]) if len(shape) > 1 else 4 * size
        case _:
            raise ValueError(f"nothing is known of the state of optimizer {optimizer!r}")


def _activations(config: TrainConfig, base: Base, unet: Any, controlnet: Any) -> int:
    """Bytes that one forward pass keeps for the backward pass, and the largest part that is computed again in it."""
    kept = Kept([*unet.parameters(), *controlnet.parameters()])
    if config.gradient_checkpointing:
        for network in (unet, controlnet):
            network.enable_gradient_checkpointing(kept.recomputed)
    dtype, size, rows = precision(config), resolution(config, base), config.batch_size
    low = dtype if dtype != torch.float32 else None
    models: Any = SimpleNamespace(
        controlnet=_on_gpu(controlnet, low), unet=_on_gpu(unet, low if config.decoder else None), dtype=dtype
    )
    tokens = _text_config(base, "")["max_position_embeddings"]
    text: dict[str, Any] = {"encoder_hidden_states": torch.zeros(rows, tokens, base.unet["cross_attention_dim"])}
    if base.is_xl:
        pooled = base.unet["projection_class_embeddings_input_dim"] - 6 * base.unet["addition_time_embed_dim"]
        text["added_cond_kwargs"] = {"text_embeds": torch.zeros(rows, pooled), "time_ids": torch.zeros(rows, 6)}
    x_t = torch.zeros(rows, base.latent_channels, size // base.vae_factor, size // base.vae_factor)
    with kept:
        hint = torch.zeros(rows, CHANNELS * len(config.data.condition), size, size)
        predicted = predict(models, x_t, torch.zeros(rows), hint, text)
        F.mse_loss(predicted.float(), torch.zeros_like(x_t))
    return kept.bytes + kept.largest


class Kept:
    """Counts what autograd saves while it is entered: each tensor's memory once, parameters not at all."""

    def __init__(self, parameters: Iterable[torch.Tensor]) -> None:
        self.bytes = 0
        self.largest = 0  # of what is computed again, the most that is held at once
        self._parameters = {_memory(each) for each in parameters}
        self._seen: dict[int, torch.Tensor] = {}  # held, lest another tensor come to lie where one was
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *reason: object) -> None:
        self._hooks.__exit__(*reason)

    def add(self, tensor: torch.Tensor) -> None:
        memory = _memory(tensor)
        if memory not in self._parameters and memory not in self._seen:
            self._seen[memory] = tensor
            self.bytes += tensor.untyped_storage().nbytes()

    def recomputed(self, module: Any, *arguments: Any) -> Any:
        """In the place of gradient checkpointing: its inputs are kept, what it saves is there only for a while."""
        inside = Kept([])
        inside._parameters = self._parameters
        with inside:
            result = module(*arguments)
        if _first(result).requires_grad:
            for each in arguments:
                if isinstance(each, torch.Tensor):
                    self.add(each)
            self.largest = max(self.largest, inside.bytes + inside.largest)
        return result

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.add(tensor)
        return tensor


class _OnGpu(TorchFunctionMode):
    """What runs on a GPU in the place of what is called: attention that keeps no matrix of scores, and, with a low
    precision, automatic mixed precision: products in it, normalisations in float32."""

    def __init__(self, low: torch.dtype | None) -> None:
        super().__init__()
        self.low = low

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.low is not None:
            if func in (F.conv2d, F.linear, F.scaled_dot_product_attention):
                args, kwargs = _in(self.low, args), _in(self.low, kwargs)
            elif func in (F.group_norm, F.layer_norm):
                args, kwargs = _in(torch.float32, args), _in(torch.float32, kwargs)
        if func is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*args[:3])
        return func(*args, **kwargs)


class _FusedAttention(torch.autograd.Function):
    """Shapes alone: keeps its inputs, its output and a number for each row of scores."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result, torch.empty(query.shape[:-1], dtype=torch.float32))
        return result


def _on_gpu(network: Any, low: torch.dtype | None) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        with _OnGpu(low):
            return network(*arguments, **named)

    return call


def _in(dtype: torch.dtype, values: Any) -> Any:
    if isinstance(values, torch.Tensor):
        return values.to(dtype) if values.is_floating_point() else values
    if isinstance(values, dict):
        return {name: _in(dtype, value) for name, value in values.items()}
    return tuple(_in(dtype, value) for value in values) if isinstance(values, tuple) else values


def _text_config(base: Base, suffix: str) -> dict[str, Any]:
    return base.config(f"text_encoder{suffix}")


def _share(size: int, processes: int) -> int:
    return -(-size // processes)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _memory(tensor: torch.Tensor) -> int:
    memory: int = tensor.untyped_storage()._cdata
    return memory


def _first(result: Any) -> torch.Tensor:
    first: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return first
