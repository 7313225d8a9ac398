"""ControlNets that know when to be silent: nothing is computed that does not count, and no bit of a picture changes.

diffusers' pipelines ask the ControlNet at every step: outside its window and at weight 0 too, to multiply the answer by
0, and its hint encoder, which works at full pixels, encodes the same map each time. Here the map is encoded once, and
a control that does not count is answered with nothing.

Under classifier-free guidance the pipeline's batch holds two halves, [without prompt, with prompt]. On request the
ControlNet is computed for the half with the prompt alone, at half the cost, and the other half is painted without
control, as in diffusers' guess mode but without its decay over the layers. Guidance then amplifies the control too.

What a ControlNet answers changes slowly from step to step. On request it is asked in every k-th step alone, and in
those between its last answer stands: the one saving here that changes the picture everywhere.

Compiled, weights are tensors, and silence is zeros of full size, known from the first answer: the graphs of ControlNet
and UNet are then the same for every weight and window, so that nothing is ever compiled again.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

from controlkit.generation.pipelines import nets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from controlkit.generation.tiles import Tile

    Residuals = tuple[list[Tensor] | None, Tensor | None]  # of the encoder's layers, of the middle block; None: nothing


def silenced(controlnets: list[Any]) -> Any:
    """These very ControlNets, not copies, as a pipeline takes them; from now on they compute only what counts."""
    for net in controlnets:
        net.__class__ = SilentControlNet
        net.half, net.compiled, net.zeros = Memo(), None, {}
        net.controlnet_cond_embedding.__class__ = RememberingHintEncoder
        net.controlnet_cond_embedding.encoded = Memo()
    return controlnets[0] if len(controlnets) == 1 else SilentControlNets(controlnets)


def control_conditional_half(pipeline: Any) -> None:
    """Compute the pipeline's silenced ControlNets for the half with the prompt alone, wherever it guides."""
    for net in nets_of(pipeline):
        net.is_guided = lambda: pipeline.do_classifier_free_guidance


def control_both_halves(pipeline: Any) -> None:
    """As at first: what `control_conditional_half` asked for ends, since others may paint with these ControlNets."""
    for net in nets_of(pipeline):
        net.is_guided = None


@contextmanager
def asked_every(pipeline: Any, steps: int) -> Iterator[None]:
    """The pipeline's silenced ControlNets answer anew in every so-manieth step of their window, as long as the block
    lasts, which is to hold one walk."""
    nets = nets_of(pipeline)
    for net in nets:
        net.standing = StandingAnswer(steps)
    try:
        yield
    finally:
        for net in nets:
            net.standing = None


