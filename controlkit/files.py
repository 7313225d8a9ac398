"""Files appear whole or not at all: written under a temporary name beside the target, then renamed over it."""

import contextlib
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from controlkit.errors import RequestError

# Names that start like this are ours and unfinished; readers of folders leave hidden files out, so nobody meets them.
_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it takes the name `path` when the block ends well and vanishes when it does not."""
    temporary = _beside(path)
    try:  # around the opening as well: Ctrl-C comes between any two lines
        with _created(temporary) as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """`atomic_file` for libraries that write to a name of their own choosing: this one, beside `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _beside(path)
    try:
        folder.mkdir(mode=0o700)
        temporary = folder / path.name
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, making its folders; a reader sees the old file or the new one, never a part."""
    with atomic_file(path) as file:
        file.write(data)


def atomic_create_bytes(path: Path, data: bytes) -> None:
    """`atomic_write_bytes` that never replaces: FileExistsError if the name is taken, also by a process beside us."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.write_bytes(data)
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError(path) from None
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: Path, text: str) -> None:
    """`atomic_write_bytes` in UTF-8 with line ends as they are."""
    atomic_write_bytes(path, text.encode())


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A folder to fill; it takes the name `path` when the block ends well and vanishes when it does not.

    Everything in it is flushed to the disk before the rename, so that after a power cut the folder is whole or absent.
    Without `replace` a folder that a process beside us has made meanwhile stays: somebody may read it already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                file.chmod(0o666 & ~_umask())  # safetensors writes for its owner alone
            _flush(file)
        _flush(temporary)
        if replace and path.is_dir():  # os.replace cannot put a folder over one that holds something
            old = _beside(path)
            path.replace(old)
            temporary.replace(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            try:
                temporary.replace(path)
            except OSError:
                if replace or not path.is_dir():
                    raise
                shutil.rmtree(temporary)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path, before: float) -> None:
    """Remove what processes that were killed left unfinished below `folder`, if it is older than the time `before`."""
    for path in folder.rglob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Put the file `source` at `target` without doubling it on the disk where the file system allows."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(target)
    try:
        try:
            temporary.hardlink_to(source.resolve() if source.is_symlink() else source)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)  # a rename over the same file leaves both names


def need_writable(folder: Path, what: str) -> None:
    """Refuse a folder that cannot be written, before work would be lost; `what` names the option it came by."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as reason:
        raise RequestError(
            f"{what} {str(folder)!r} cannot be written ({reason.strerror}); choose a folder of your own"
        ) from reason


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where things made once are kept: $CONTROLKIT_CACHE, else $XDG_CACHE_HOME/controlkit, else ~/.cache/controlkit."""
    if own := os.environ.get("CONTROLKIT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "controlkit"


def _created(path: Path) -> BinaryIO:
    """A new file, open for writing, and the folders above it."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _beside(path: Path) -> Path:
    """A name that nobody else takes, as short as a name can be whose own is as long as a name may be."""
    return path.with_name(_UNFINISHED + secrets.token_hex(8))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
