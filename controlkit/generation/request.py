"""A request: everything that decides a picture, as typed values. The command line, files and servers all make this."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from annotators import ANNOTATORS
from controlkit.diffusion.samplers import SAMPLERS
from controlkit.errors import RequestError, known
from controlkit.models.bases import DEFAULT_BASE
from controlkit.models.formats.lora import Lora


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control map: its file, its type where that was said, how strongly and in which part of the steps it counts."""

    file: Path
    type: str | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    @staticmethod
    def parse(text: str) -> Control:
        """`[TYPE=]FILE[@WEIGHT[:START[:END]]]`; `TYPE=` counts only for a registered type, `@…` only if all behind it
        are numbers, so that any file can be named."""
        file, type = text, None
        head, equals, tail = text.partition("=")
        if equals and head in ANNOTATORS:
            type, file = head, tail
        numbers: list[float] = []
        stem, at, behind = file.rpartition("@")
        if at and re.fullmatch(r"-?\d*\.?\d+(:\d*\.?\d+){0,2}", behind):
            file, numbers = stem, [float(number) for number in behind.split(":")]
        weight, start, end = numbers + [1.0, 0.0, 1.0][len(numbers) :]
        if not 0 <= start < end <= 1:
            raise RequestError(f"--control {text}: from {start:g} to {end:g}: expected 0 <= START < END <= 1")
        return Control(file=Path(file), type=type, weight=weight, start=start, end=end)


@dataclass(frozen=True, kw_only=True)
class Net:
    """A ControlNet as it is asked for: its name, and its type where that was said."""

    name: str
    type: str | None = None

    @staticmethod
    def parse(text: str) -> Net:
        """`[TYPE=]NET`."""
        head, equals, tail = text.partition("=")
        return Net(name=tail, type=head) if equals and head in ANNOTATORS else Net(name=text)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to paint. `controlnets` pair with `controls` by type where both are known, else by order."""

    controls: tuple[Control, ...]
    controlnets: tuple[Net, ...]
    prompt: str = ""
    negative: str = ""
    base: str = DEFAULT_BASE
    prediction: str | None = None  # what the base predicts, where neither it nor its family tells; None: they do
    tokenizer: str | None = None  # for a base in a single file; None: one that lies near
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Path, ...] = ()  # textual inversions; prompts call them by the file's name
    vae: str | None = None  # a file or folder; None: the base's own
    sampler: str = "dpmpp_2m_karras"
    steps: int = 20
    cfg: float = 7.5
    seed: int = 0
    num: int = 1
    size: tuple[int, int] | None = None  # width, height; None: the control map's
    annotate: bool = False  # the control files are photographs: make their maps first
    control_half: bool = False  # of guidance's two halves the one with the prompt alone is controlled

    def __post_init__(self) -> None:
        problems = []
        if not self.controls:
            problems.append("no control map: expected --control FILE")
        if self.sampler not in SAMPLERS:
            problems.append(f"unknown sampler {self.sampler!r}: {known(self.sampler, SAMPLERS)}")
        for name in ("steps", "num"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: expected at least 1")
        if self.seed < 0 or self.seed + self.num > 2**63:
            problems.append(f"seed={self.seed}: expected 0 to {2**63 - self.num}")
        if self.cfg < 0:
            problems.append(f"cfg={self.cfg:g}: expected 0 or more (1 is no guidance)")
        if self.control_half and self.cfg <= 1:
            problems.append(
                f"control_half: cfg={self.cfg:g} guides nothing, so there are no halves; leave one of them out"
            )
        if self.size is not None and min(self.size) < 1:
            problems.append(f"size {self.size[0]}x{self.size[1]}: expected WIDTHxHEIGHT in pixels, e.g. 512x768")
        if problems:
            raise RequestError("\n".join(problems))


def parse_size(text: str) -> tuple[int, int]:
    """ "512x768" -> (512, 768), width first."""
    match = re.fullmatch(r"(\d+)[x×X](\d+)", text)
    if not match:
        raise RequestError(f"--size {text!r}: expected WIDTHxHEIGHT in pixels, e.g. 512x768")
    return int(match[1]), int(match[2])
