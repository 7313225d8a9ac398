"""The registry: a name, and the class that makes the annotator of that name.

A new annotator is one file with `@ANNOTATORS.register("name")` above a frozen dataclass, and its import in
`annotators/__init__.py`; every test over the registry then covers it.
"""

from __future__ import annotations

import dataclasses
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from annotators.contract import Annotator

T = TypeVar("T")


class Registry:
    """`@R.register(name)` adds, `R.create(name, low=80)` builds, iteration lists the names."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[Any]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Add a class under `name`; a name is given once."""

        def add(cls: type[T]) -> type[T]:
            if name in self._classes:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {self._classes[name]} and {cls}")
            self._classes[name] = cls
            return cls

        return add

    def create(self, name: str, **options: Any) -> Annotator:
        """The annotator of that name with those parameters; text is read as the parameter's type."""
        fields = self.parameters(name)
        for option in options:
            if option not in fields:
                raise ValueError(f"{self.kind} {name!r} has no parameter {option!r}: {_known(option, fields)}")
        typed = {option: _typed(f"{name}.{option}", value, fields[option]) for option, value in options.items()}
        annotator: Annotator = self._classes[name](**typed)
        return annotator

    def parameters(self, name: str) -> dict[str, type]:
        """The parameters of that annotator and their types."""
        hints = get_type_hints(self[name])
        return {field.name: hints[field.name] for field in dataclasses.fields(self[name])}

    def __getitem__(self, name: str) -> type[Any]:
        if name not in self._classes:
            raise ValueError(f"unknown {self.kind} {name!r}: {_known(name, self)}")
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)


ANNOTATORS = Registry("annotator")


def _typed(name: str, value: Any, kind: type) -> Any:
    """`value` as the parameter's type, or a refusal that names the parameter."""
    try:
        if kind is bool and isinstance(value, str):
            return {"true": True, "false": False}[value.lower()]
        return value if isinstance(value, kind) else kind(value)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{name}={value!r}: expected {kind.__name__}") from None


def _known(name: str, names: Iterable[str]) -> str:
    names = sorted(names)
    near = get_close_matches(name, names, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(names) or 'none'}"
