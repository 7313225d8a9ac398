"""Checkpoints: everything a run needs to go on, whole or absent, and checked before it is trusted.

checkpoints/step-000500/
    controlnet/ …               each network in its library's layout, so that any checkpoint can be used as it is
    optimizer.safetensors       the optimizer's tensors, named INDEX.NAME
    state.json                  step, rows seen, the optimizer's numbers, the SHA-256 of every file
There is no random state to keep: every draw is a function of its row (`controlkit.training.draws`).
"""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from controlkit.errors import RequestError
from controlkit.files import atomic_folder, sha256
from controlkit.training.guard import RunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_FORMAT = 1

Network = Any
"""A model of diffusers or transformers: has save_pretrained, from_pretrained, load_state_dict."""


@dataclass(frozen=True)
class State:
    """Where a run stands beside its tensors."""

    step: int = 0
    rows_seen: int = 0
    scaler: dict[str, Any] | None = None  # the loss scale under fp16
    guard: dict[str, Any] = field(default_factory=dict)  # how the loss has run (`controlkit.training.guard`)
    calm: bool = True  # false: the loss had risen, and it may be the beginning of its end


def save_checkpoint(folder: Path, state: State, networks: dict[str, Network], optimizer: dict[str, Any]) -> Path:
    """Write `folder`/step-…; it has this name only once it is whole and on the disk. RunError if that fails.
    `optimizer` is the optimizer's state."""
    path = folder / f"step-{state.step:06d}"
    tensors, numbers = _split(optimizer)
    with _explained(folder, state.step), atomic_folder(path) as unfinished:
        for name, network in networks.items():
            network.save_pretrained(unfinished / name, safe_serialization=True)
        save_file(tensors, unfinished / "optimizer.safetensors")
        files = {
            file.relative_to(unfinished).as_posix(): sha256(file)
            for file in sorted(unfinished.rglob("*"))
            if file.is_file()
        }
        data = {"format": _FORMAT, **vars(state), "optimizer": numbers, "files": files}
        (unfinished / "state.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    return path


@contextmanager
def _explained(folder: Path, step: int) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as reason:
        last = next((path.name.removeprefix("step-").lstrip("0") for path in reversed(_by_step(folder))), None)
        there = f"that of step {last} is sound" if last else "there is none yet"
        why = getattr(reason, "strerror", None) or reason
        raise RunError(
            f"the checkpoint of step {step} could not be written ({why}); {there}: make room, and go on with --resume"
        ) from reason


def drop_old_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` and the newest calm one; called when the newest is safe."""
    paths = _by_step(folder)
    calm = next((path for path in reversed(paths) if _is_calm(path)), None)
    for path in paths[:-keep]:
        if path != calm:
            shutil.rmtree(path)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged; of those, one from when the loss was calm."""
    sound = (path for path in reversed(_by_step(folder)) if _is_sound(path))
    newest = next(sound, None)
    if newest is None or _is_calm(newest):
        return newest
    return next((path for path in sound if _is_calm(path)), newest)


def load_checkpoint(path: Path, networks: dict[str, Network]) -> State:
    """Put the tensors of a sound checkpoint into the networks."""
    data = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for name, network in networks.items():
        _restore(network, path / name)
    return State(**{each.name: data[each.name] for each in fields(State) if each.name in data})


def optimizer_state(path: Path) -> dict[str, Any]:
    """The optimizer's state in a sound checkpoint."""
    numbers = json.loads((path / "state.json").read_text(encoding="utf-8"))["optimizer"]
    return _join(load_file(path / "optimizer.safetensors"), numbers)


def _restore(network: Network, folder: Path) -> None:
    if hasattr(network, "restore"):  # it learns in another form than it is used in
        network.restore(folder)
    else:
        network.load_state_dict(type(network).from_pretrained(folder, local_files_only=True).state_dict())


def _by_step(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def _is_sound(path: Path) -> bool:
    try:
        data = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise RequestError(f"{path}: format {data['format']} is of another version of controlkit; use that one")
        return all(sha256(path / name) == digest for name, digest in data["files"].items())
    except (OSError, ValueError, KeyError) as reason:
        if isinstance(reason, RequestError):
            raise
        return False


def _is_calm(path: Path) -> bool:
    try:
        return bool(json.loads((path / "state.json").read_text(encoding="utf-8")).get("calm", True))
    except (OSError, ValueError):
        return False


def _split(state: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name and everything else as JSON."""
    tensors: dict[str, torch.Tensor] = {}
    others = {str(index): _take_tensors(values, str(index), tensors) for index, values in state["state"].items()}
    return tensors, {"state": others, "param_groups": state["param_groups"]}


def _take_tensors(values: dict[str, Any], prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Move the tensors among the values, however deep, to `tensors` by their path; what is left is returned."""
    left = {}
    for name, value in values.items():
        key = f"{prefix}.{name}"
        if isinstance(value, torch.Tensor):
            # A copy: 8-bit optimizers share their tables among parameters, which safetensors does not write.
            tensors[key] = value.detach().clone(memory_format=torch.contiguous_format)
        else:
            left[name] = _take_tensors(value, key, tensors) if isinstance(value, dict) else value
    return left


def _join(tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers["state"].items()}
    for key, value in tensors.items():
        index, *path, name = key.split(".")
        values = state[int(index)]
        for each in path:
            values = values[each]
        values[name] = value
    return {"state": state, "param_groups": numbers["param_groups"]}
