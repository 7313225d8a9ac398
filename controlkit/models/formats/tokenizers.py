"""CLIP's tokenizer, which no single file holds: found beside the file, in the hub's cache, or where the user says.

All Stable Diffusions use one vocabulary; the encoders of OpenCLIP fill short prompts up with "!" instead of the end of
the text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
DOWNLOAD = "openai/clip-vit-large-patch14"
OPEN_CLIP_PADDING = "!"

# Where else the same vocabulary lies, if the hub's cache has it.
_IN_HUB = (
    (DOWNLOAD, ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer/"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer/"),
)


def find_tokenizer(asked: str | None, beside: Path, *, words: int, what: str) -> Path:
    """The folder of the tokenizer with that many words; refused in one line that says what to give."""
    if asked is not None:
        folder = _asked(asked)
        if folder is None:
            raise RequestError(
                f"--tokenizer {asked!r}: expected a folder with vocab.json and merges.txt or tokenizer.json, any "
                f"Stable Diffusion in diffusers' layout, or a hub id such as {DOWNLOAD}"
            )
        if (found := _words(folder)) != words:
            raise RequestError(
                f"--tokenizer {asked!r} has {found} words, the text encoder of {what} {words}; choose the one it was "
                f"trained with"
            )
        return folder
    for folder in _nearby(beside):
        if _words(folder) == words:
            return folder
    raise RequestError(
        f"{what} is a single file, which holds no tokenizer, and none with its {words} words was found; give "
        f"--tokenizer FOLDER (one with vocab.json and merges.txt, or any Stable Diffusion in diffusers' layout), or "
        f"--tokenizer {DOWNLOAD} to download CLIP's (1.5 MB)"
    )


def load_tokenizer(folder: Path, padding: str | None = None) -> Any:
    """`padding` None: as the folder has it."""
    from transformers import CLIPTokenizer

    quiet_libraries()
    options = {} if padding is None else {"pad_token": padding}
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True, **options)


def _asked(asked: str) -> Path | None:
    path = Path(asked).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if asked.count("/") != 1 or path.exists():
        return None
    from huggingface_hub import snapshot_download

    patterns = [*FILES, *(f"tokenizer/{name}" for name in FILES)]
    try:
        return _in_folder(Path(snapshot_download(asked, allow_patterns=patterns)))
    except Exception as reason:  # no network, no such repository, a gated one: all said alike
        text = " ".join(str(reason).split())[:200]
        raise RequestError(f"--tokenizer {asked!r}: the hub did not give it ({text}); check name and network") from None


def _nearby(beside: Path) -> Iterator[Path]:
    from huggingface_hub import try_to_load_from_cache

    if folder := _in_folder(beside / "tokenizer"):
        yield folder
    for repository, place in _IN_HUB:
        found = try_to_load_from_cache(repository, f"{place}vocab.json")
        if isinstance(found, str) and (folder := _in_folder(Path(found).parent)):
            yield folder


def _in_folder(folder: Path) -> Path | None:
    """The tokenizer in a folder, or in the `tokenizer` of a pipeline's folder."""
    for each in (folder, folder / "tokenizer"):
        if (each / "tokenizer.json").is_file() or all((each / name).is_file() for name in FILES[:2]):
            return each
    return None


def _words(folder: Path) -> int:
    try:
        if (vocabulary := folder / "vocab.json").is_file():
            return len(json.loads(vocabulary.read_text(encoding="utf-8")))
        whole = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return len(set(whole["model"]["vocab"]) | {each["content"] for each in whole.get("added_tokens", [])})
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise RequestError(f"{folder}: its tokenizer cannot be read ({reason}); choose another") from None