class StandingAnswer:
    """An answer that stands for so many calls, its own among them, if these are asked alike."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self._left = 0
        self._asked: Any = None
        self._answer: Any = None

    def __call__(self, asked: Any, compute: Callable[[], Any]) -> Any:
        if self._left == 0 or asked != self._asked:
            self._answer, self._asked, self._left = compute(), asked, self.calls
        self._left -= 1
        return self._answer


class Memo:
    """The last answer of a function of one tensor, kept while that very tensor and `state` stay as they are."""

    def __init__(self) -> None:
        self._asked: tuple[Any, ...] = (None,)
        self._answer: Any = None

    def __call__(self, tensor: Tensor, compute: Callable[[Tensor], Tensor], state: Any = None) -> Tensor:
        if tensor.is_inference():  # knows no version: whether it was changed cannot be told
            return compute(tensor)
        asked = (tensor, tensor._version, state)  # the tensor itself, so that no other can take its place in memory
        if asked[0] is not self._asked[0] or asked[1:] != self._asked[1:]:
            self._answer = compute(tensor)
            self._asked = asked
        answer: Tensor = self._answer
        return answer


class RememberingHintEncoder(ControlNetConditioningEmbedding):  # type: ignore[misc]
    """Encodes a map once, however often it is called with it."""

    encoded: Memo

    def forward(self, conditioning: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            with_graph: Tensor = super().forward(conditioning)
            return with_graph
        weights = [(parameter.data_ptr(), parameter._version) for parameter in self.parameters()]
        return self.encoded(conditioning, super().forward, weights)


class SilentControlNet(ControlNetModel):  # type: ignore[misc]
    """diffusers' ControlNet, computed only where its weight is not 0; made by `silenced`."""

    is_guided: Callable[[], bool] | None = None
    """If set: asked at each step whether the batch holds two halves, of which the second alone is computed."""
    tile: Tile | None = None
    """Which part of the picture it is asked for; None: all of it."""
    standing: StandingAnswer | None = None
    """If set: what it answered before may stand for some of its answers."""
    half: Memo
    compiled: Callable[..., Any] | None
    zeros: dict[tuple[Any, ...], Residuals]

    def compile(self, **options: Any) -> None:
        """Compile what computes; whether it does, and the encoding of the map, stay outside."""
        encoder = self.controlnet_cond_embedding
        encoder.forward = torch.compiler.disable(encoder.forward)  # type: ignore[no-untyped-call]
        self.compiled = torch.compile(super().forward, **options)

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float = 1.0,
        *,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        """As the pipelines call it; asked for a dict, as nobody paints, it always computes."""
        half = self.is_guided is not None and self.is_guided() and not guess_mode  # guess mode hands over a half itself
        silent = conditioning_scale == 0 and not return_dict
        shape = (sample.shape, sample.dtype, sample.device, guess_mode, half)
        if silent and self.compiled is None:
            return self.silence(sample, guess_mode)
        if silent and shape in self.zeros:
            return self.zeros[shape]
        compute = partial(
            self._computed,
            sample,
            timestep,
            encoder_hidden_states,
            controlnet_cond,
            conditioning_scale,
            half=half,
            added_cond_kwargs=added_cond_kwargs,
            guess_mode=guess_mode,
            return_dict=return_dict,
            **others,
        )
        if silent or return_dict or self.standing is None:
            answer = compute()
        else:
            answer = self.standing((shape, conditioning_scale), compute)
        if self.compiled is not None and not return_dict:
            self.zeros.setdefault(shape, ([torch.zeros_like(each) for each in answer[0]], torch.zeros_like(answer[1])))
        return self.zeros[shape] if silent else answer

    def _computed(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: float,
        *,
        half: bool,
        added_cond_kwargs: dict[str, Tensor] | None,
        **others: Any,
    ) -> Any:
        """The answer, of two halves the second alone."""
        if half:
            sample, encoder_hidden_states = _second(sample), _second(encoder_hidden_states)
            controlnet_cond = self.half(controlnet_cond, _second)  # one view for all steps, for the encoder to know it
            if added_cond_kwargs is not None:
                added_cond_kwargs = {name: _second(value) for name, value in added_cond_kwargs.items()}
        compute: Callable[..., Any] = super().forward
        scale: Tensor | float = conditioning_scale
        if self.compiled is not None:  # a number would be compiled into the graph, a tensor is handed to it
            compute, scale = self.compiled, torch.full((), conditioning_scale, device=sample.device)
        answer = compute(
            sample,
            timestep,
            encoder_hidden_states,
            controlnet_cond,
            scale,
            added_cond_kwargs=added_cond_kwargs,
            **others,
        )
        if half:
            answer = [behind_zeros(each) for each in answer[0]], behind_zeros(answer[1])
        return answer

    def silence(self, sample: Tensor, guess_mode: bool) -> Residuals:
        """What a pipeline takes for "add nothing" to this batch."""
        if not guess_mode:
            return None, None
        # Here the pipeline puts zeros beside the answer, and so needs tensors; one cell is added to all alike.
        nothing = sample.new_zeros(len(sample), 1, 1, 1)
        return [nothing for _ in self.controlnet_down_blocks], nothing


class SilentControlNets(MultiControlNetModel):  # type: ignore[misc]
    """Several silent ControlNets; only those that count are asked, and their answers added."""

    def forward(
        self,
        sample: Tensor,
        timestep: Any,
        encoder_hidden_states: Tensor,
        controlnet_cond: list[Tensor],
        conditioning_scale: list[float],
        *,
        guess_mode: bool = False,
        return_dict: bool = False,
        **others: Any,
    ) -> Residuals:
        """As the pipelines call it: they take no dict of several."""
        total: Residuals | None = None
        for net, hint, scale in zip(self.nets, controlnet_cond, conditioning_scale, strict=True):
            if scale == 0:
                continue
            answer = net(
                sample,
                timestep,
                encoder_hidden_states,
                hint,
                scale,
                guess_mode=guess_mode,
                return_dict=False,
                **others,
            )
            total = answer if total is None else _added(total, answer)
        if total is None:
            total = self.nets[0](
                sample,
                timestep,
                encoder_hidden_states,
                controlnet_cond[0],
                0.0,
                guess_mode=guess_mode,
                return_dict=False,
                **others,
            )
        return total


def _second(batch: Tensor) -> Tensor:
    """The half with the prompt."""
    return batch.chunk(2)[1]


def behind_zeros(half: Tensor) -> Tensor:
    """Both halves, of which the one without the prompt gets nothing."""
    return torch.cat([torch.zeros_like(half), half])


def _added(one: Any, other: Any) -> Residuals:
    return [mine + theirs for mine, theirs in zip(one[0], other[0], strict=True)], one[1] + other[1]
