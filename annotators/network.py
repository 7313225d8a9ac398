"""What the annotators with a network share: where their weights lie, when they are loaded, and how pictures go in.

A network is loaded at the first picture, once per instance, and onto the device that the instance names.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

from annotators.weights import MissingWeights, Weights, digest, locate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from annotators.contract import Image

__all__ = ["MissingWeights", "NetworkAnnotator", "Weights"]

_LOADING = threading.RLock()


@dataclass(frozen=True)
class NetworkAnnotator(ABC):
    """An annotator behind a network.

    weights  a folder, a file or a hub id in place of the published ones
    device   "cpu", "cuda:1", …; None: the GPU if there is one, else the CPU
    offline  never ask the hub for what is not on this machine
    """

    weights: str | None = None
    device: str | None = None
    offline: bool = False

    type: ClassVar[str]
    backend: ClassVar[str]
    values: ClassVar[frozenset[int] | None] = None
    version: ClassVar[int] = 1
    licence: ClassVar[str]
    runs_with: ClassVar[frozenset[str]] = frozenset({"weights", "device", "offline"})
    mirrors: ClassVar[bool] = True

    needs: ClassVar[tuple[Weights, ...]]
    """All files that this annotator may want; `wanted` says which of them its parameters ask for."""

    packages: ClassVar[tuple[str, ...]] = ("torch",)
    """The distributions whose code decides the pixels."""

    def __call__(self, image: Image) -> Image:
        return self.batch([image])[0]

    @abstractmethod
    def batch(self, images: Sequence[Image]) -> list[Image]:
        """The maps of several pictures; that of each is the same whatever the others are, within rounding."""

    @abstractmethod
    def load(self) -> Any:
        """The network on its device, ready to be called."""

    @property
    def network(self) -> Any:
        """What `load` gave, the first time."""
        with _LOADING:
            if "_network" not in self.__dict__:
                self.__dict__["_network"] = self.load()
            return self.__dict__["_network"]

    def wanted(self) -> tuple[Weights, ...]:
        return self.needs

    def weight_files(self) -> tuple[Path, ...]:
        """Where its weights lie, the small files beside each after it; MissingWeights if they do not."""
        found: list[Path] = []
        usual = type(self)().wanted()
        for wanted in self.wanted():
            fetch = self.full_name if wanted in usual else f"{self.full_name} --all"
            found += locate(wanted, self.weights, offline=self.offline, fetch=fetch, who=self.full_name)
        return tuple(found)

    def ready(self) -> None:
        """Raise ImportError or MissingWeights if it cannot work here now; no network is loaded, nothing downloaded."""
        for package in self.packages:
            _installed(package)
        type(self)(**{**self._fields(), "offline": True}).weight_files()

    def libraries(self) -> dict[str, str]:
        return {**{name: _installed(name) for name in self.packages}, "weights": digest(self.weight_files())}

    @property
    def full_name(self) -> str:
        """TYPE for a type's default backend, else TYPE=BACKEND."""
        from annotators.registry import ANNOTATORS

        usual = self.backend == ANNOTATORS.backends(self.type)[0]
        return self.type if usual else f"{self.type}={self.backend}"

    def torch_device(self) -> str:
        import torch

        return self.device or ("cuda" if torch.cuda.is_available() else "cpu")

    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __getstate__(self) -> dict[str, Any]:
        """A copy sent to another process loads its own network."""
        return self._fields()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        raise ImportError(f"{package} is not installed: pip install {package}") from None
