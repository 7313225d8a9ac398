"""Sweeps: one setting through several values, or two against each other, since people compare by looking."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError, known

if TYPE_CHECKING:
    from controlkit.generation.request import Request

NAMES = ("weight", "cfg", "sampler", "seed", "steps", "strength", "hires-strength", "control-every")
MOST_PICTURES = 400

_WHOLE = ("seed", "steps", "control-every")


@dataclass(frozen=True)
class Sweep:
    """A setting and the values it takes."""

    name: str
    values: tuple[Any, ...]

    @staticmethod
    def parse(text: str) -> Sweep:
        """`NAME=FROM:TO:STEP`, TO among the values, or `NAME=a,b,c`."""
        name, equals, behind = text.partition("=")
        if not equals or not behind:
            raise RequestError(f"--sweep {text}: expected NAME=FROM:TO:STEP or NAME=a,b,c, e.g. weight=0:1.5:0.25")
        if name not in NAMES:
            raise RequestError(f"--sweep {text}: unknown setting {name!r}: {known(name, NAMES)}")
        if name == "sampler":
            return Sweep(name, tuple(behind.split(",")))
        separator = ":" if ":" in behind else ","
        try:
            numbers = [Decimal(part) for part in behind.split(separator)]
        except InvalidOperation:
            numbers = []
        if not numbers or not all(each.is_finite() for each in numbers) or (separator == ":" and len(numbers) != 3):
            raise RequestError(f"--sweep {text}: expected numbers, FROM:TO:STEP or a,b,c")
        if separator == ":":
            numbers = _steps(text, *numbers)
        if name in _WHOLE and any(number != int(number) for number in numbers):
            raise RequestError(f"--sweep {text}: {name} takes whole numbers")
        return Sweep(name, tuple(int(each) if name in _WHOLE else float(each) for each in numbers))

    @property
    def field(self) -> str:
        """As it is called in a request."""
        return self.name.replace("-", "_")

    @property
    def labels(self) -> list[str]:
        return [f"{self.name} {value if isinstance(value, str) else f'{value:g}'}" for value in self.values]

    def at(self, request: Request, value: Any) -> Request:
        """The request with this value; a weight is that of all its controls."""
        if self.name == "weight":
            if not request.controls:
                raise RequestError("--sweep weight: there is no control; give one with --control FILE")
            return replace(request, controls=tuple(replace(each, weight=value) for each in request.controls))
        if self.name == "hires-strength":
            if not request.hires:
                raise RequestError("--sweep hires-strength: there is no second pass; ask for one with --hires SCALE")
            return replace(request, hires=replace(request.hires, strength=value))
        if self.name == "strength" and request.upscale:
            return replace(request, upscale=replace(request.upscale, strength=value))
        return replace(request, **{self.field: value})


def _steps(text: str, first: Decimal, last: Decimal, step: Decimal) -> list[Decimal]:
    """Decimals, since 0.1 three times is not 0.3 in binary."""
    if step <= 0 or last < first:
        raise RequestError(f"--sweep {text}: expected FROM below TO and a STEP above 0")
    if (last - first) / step >= MOST_PICTURES:
        raise RequestError(f"--sweep {text}: more than {MOST_PICTURES} values; take a larger step")
    return [first + number * step for number in range(int((last - first) / step) + 1)]


def cells(request: Request, sweeps: list[Sweep]) -> list[list[Request]]:
    """Rows of requests: the first sweep goes across, the second down."""
    if len(sweeps) > 2:
        raise RequestError(f"{len(sweeps)} sweeps; expected at most two, one across and one down")
    if len({sweep.name for sweep in sweeps}) < len(sweeps):
        raise RequestError(f"--sweep {sweeps[0].name} is given twice; expected two settings")
    if request.num > 1:
        raise RequestError(f"--num {request.num}: a sweep paints one picture a cell; use --sweep seed=… for several")
    across, down = sweeps[0], sweeps[1] if len(sweeps) > 1 else None
    count = len(across.values) * (len(down.values) if down else 1)
    if count > MOST_PICTURES:
        raise RequestError(f"these sweeps make {count} pictures; expected at most {MOST_PICTURES}, take larger steps")
    rows = [down.at(request, value) for value in down.values] if down else [request]
    return [[across.at(row, value) for value in across.values] for row in rows]
