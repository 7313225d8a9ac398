"""Maps made while training, with parameters drawn anew for each row and epoch: so a net learns not to hang on one
threshold. For annotators that need no network; what a network makes is better made once, by `controlkit annotate`."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from annotators import ANNOTATORS
from controlkit.errors import RequestError, known

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray


DRAWN_MASKS = ("shapes=any", "least=0.05", "most=0.8")
"""Of every kind and size: the masks that an inpainting net learns with where nothing else is said."""


@dataclass(frozen=True)
class FreshMaps:
    """`fixed` and `ranges` are parameters of the annotator of type `condition`. One that has a `seed` gets it drawn."""

    condition: str
    fixed: dict[str, str]
    ranges: dict[str, tuple[float, float]]

    @staticmethod
    def of(condition: str, settings: Sequence[str]) -> FreshMaps:
        """From "name=value" and "name=low..high"; refused in one line if the annotator would refuse a draw."""
        if condition not in ANNOTATORS:
            raise RequestError(f"data.annotate: no annotator makes {condition!r}: {known(condition, ANNOTATORS)}")
        if hasattr(ANNOTATORS[condition], "needs"):
            raise RequestError(
                f"data.annotate: {condition} needs a network; make its maps once: annotate --type {condition}"
            )
        fixed, ranges = {}, {}
        for setting in settings:
            name, equals, value = setting.partition("=")
            low, dots, high = value.partition("..")
            if not equals or not name:
                raise RequestError(f"data.annotate={setting}: expected name=value or name=low..high, e.g. low=50..150")
            if not dots:
                fixed[name] = value
                continue
            try:
                ranges[name] = float(low), float(high)
            except ValueError:
                raise RequestError(f"data.annotate={setting}: expected two numbers, e.g. {name}=50..150") from None
        maps = FreshMaps(condition, fixed, ranges)
        for corner in product((0.0, 1.0), repeat=len(ranges)):
            drawn = {"seed": 0.0, **dict(zip(ranges, corner, strict=True))}
            try:
                ANNOTATORS.create(condition, **maps.options(drawn.__getitem__))
            except ValueError as reason:
                raise RequestError(f"data.annotate={','.join(settings)}: {reason}") from None
        return maps

    @staticmethod
    def of_each(types: Sequence[str], settings: Sequence[str]) -> dict[str, FreshMaps]:
        """By type those that are made. Of several types these are named: "type", "type.name=value"; without a setting
        it is all of them."""
        if len(types) == 1:
            return {types[0]: FreshMaps.of(types[0], settings)}
        of_type: dict[str, list[str]] = {}
        for setting in settings:
            type, dot, own = setting.partition(".")
            if type not in types:
                raise RequestError(
                    f"data.annotate={setting}: expected one of data.condition, e.g. {types[0]} or {types[0]}.name=value"
                )
            of_type.setdefault(type, []).extend([own] if dot else [])
        return {type: FreshMaps.of(type, of_type.get(type, [])) for type in types if type in of_type or not settings}

    def options(self, uniform: Callable[[str], float]) -> dict[str, Any]:
        """The parameters, from a number in [0, 1) for each that is drawn."""
        kinds = ANNOTATORS.parameters(self.condition)
        drawn: dict[str, Any] = dict(self.fixed)
        for name, (low, high) in self.ranges.items():
            value = low + (high - low) * uniform(name)
            drawn[name] = round(value) if kinds.get(name) is int else value
        if "seed" in kinds and "seed" not in drawn:
            drawn["seed"] = int(uniform("seed") * 2**31)
        return drawn

    def make(self, image: NDArray[np.uint8], uniform: Callable[[str], float]) -> NDArray[np.uint8]:
        """The map of a picture."""
        return ANNOTATORS.create(self.condition, **self.options(uniform))(image)
