"""`controlkit fetch`: weights from the hub, on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import click

from controlkit.cli.output import common_options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from annotators.weights import Weights
    from controlkit.cli.output import Output

# Of a whole repository: settings, vocabularies, and the weights in one format, the safer first.
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
FORMATS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.onnx", "*.task")
COPIES = ("*.fp16.*", "*non_ema*")


@dataclass(frozen=True)
class Fetched:
    """A file that is on this machine now."""

    repo: str
    name: str
    path: Path
    licence: str
    sha256: str

    def line(self) -> str:
        size = f"{self.path.stat().st_size / 1e6:.1f} MB"
        return f"{self.name} of {self.repo} · {size} · {self.licence} · SHA-256 {self.sha256}\n    {self.path}"

    def as_dict(self) -> dict[str, Any]:
        about = {"repo": self.repo, "file": self.name, "licence": self.licence, "sha256": self.sha256}
        return {**about, "bytes": self.path.stat().st_size, "path": str(self.path)}


@dataclass(frozen=True)
class OfHub:
    """What the hub says of a repository, by file name."""

    licence: str
    sizes: dict[str, int]
    hashes: dict[str, str]


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="TYPE[=BACKEND]|ID…")
@click.option("--all", "everything", is_flag=True, help="Every file that the backend's parameters may ask for.")
@common_options(answers=True)
def command(what: tuple[str, ...], everything: bool, output: Output) -> int:
    """Download the weights of annotators, or a model by its hub id, and say size, licence and SHA-256.

    \b
    controlkit fetch depth                        what the default backend of a type needs
    controlkit fetch softedge=pidinet             what another backend needs
    controlkit fetch depth-anything/Depth-Anything-V2-Base-hf
                                                  a model of the hub: settings and weights

    They go to the hub's cache (HF_HOME), where everything finds them later without a network. What is there already is
    not downloaded again. `controlkit annotators` lists what each type needs.
    """
    import controlkit.toybox.register  # noqa: F401  (its readers are backends too)
    from annotators.weights import is_hub_id, not_given
    from controlkit.errors import RequestError

    if everything and any(is_hub_id(each) for each in what):
        raise RequestError("--all is for types; a hub id is fetched whole")
    wanted = {each: None if is_hub_id(each) else weights_of(each, everything) for each in what}
    found: list[Fetched] = []
    failed: dict[str, str] = {}
    for name, needs in wanted.items():
        if needs == ():
            output.say(f"{name} needs no weights")
        try:
            for each in fetch_repository(name, output) if needs is None else fetch_all(needs, output):
                found.append(each)
                if not output.as_json:
                    click.echo(each.line())
        except not_given() as reason:
            failed[name] = " ".join(str(reason).split())[:300]
            output.warn(f"failed: {name}: {failed[name]}")
    if output.as_json:
        output.answer("", {"files": [each.as_dict() for each in found], "failed": failed})
    return 1 if failed else 0


def weights_of(name: str, everything: bool) -> tuple[Weights, ...]:
    """What `TYPE` or `TYPE=BACKEND` needs."""
    from annotators import ANNOTATORS

    type_name, _, backend = name.partition("=")
    annotator: Any = ANNOTATORS.create(type_name, backend or None)
    if not hasattr(annotator, "needs"):
        return ()
    wanted: tuple[Weights, ...] = annotator.needs if everything else annotator.wanted()
    return wanted


def fetch_all(needs: tuple[Weights, ...], output: Output) -> Iterator[Fetched]:
    from annotators.weights import download, in_cache, sha256

    for wanted in needs:
        here = in_cache(wanted.repo, wanted)
        if here is None:
            output.say(f"fetching {wanted}")
        paths = here or download(wanted.repo, wanted)
        first = next(name for name in (wanted.file, *wanted.instead) if name.endswith(paths[0].name))
        said = None if here else ask_hub(wanted.repo)
        for name, path in zip((first, *wanted.beside), paths, strict=True):
            if said:
                check(path, said.hashes.get(name))
            yield Fetched(wanted.repo, name, path, wanted.licence, sha256(path))


def fetch_repository(repo: str, output: Output) -> Iterator[Fetched]:
    from pathlib import Path

    from huggingface_hub import hf_hub_download

    from annotators.weights import sha256

    said = ask_hub(repo)
    names = worth_having(sorted(said.sizes))
    total = sum(said.sizes[name] for name in names)
    output.say(f"fetching {len(names)} files of {repo} ({total / 1e6:.1f} MB, {said.licence})")
    for name in names:
        path = Path(hf_hub_download(repo, name))
        check(path, said.hashes.get(name))
        yield Fetched(repo, name, path, said.licence, sha256(path))


def worth_having(names: list[str]) -> list[str]:
    """Settings, and the weights in the first format that there is, without second copies at half precision."""

    def of(patterns: tuple[str, ...]) -> list[str]:
        return [name for name in names if any(fnmatch(name, each) for each in patterns)]

    copies = set(of(COPIES))
    weights = next((found for each in FORMATS if (found := [n for n in of((each,)) if n not in copies])), [])
    return sorted({*of(SETTINGS), *weights})


def ask_hub(repo: str) -> OfHub:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, files_metadata=True)
    files = info.siblings or []
    hashes = {each.rfilename: each.lfs.sha256 for each in files if each.lfs is not None}
    licence = (info.card_data or {}).get("license") or "no licence stated"
    return OfHub(str(licence), {each.rfilename: each.size or 0 for each in files}, hashes)


def check(path: Path, expected: str | None) -> None:
    """Refuse a file whose hash is not the one that the hub states; the hub states those of large files."""
    from annotators.weights import sha256

    if expected is not None and sha256(path) != expected:
        raise OSError(f"{path} has SHA-256 {sha256(path)}, the hub says {expected}; delete it and fetch again")
