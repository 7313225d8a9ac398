"""`--type canny,depth --backend depth=midas --set canny.low=80` as annotators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from annotators import Annotator
    from annotators.pose_json import PoseFiles


def make_annotators(
    types: str,
    *,
    settings: Iterable[str] = (),
    backends: Iterable[str] = (),
    weights: Iterable[str] = (),
    from_json: Path | None = None,
    device: str | None = None,
    offline: bool = False,
) -> dict[str, Annotator | PoseFiles]:
    """The annotators by type; `device` and `offline` are for those that run a network."""
    from annotators import ANNOTATORS
    from annotators.pose_json import PoseFiles
    from controlkit.errors import RequestError

    names = list(dict.fromkeys(name.strip() for name in types.split(",") if name.strip()))
    if not names:
        raise RequestError(f"--type {types!r} names no type; known: {', '.join(ANNOTATORS)}")
    drawn: dict[str, Annotator | PoseFiles] = {}
    if from_json is not None:
        _need_type(f"--from-json {from_json}", "pose", names)
        drawn["pose"] = PoseFiles(from_json)
    made = [name for name in names if name not in drawn]

    chosen = _by_type("--backend", "TYPE=BACKEND, e.g. depth=midas", backends, made)
    options: dict[str, dict[str, Any]] = {name: {} for name in made}
    for name, place in _by_type("--weights", "TYPE=PATH_OR_ID, e.g. depth=models/dpt", weights, made).items():
        if "weights" not in ANNOTATORS.parameters(name, chosen.get(name)):
            raise RequestError(f"--weights {name}={place}: {name} has no weights")
        options[name]["weights"] = place
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, dot, parameter = key.partition(".")
        if not (equals and dot):
            raise RequestError(f"--set {setting!r}: expected TYPE.NAME=VALUE, e.g. canny.low=80")
        _need_type(f"--set {setting!r}", name, made)
        options[name][parameter] = value

    with_device = [name for name in made if "device" in ANNOTATORS.parameters(name, chosen.get(name))]
    for name in with_device:
        options[name] = {"device": device, "offline": offline, **options[name]}
    created = {name: ANNOTATORS.create(name, chosen.get(name), **options[name]) for name in made}
    return {name: drawn.get(name) or created[name] for name in names}


def _by_type(option: str, expected: str, values: Iterable[str], names: list[str]) -> dict[str, str]:
    """What an option says of each type; a type is said once."""
    from controlkit.errors import RequestError

    said: dict[str, str] = {}
    for value in values:
        name, equals, what = value.partition("=")
        if not (name and equals and what):
            raise RequestError(f"{option} {value!r}: expected {expected}")
        _need_type(f"{option} {value!r}", name, names)
        if name in said:
            raise RequestError(f"{option} {value!r}: {name}={said[name]} was said already")
        said[name] = what
    return said


def _need_type(said: str, name: str, names: list[str]) -> None:
    from controlkit.errors import RequestError

    if name not in names:
        raise RequestError(f"{said}: {name!r} is not among the types to be made: {', '.join(names) or 'none'}")
