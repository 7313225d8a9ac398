"""Which ControlNet reads which maps: one each, or a net for several types (`models/map_hint.py`) all that are of its
types, joined into one hint. What is said of a control holds for a whole net, so that joined ones must agree in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.map_hint import map_hint

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from controlkit.generation.controls import Map
    from controlkit.generation.request import Control
    from controlkit.models.controlnets import ControlNet

_OF_A_NET = ("weight", "start", "end", "mode", "mask", "layers")


@dataclass(frozen=True)
class Reader:
    """A ControlNet as it is asked for, and the type it is asked to read: where none was said, its own one."""

    net: ControlNet
    type: str | None

    @staticmethod
    def of(net: ControlNet, type: str | None) -> Reader:
        if net.is_union and type and type not in net.conditions:
            raise RequestError(
                f"ControlNet {net.name!r} reads {_listed(net)}, and is asked for as {type}; say one of these, or none"
            )
        return Reader(net, type or net.condition)

    @property
    def types(self) -> tuple[str | None, ...]:
        """Of the maps that it can be given."""
        return (self.type,) if self.type or not self.net.is_union else self.net.conditions


def pair(controls: tuple[Control, ...], types: list[str | None], readers: list[Reader]) -> list[int]:
    """The number of the reader of each control, whose `types` are those that are known: by type, else by order."""
    if not any(reader.net.is_union for reader in readers) and len(controls) != len(readers):
        raise RequestError(
            f"{len(controls)} control maps, {len(readers)} ControlNets: expected as many --controlnet as --control"
        )
    left = [(number, type) for number, reader in enumerate(readers) for type in reader.types]
    found: dict[int, int] = {}
    for place, type in enumerate(types):
        if type and (match := next((slot for slot in left if slot[1] == type), None)):
            found[place] = match[0]
            left.remove(match)
    for place, control in enumerate(controls):
        if place not in found:
            slot = next((slot for slot in left if not readers[slot[0]].net.is_union), None)
            if slot is None:
                raise RequestError(_unread(control, types[place], readers))
            found[place] = slot[0]
            left.remove(slot)
    if idle := [reader for number, reader in enumerate(readers) if number not in found.values()]:
        raise RequestError(f"ControlNet {idle[0].net.name!r} is given no map; leave it out, or add --control FILE")
    numbers = [found[place] for place in range(len(controls))]
    for number in range(len(readers)):
        _check_agree([control for control, of in zip(controls, numbers, strict=True) if of == number], readers[number])
    return numbers


def hint_of(net: ControlNet, maps: list[Map], fitted: list[NDArray[Any]]) -> torch.Tensor:
    """(1, 3 * types, H, W): what a net for several types reads of the maps that it is given."""
    by_type = {control_map.type: pixels for control_map, pixels in zip(maps, fitted, strict=True) if control_map.type}
    return map_hint(net.conditions, by_type)[None]


def _check_agree(controls: list[Control], reader: Reader) -> None:
    for control in controls[1:]:
        for name in _OF_A_NET:
            one, other = (getattr(each, name) for each in (controls[0], control))
            if one != other:
                raise RequestError(
                    f"--control {controls[0].file} and {control.file} differ in {name} ({_shown(one)}, "
                    f"{_shown(other)}), and ControlNet {reader.net.name!r} joins them into one control; give both "
                    f"the same"
                )


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _unread(control: Control, type: str | None, readers: list[Reader]) -> str:
    read = "; ".join(f"ControlNet {each.net.name!r} reads {_listed(each.net)}" for each in readers if each.net.is_union)
    if type is None:
        example = next(each.net.conditions[0] for each in readers if each.net.is_union)
        return f"--control {control.file} does not say its type, and {read}; say it: --control {example}={control.file}"
    return f"--control {control.file} is a {type} map, and no ControlNet is left that reads one: {read}, one map each"


def _listed(net: ControlNet) -> str:
    return " and ".join(net.conditions)
