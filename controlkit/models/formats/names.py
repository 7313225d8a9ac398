"""Names of modules in two layouts. A pair of tables is all that most formats are.

A key is looked up by its longest beginning of whole dotted parts, so `input_blocks.1` never meets `input_blocks.10`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from controlkit.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch

    from controlkit.models.formats.reading import TensorFile

    Tensors = Mapping[str, torch.Tensor]


Value = TypeVar("Value")
"""A tensor, or its shape."""


def renamed(key: str, table: Mapping[str, str]) -> str | None:
    """The key in the other layout; None if the table has no place for it."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (there := table.get(".".join(parts[:end]))) is not None:
            return ".".join([there, *parts[end:]])
    return None


def rename(tensors: Mapping[str, Value], table: Mapping[str, str], what: str) -> dict[str, Value]:
    """All tensors under their names in the other layout; refused if one has no place there."""
    names = {key: renamed(key, table) for key in tensors}
    if strange := sorted(key for key, there in names.items() if there is None):
        raise RequestError(
            f"{what}: {len(strange)} of {len(names)} tensors have no place in it, e.g. {strange[0]!r}; it is of "
            f"another kind, or its config is"
        )
    return {there: tensors[key] for key, there in names.items() if there is not None}


def inverse(table: Mapping[str, str]) -> dict[str, str]:
    return {there: here for here, there in table.items()}


class Part(dict[str, str]):
    """The keys of a file that begin with a prefix: name without it -> name in the file."""

    @staticmethod
    def of(names: Iterable[str], prefix: str) -> Part:
        return Part({name.removeprefix(prefix): name for name in names if name.startswith(prefix)})

    def tensors(self, file: TensorFile) -> dict[str, torch.Tensor]:
        return {name: file[there] for name, there in self.items()}

    def shapes(self, file: TensorFile) -> dict[str, tuple[int, ...]]:
        return {name: file.shapes[there] for name, there in self.items()}
