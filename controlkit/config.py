"""Configuration: frozen dataclasses, filled from YAML, overridden by key=value.

The type of the field decides how a value is read (PyYAML takes `1e-5` for text and `no` for False; here `lr: 1e-5` is a
number and `mixed_precision: no` a string). Unknown keys are refused with the nearest known one. Everything that is
wrong is reported together, before anything heavy is loaded: a dataclass that has a method `problems()` yields a line
for each of its conflicts. One that has `presets` (a field, and for each of its values the settings that it stands for)
gets them laid beneath the layer, file or command line, that names that value.
"""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from controlkit.errors import RequestError, known

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

C = TypeVar("C")


class _Loader(yaml.SafeLoader):
    """Scalars stay text, the field's type reads them; a key given twice is an error rather than a silent choice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


# Only null is resolved by its look; a quoted "null" stays text.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def build(cls: type[C], file: Path | None = None, overrides: Iterable[str] = ()) -> C:
    """The config: defaults, then the YAML file, then `key=value` in order; refused with all that is wrong."""
    values: dict[str, Any] = _over_preset(cls, read_yaml(file) if file else {})
    problems: list[str] = []
    given: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            problems.append(f"{override!r}: expected key=value, e.g. {_example(cls)}")
            continue
        problems.extend(_put(given, key.split("."), _override_value(text), key))
    values = _merge(values, _over_preset(cls, given))
    config = _construct(cls, values, "", problems)
    if problems or config is None:
        raise RequestError("\n".join(problems))
    if found := list(_problems(config)):
        raise RequestError("\n".join(found))
    return config


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; its scalars as text."""
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise RequestError(f"{file}: there is no such file") from None
    except UnicodeDecodeError:
        raise RequestError(f"{file}: is not UTF-8") from None
    except yaml.MarkedYAMLError as reason:
        where = f" line {reason.problem_mark.line + 1}" if reason.problem_mark else ""
        raise RequestError(f"{file}:{where} is not YAML: {reason.problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RequestError(f"{file}: expected keys and values, e.g. `lr: 1e-5`; got a {type(values).__name__}")
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested plain values, in the order of its fields."""
    return {
        field.name: to_dict(value)
        if dataclasses.is_dataclass(value)
        else list(value)
        if isinstance(value, tuple)
        else value
        for field in dataclasses.fields(config)
        for value in [getattr(config, field.name)]
    }


def to_yaml(config: Any) -> str:
    """The config as YAML that `build` reads back as an equal config."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=110)


def find_config(name: str) -> Path:
    """A YAML by path, or one of ours by name: `sd15-canny` -> configs/sd15-canny.yaml."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    ours = shipped_configs()
    if name not in ours:
        raise RequestError(f"--config {name!r}: neither a file nor a config of ours: {known(name, ours)}")
    return ours[name]


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by name."""
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):  # installed; a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def _over_preset(cls: type[Any], layer: dict[str, Any]) -> dict[str, Any]:
    presets: tuple[str, Mapping[Any, Mapping[str, Any]]] = getattr(cls, "presets", ("", {}))
    name, settings = presets
    return _merge(settings.get(layer.get(name), {}), layer)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both; where they meet, those above. A group meets a group inside."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return merged


def _override_value(text: str) -> Any:
    """The value behind the `=`: lists and null as YAML writes them, the rest as it stands."""
    if text.startswith("[") or text in ("null", "~", ""):
        try:
            return yaml.load(text, _Loader)
        except yaml.YAMLError:
            return text
    return text


def _put(values: dict[str, Any], path: list[str], value: Any, key: str) -> Iterable[str]:
    for name in path[:-1]:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            return [f"{key}: {name!r} is not a group of settings"]
        values = inner
    values[path[-1]] = value
    return []


def _construct(cls: type[C], values: Mapping[str, Any], prefix: str, problems: list[str]) -> C | None:
    hints = get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    before = len(problems)
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            problems.append(f"unknown setting {prefix + str(name)!r}: {known(str(name), fields)}")
        elif dataclasses.is_dataclass(hints[name]):
            if value is None or isinstance(value, dict):
                arguments[name] = _construct(hints[name], value or {}, f"{prefix}{name}.", problems)
            else:
                example = f"{prefix}{name}.{dataclasses.fields(hints[name])[0].name}=…"
                problems.append(f"{prefix}{name}={value}: is a group of settings; set one of them, e.g. {example}")
        else:
            try:
                arguments[name] = _read(value, hints[name])
            except ValueError as reason:
                problems.append(f"{prefix}{name}={_show(value)}: {reason}")
    if len(problems) > before:
        return None
    return cls(**arguments)


def _read(value: Any, kind: Any) -> Any:
    """`value` (text, a list of text, or None) as `kind`; ValueError says what was expected."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        inner = [each for each in arguments if each is not type(None)]
        for each in inner:
            try:
                return _read(value, each)
            except ValueError as reason:
                problem = reason
        raise problem
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"expected {' or '.join(map(str, arguments))}")
    if origin is tuple:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError("expected a list, e.g. [a, b]")
        return tuple(_read(each, arguments[0]) for each in value)
    if isinstance(value, dict | list) or value is None:
        raise ValueError(f"expected {_NAMES[kind]}")
    text = str(value).strip()
    if kind is bool:
        if text.lower() in ("true", "yes", "on"):
            return True
        if text.lower() in ("false", "no", "off"):
            return False
        raise ValueError("expected true or false")
    if kind is str:
        return str(value)
    try:
        return kind(text.replace("_", "")) if kind is int else kind(text)
    except ValueError:
        raise ValueError(f"expected {_NAMES[kind]}") from None


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _problems(config: Any) -> Iterable[str]:
    if hasattr(config, "problems"):
        yield from config.problems()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _problems(value)


def _show(value: Any) -> str:
    return "null" if value is None else str(value)


def _example(cls: type[Any]) -> str:
    field = next(field for field in dataclasses.fields(cls) if not dataclasses.is_dataclass(field.default))
    return f"{field.name}={field.default}"
