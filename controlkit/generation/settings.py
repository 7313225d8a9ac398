"""The settings inside a generated PNG: one JSON that says everything that decided the picture."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit import __version__
from controlkit.data.ledger import KEYWORD, read_text
from controlkit.errors import RequestError
from controlkit.files import atomic_write_text, cache_folder, sha256

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1


def encode_picture(image: NDArray[np.uint8], settings: dict[str, Any], *, texts: dict[str, str] | None = None) -> bytes:
    """The picture as PNG with its settings inside, and beside them `texts` by their names."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(KEYWORD, json.dumps({"format": FORMAT, "kind": "picture", **settings}))
    for name, text in (texts or {}).items():
        info.add_text(name, text)  # as iTXt where Latin-1 does not do
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1, pnginfo=info)
    return buffer.getvalue()


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a generated PNG, refused if it holds none."""
    text = read_text(path)
    data = json.loads(text) if text else {}
    if data.get("kind") != "picture":
        raise RequestError(f"{path}: holds no settings of controlkit; expected a PNG that `controlkit generate` wrote")
    if data["format"] != FORMAT:
        raise RequestError(f"{path}: settings of format {data['format']}, this controlkit reads {FORMAT}; update it")
    settings: dict[str, Any] = data
    return settings


def library_versions() -> dict[str, str]:
    """What decides the pixels beside the settings."""
    return {"controlkit": __version__, **_installed()}


@functools.cache
def _installed() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


def weights_sha256(folder: Path) -> str:
    """One hash over the weight files of a model, whatever the folder is called; of a single file its own SHA-256.

    Gigabytes take seconds to hash, so the hash of a file is kept in the cache under its path, size and time of change.
    """
    cache = cache_folder() / "hashes.json"
    try:
        remembered = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        remembered = {}
    known = dict(remembered)
    whole = hashlib.sha256()
    single = folder.is_file()
    for file in [folder] if single else sorted(folder.rglob("*.safetensors")):
        status = file.stat()
        key = f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        known[key] = known.get(key) or sha256(file)
        own = known[key]
        whole.update(f"{file.relative_to(folder).as_posix()} {own}\n".encode())
    if known != remembered:
        with contextlib.suppress(OSError):  # a cache that cannot be kept costs time, nothing else
            atomic_write_text(cache, json.dumps(known))
    return own if single else whole.hexdigest()
