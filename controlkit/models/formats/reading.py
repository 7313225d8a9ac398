"""A state dict out of any container: safetensors, torch's zip, torch's older pickle.

The container is recognised by its first bytes and never by its extension. Nothing is read that is not asked for where
the container allows that: a safetensors file gives its names and shapes from its header, a zip is mapped into memory.
The older pickle has neither, so it is read whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from controlkit.errors import RequestError
from controlkit.models.locate import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Shape = tuple[int, ...]

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model"
_STEMS = (DIFFUSERS_WEIGHTS, "model", "pytorch_model")
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own
_SAFETENSORS_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip


class TensorFile(Mapping[str, "torch.Tensor"]):
    """The tensors of a file by name, each read when it is asked for, and what stands beside them.

    `shapes` and `dtypes` ("float16") are known without reading a weight. `metadata` is safetensors' text, `facts` are
    the plain values in a pickle (`global_step`, `name`).
    """

    def __init__(self, path: Path, container: str) -> None:
        self.path = path
        self.container = container
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self.facts: dict[str, Any] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        raise NotImplementedError

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def read_tensors(path: Path) -> TensorFile:
    """The tensors of a model file; what is none is refused in one line that says what it is instead."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as reason:
        raise RequestError(f"{path} cannot be read ({reason.strerror}); expected a model file") from None
    if start[8:9] == b"{":  # asked first: what stands before it is a length, which may look like anything
        return _Safetensors(path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _Pickled(path, "torch zip" if start[:1] == b"P" else "torch pickle")
    _refuse(path, start)


@dataclass(frozen=True)
class WeightedFile:
    """A file and how strongly it counts."""

    file: Path
    weight: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """`FILE[@WEIGHT]`; `@…` counts only if all behind it is a number."""
        path, at, behind = text.rpartition("@")
        if at and re.fullmatch(r"-?\d*\.?\d+", behind):
            return cls(Path(path), float(behind))
        return cls(Path(text))


def folder_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All weights in a component's folder: one file, or the several that an index names."""
    for stem in _STEMS:
        for ending in ("safetensors", "bin", "fp16.safetensors"):
            index = folder / f"{stem}.{ending}.index.json"
            if index.is_file():
                names = sorted(set(read_json(index)["weight_map"].values()))
            elif (folder / f"{stem}.{ending}").is_file():
                names = [f"{stem}.{ending}"]
            else:
                continue
            return {key: value for name in names for key, value in read_tensors(folder / name).items()}
    raise RequestError(f"{folder} holds no weights; the folder is no whole copy of a model")


def _refuse(path: Path, start: bytes) -> NoReturn:
    """Say what a file is that is no container of tensors."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        what = "is empty; get it again"
    elif start.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, not the weights themselves; run `git lfs pull` where it came from"
    elif text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        what = "is a web page, not a model: the download failed or asked for a login; get it again"
    else:
        what = "is no model file (neither safetensors nor a pickle of torch); get it again"
    raise RequestError(f"{path} {what}")


class _Safetensors(TensorFile):
    def __init__(self, path: Path) -> None:
        super().__init__(path, "safetensors")
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_HEADER_LIMIT, size - 8):
                raise RequestError(f"{path} is cut short or damaged inside its header; get it again")
            try:
                header = json.loads(file.read(length))
                self.metadata = dict(header.pop("__metadata__", None) or {})
                self.shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
                self.dtypes = {
                    name: _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"]) for name, entry in header.items()
                }
                end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                raise RequestError(f"{path} has a header that is not safetensors'; get it again") from None
        if end != size:
            raise RequestError(
                f"{path} is cut short or damaged: its header promises {end} bytes, it has {size}; get it again"
            )
        self._file: Any = None

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        if self._file is None:
            from safetensors import SafetensorError, safe_open

            try:
                self._file = safe_open(self.path, framework="pt")
            except SafetensorError as reason:
                raise RequestError(f"{self.path} is damaged ({reason}); get it again") from None
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor


class _Pickled(TensorFile):
    def __init__(self, path: Path, container: str) -> None:
        from controlkit.models.formats.pickles import load_pickled, named_values

        super().__init__(path, container)
        self._tensors, self.facts = named_values(load_pickled(path))
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self.dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self._tensors.items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]
