"""The registry: control types, the backends of each, and the class that makes an annotator of them.

A new annotator is one file with `@ANNOTATORS.register("type")` above a frozen dataclass, and its import in
`annotators/__init__.py`; another way of making the same type is `@ANNOTATORS.register("type", backend="name")`. Every
test over the registry then covers it.
"""

from __future__ import annotations

import dataclasses
import types
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from annotators.contract import Annotator

T = TypeVar("T")

UNNAMED = "default"
"""The backend of a class that was registered for its type alone."""


class Registry:
    """`@R.register(type)` adds, `R.create(type, low=80)` builds, iteration lists the types."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, dict[str, type[Any]]] = {}  # type -> backend -> class, the default backend first

    def register(
        self, type_name: str, *, backend: str = UNNAMED, default: bool = False
    ) -> Callable[[type[T]], type[T]]:
        """Add a class; the type's default backend is the first that came, or the one that says so."""

        def add(cls: type[T]) -> type[T]:
            backends = self._classes.setdefault(type_name, {})
            if backend in backends:
                name = self.name_of(type_name, backend)
                raise ValueError(f"{self.kind} {name!r} is registered twice: {backends[backend]} and {cls}")
            added: dict[str, type[Any]] = {backend: cls}
            self._classes[type_name] = {**added, **backends} if default else {**backends, **added}
            named: Any = cls
            named.type, named.backend = type_name, backend
            return cls

        return add

    def create(self, type_name: str, backend: str | None = None, **options: Any) -> Annotator:
        """The annotator of that type with those parameters; text is read as the parameter's type."""
        cls, fields = self.class_of(type_name, backend), self.parameters(type_name, backend)
        for option in options:
            if option not in fields:
                name = self.name_of(type_name, backend)
                raise ValueError(f"{self.kind} {name!r} has no parameter {option!r}: {_known(option, fields)}")
        typed = {option: _typed(f"{type_name}.{option}", value, fields[option]) for option, value in options.items()}
        annotator: Annotator = cls(**typed)
        return annotator

    def parameters(self, type_name: str, backend: str | None = None) -> dict[str, Any]:
        """The parameters of that annotator and their types."""
        cls = self.class_of(type_name, backend)
        hints = get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}

    def backends(self, type_name: str) -> tuple[str, ...]:
        """The ways of making that type, the default first."""
        if type_name not in self._classes:
            raise ValueError(f"unknown {self.kind} {type_name!r}: {_known(type_name, self)}")
        return tuple(self._classes[type_name])

    def class_of(self, type_name: str, backend: str | None = None) -> type[Any]:
        """The class of that backend, or of the type's default one."""
        backends = self.backends(type_name)
        if backend is not None and backend not in backends:
            raise ValueError(f"{self.kind} {type_name!r} has no backend {backend!r}: {_known(backend, backends)}")
        return self._classes[type_name][backend or backends[0]]

    def __getitem__(self, type_name: str) -> type[Any]:
        return self.class_of(type_name)

    def __contains__(self, type_name: object) -> bool:
        return type_name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    @staticmethod
    def name_of(type_name: str, backend: str | None) -> str:
        """As people say it: `depth=zoe`; of what has no name of its own the type alone."""
        return type_name if backend in (None, UNNAMED) else f"{type_name}={backend}"


ANNOTATORS = Registry("annotator")


def _typed(name: str, value: Any, kind: Any) -> Any:
    """`value` as the parameter's type, or a refusal that names the parameter."""
    if get_origin(kind) in (Union, types.UnionType):  # X | None is the one union in use
        kinds = [each for each in get_args(kind) if each is not type(None)]
        return None if value is None or value == "none" else _typed(name, value, kinds[0])
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise ValueError(f"{name}={value!r}: {_known(str(value), get_args(kind))}")
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
