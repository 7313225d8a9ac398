"""Pickles of torch, read as data: nothing that a file names is imported or called.

torch.load runs with `weights_only=True`, which knows the few names that tensors need. Training tools put more into
their files (the original Stable Diffusion 1.5 names a callback of its trainer); each such name becomes an `Inert` class
of ours, so that the tensors beside it come out. Names of `os`, `posix`, `sys` and `nt` torch refuses whatever we say.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, the names of its storages
_PICKLE_LIMIT = 256_000_000  # bytes; that of a checkpoint with optimizer states has a few million
_DEEPEST = 6  # levels of nested dicts in which tensors are looked for


class Inert:
    """Stands for whatever a file names that is no tensor: takes any arguments, does nothing, keeps its state."""

    def __new__(cls, *args: Any, **options: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.__dict__["state"] = state


def load_pickled(path: Path) -> Any:
    """What a pickle of torch holds: its tensors whole (of a zip mapped into memory), all else inert."""
    import torch

    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        names = _names_in_zip(path) if zipped else _names_in_legacy(path)
        known = torch._weights_only_unpickler._get_allowed_globals()
        inert: list[Any] = [(type("Inert", (Inert,), {}), name) for name in sorted(names - set(known))]
        with torch.serialization.safe_globals(inert):
            if path.suffix == ".safetensors":  # torch trusts that extension, and maps only what it opens itself
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except RequestError:
        raise
    except (EOFError, zipfile.BadZipFile, OSError) as reason:
        raise RequestError(f"{path} is cut short or damaged ({_short(reason)}); get it again") from None
    except Exception as reason:  # a hostile or foreign file may bring any; none of it was executed
        raise RequestError(
            f"{path} holds what is not read from a pickle ({_short(reason)}); nothing of it was executed; "
            f"get it as .safetensors"
        ) from None


def named_values(loaded: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors by name and the plain values by name; names of nested dicts are joined by dots.

    What lies under "state_dict" is the model; of what stands beside it (optimizer, callbacks) only plain values count.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    facts: dict[str, Any] = {}

    def walk(value: Any, name: str, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            tensors[name or "0"] = value.data
        elif isinstance(value, str | int | float | bool) or value is None:
            facts[name] = value
        elif depth < _DEEPEST:
            if isinstance(value, Inert):
                value = value.state
            if isinstance(value, dict):
                # torch keeps what it needs to rebuild a module under "_parameters"; that is no part of a name.
                for key, each in value.items():
                    walk(each, name if key == "_parameters" else f"{name}.{key}".lstrip("."), depth + 1)
            elif isinstance(value, list | tuple):
                for number, each in enumerate(value):
                    walk(each, f"{name}.{number}".lstrip("."), depth + 1)

    for _ in range(_DEEPEST):
        if not (isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict)):
            break
        facts.update({str(key): each for key, each in loaded.items() if isinstance(each, str | int | float)})
        loaded = loaded["state_dict"]
    walk(loaded, "", 0)
    return tensors, facts


def _names_in_zip(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        pickles = [entry for entry in archive.infolist() if entry.filename.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise RequestError(f"{path} is a zip, but not one of torch (no data.pkl in it); expected a model file")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise RequestError(f"{path} is a compressed zip, which torch never writes; get it as .safetensors")
        if pickles[0].file_size > _PICKLE_LIMIT:
            raise RequestError(f"{path} has a pickle of {pickles[0].file_size} bytes; get it as .safetensors")
        with archive.open(pickles[0]) as file:
            return _names(file)


def _names_in_legacy(path: Path) -> set[str]:
    with path.open("rb") as file:
        return set().union(*(_names(file) for _ in range(_LEGACY_PICKLES)))


def _names(file: Any) -> set[str]:
    """What the next pickle of a stream would import. Reading the instructions executes none."""
    try:
        found = [argument for code, argument, _ in pickletools.genops(file) if code.name == "GLOBAL"]
    except ValueError as reason:  # ends in the middle, or is no pickle
        raise pickle.UnpicklingError(str(reason)) from None
    return {_name_today(*str(each).split(" ", 1)) for each in found}


def _name_today(module: str, name: str) -> str:
    """Pickles of protocol 2 name things as Python 2 did; torch translates before it looks them up."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _short(reason: BaseException) -> str:
    """The cause, without torch's advice to switch the safety off."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    cause = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "")
    return (cause.split(" was not an allowed")[0] or type(reason).__name__)[:200]
