"""What DATA may be: a folder, one picture, a glob, or the folder of the original ControlNet's tutorial."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path, PurePosixPath

from controlkit.data import folder as layout
from controlkit.data.pictures import SUFFIXES
from controlkit.errors import RequestError

TUTORIAL = "prompt.json"


@dataclass(frozen=True)
class Source:
    """The pictures to annotate: `names` below `folder`, sorted; `rows` is what the input says of some of them."""

    folder: Path
    names: list[str]
    rows: list[layout.Row] = field(default_factory=list)


def find_pictures(data: Path) -> Source:
    """The pictures that DATA means; a link that leads up, hidden names and `conditions/` are left out of folders."""
    if data.is_dir():
        return _tutorial(data) if (data / TUTORIAL).is_file() else Source(data, layout.find_pictures(data))
    if data.is_file() and data.suffix.lower() in SUFFIXES:
        return Source(data.parent, [data.name])
    if not data.exists() and has_magic(str(data)):
        return _glob(data)
    return Source(data, layout.find_pictures(data))  # refuses it in its own words


def _glob(pattern: Path) -> Source:
    """ "photos/2024*/**/*.jpg": the rows go to the folder before the first part with a wildcard."""
    fixed = 0
    while not has_magic(pattern.parts[fixed]):
        fixed += 1
    folder, rest = Path(*pattern.parts[:fixed]), str(Path(*pattern.parts[fixed:]))
    if not folder.is_dir():
        raise RequestError(f"{pattern}: there is no folder {folder}")
    found = [path.relative_to(folder) for path in folder.glob(rest) if path.is_file()]
    names = [
        path.as_posix()
        for path in found
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and path.parts[0] != layout.CONDITIONS
    ]
    if not names:
        raise RequestError(f"{pattern}: matches {len(found)} files but no picture")
    return Source(folder, sorted(names))


def _tutorial(folder: Path) -> Source:
    """prompt.json: a line {"source", "target", "prompt"} a picture. The targets are the pictures; the sources are maps
    that were made already, and become the column `source`."""
    path = folder / TUTORIAL
    rows = []
    for number, line in enumerate(layout.read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            target, source, prompt = row["target"], row.get("source"), row["prompt"]
        except (ValueError, KeyError, TypeError, AttributeError):
            expected = '{"source": "source/0.png", "target": "target/0.png", "prompt": "…"}'
            raise RequestError(f"{path}: line {number} is no row of the tutorial; expected {expected}") from None
        for name in (target, source):
            if name is not None and (not isinstance(name, str) or not is_inside(name)):
                raise RequestError(f"{path}: line {number} names {name!r}, which is no path inside the folder")
        known = {layout.column("source"): source} if source else {}
        rows.append({"file_name": target, "text": str(prompt), **known})
    if not rows:
        raise RequestError(f"{path}: names no picture")
    return Source(folder, sorted({row["file_name"] for row in rows}), rows)


def is_inside(name: str) -> bool:
    """Whether a relative path stays in the folder that it starts from, on every system."""
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]
