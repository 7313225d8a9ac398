"""Where a model lies: an embedded name, a folder, or a hub id, in this order."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError, known

if TYPE_CHECKING:
    from collections.abc import Callable

# Weights that come with the package: one folder each, found by name.
EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "toybox" / "weights"
NOTES = "controlkit.json"
"""Beside a model's config: what a ControlNet was trained on, from which base a packed one takes what it has not itself.
Other tools leave it alone."""

EMBEDDED_READERS = EMBEDDED_WEIGHTS / "readers"


def embedded(marker: str) -> dict[str, Path]:
    """The models that come with the package and hold that file, by name."""
    return {path.parent.name: path.parent for path in sorted(EMBEDDED_WEIGHTS.glob(f"*/{marker}"))}


def find_folder(
    name: str, what: str, marker: str, names: dict[str, Callable[[], Path]], download: Callable[[], Any]
) -> Path:
    """The folder of a model; `names` are ours, `download` asks the hub. Refused in one line if it is nothing of these.

    A hub id that is not on this machine yet is downloaded: whoever names one asks for it. HF_HUB_OFFLINE=1 forbids it.
    """
    if name in names:
        return names[name]()
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / marker).exists():
            return path
        raise RequestError(f"{what} {name!r}: the folder has no {marker}; expected a folder in diffusers' layout")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise RequestError(
            f"{what} {name!r}: no such folder or file, and no name of ours: {known(name, names)}; or give a hub id"
        )
    try:
        return Path(download())
    except Exception as reason:  # no network, no such repository, a gated one, no safetensors in it: all said alike
        text = " ".join(str(reason).split())[:200]
        raise RequestError(
            f"{what} {name!r}: no such folder or file, and the hub did not give it ({text}); check name and network"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model's folder, refused in one line if the folder is no whole copy."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path} is missing; the folder is no whole copy of a model") from None
    except ValueError as reason:
        raise RequestError(f"{path} is not JSON ({reason}); the folder is no whole copy of a model") from None
    return data
