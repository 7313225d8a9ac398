"""A request: everything that decides a picture, as typed values. The command line, files and servers all make this."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from annotators import ANNOTATORS
from controlkit.diffusion.repaint_walk import REPAINT_SAMPLERS, first_level, network_calls, walk
from controlkit.diffusion.samplers import SAMPLERS
from controlkit.errors import RequestError, known
from controlkit.generation.controls import RESIZES
from controlkit.generation.hires import Hires
from controlkit.generation.interval import WHOLE, lies_within
from controlkit.generation.modes import BALANCED, MODES
from controlkit.generation.prompt_chunks import MOST_TOKENS
from controlkit.generation.prompt_syntax import Prompt
from controlkit.generation.residuals import check_layers
from controlkit.generation.strength import problem_of, walked
from controlkit.generation.upscale import Upscale
from controlkit.generation.ways import CONTROLNET, REPAINT, WAYS
from controlkit.models.bases import DEFAULT_BASE, USUAL_CFG
from controlkit.models.formats.hypernetworks import Hypernetwork
from controlkit.models.formats.lora import Lora

DEFAULT_STRENGTH = 0.6

NONE = "none"
"""Of a control's mask or layers, where others have one."""

FIRST_PASS = Path("the first pass")
"""The image of the second pass, which is no file."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """A control map: its file, its type where that was said, how strongly and in which part of the steps it counts.

    `start` and `end` are shares of the steps that are walked.
    """

    file: Path
    type: str | None = None
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = BALANCED
    mask: Path | None = None  # where in the picture it holds: white wholly, black not
    layers: str | None = None  # how much each residual counts, as `residuals.layer_weights` reads it

    def __post_init__(self) -> None:
        if self.layers is not None:
            check_layers(self.layers)
        if self.mode not in MODES:
            raise RequestError(f"unknown control mode {self.mode!r}: {known(self.mode, MODES)}")

    @staticmethod
    def parse(text: str, **others: Any) -> Control:
        """`[TYPE=]FILE[@WEIGHT[:START[:END]]]`; `TYPE=` counts only for a registered type, `@…` only if all behind it
        are numbers, so that any file can be named."""
        type, file = split_type(text)
        numbers: list[float] = []
        stem, at, behind = file.rpartition("@")
        if at and re.fullmatch(r"-?\d*\.?\d+(:\d*\.?\d+){0,2}", behind):
            file, numbers = stem, [float(number) for number in behind.split(":")]
        weight, start, end = numbers + [1.0, 0.0, 1.0][len(numbers) :]
        if not 0 <= start < end <= 1:
            raise RequestError(f"--control {text}: from {start:g} to {end:g}: expected 0 <= START < END <= 1")
        return Control(file=Path(file), type=type, weight=weight, start=start, end=end, **others)


@dataclass(frozen=True, kw_only=True)
class Net:
    """A ControlNet as it is asked for: its name, and its type where that was said."""

    name: str
    type: str | None = None

    @staticmethod
    def parse(text: str) -> Net:
        """`[TYPE=]NET`."""
        type, name = split_type(text)
        return Net(name=name, type=type)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """What of the image is painted, in which of the three ways (`generation/ways.py`), and how RePaint walks.

    The white part of `file`, the room that `outpaint` adds at left, top, right and bottom, or both.
    """

    file: Path | None
    outpaint: tuple[int, int, int, int] = (0, 0, 0, 0)  # pixels
    way: str = REPAINT
    invert: bool = False  # black is painted
    grow: int = 0  # pixels
    feather: int = 8  # pixels around it in which the picture passes over
    only_masked: int | None = None  # paint the hole and so many pixels around it at the base's own size
    jump: int = 5  # steps back at once
    samples: int = 5  # how often a stretch is walked
    window: tuple[float, float] = (0.2, 0.8)  # shares of the noise between which it goes back

    def problems(self, start: int) -> list[str]:
        """Of a walk that begins at the level `start`."""
        found = [
            f"{name}={value}: expected 0 or more pixels"
            for name, value in (("grow", self.grow), ("feather", self.feather), ("only_masked", self.only_masked or 0))
            if value < 0
        ]
        if min(self.outpaint) < 0 or (self.file is None and not any(self.outpaint)):
            numbers = ",".join(map(str, self.outpaint))
            found.append(f"outpaint={numbers}: expected pixels to add at left, top, right, bottom, e.g. 0,0,256,0")
        if self.way not in WAYS:
            found.append(f"unknown way to inpaint {self.way!r}: {known(self.way, WAYS)}")
        if self.way != REPAINT:
            return found
        try:
            walk(start, jump=self.jump, samples=self.samples, window=self.window)
        except ValueError as reason:
            found.append(str(reason))
        return found


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to paint. `controlnets` pair with `controls` by type where both are known, else by order.

    Its task follows from what it holds: with a `mask` the part of the `image` below it is painted, with an `image`
    alone img2img, in tiles with `upscale`, else txt2img; each with controls or without.
    """

    controls: tuple[Control, ...] = ()
    controlnets: tuple[Net, ...] = ()
    image: Path | None = None  # the picture that img2img starts from
    strength: float | None = None  # the share of the steps that is walked; None: DEFAULT_STRENGTH, with a mask 1
    mask: Mask | None = None
    hires: Hires | None = None  # what is painted from text is walked again, larger
    upscale: Upscale | None = None  # the image is enlarged and walked again in tiles
    prompt: str = ""
    negative: str = ""
    plain_prompt: bool = False  # brackets and BREAK in prompts are text
    base: str = DEFAULT_BASE
    prediction: str | None = None  # what the base predicts, where neither it nor its family tells; None: they do
    tokenizer: str | None = None  # for a base in a single file; None: one that lies near
    loras: tuple[Lora, ...] = ()
    hypernetworks: tuple[Hypernetwork, ...] = ()
    embeddings: tuple[Path, ...] = ()  # textual inversions; prompts call them by the file's name
    vae: str | None = None  # a file or folder; None: the base's own
    sampler: str = "dpmpp_2m_karras"
    steps: int = 20
    eta: float = 0.0  # noise of each step, for the samplers that have it
    cfg: float = USUAL_CFG
    cfg_interval: tuple[float, float] = WHOLE  # the share of the walked steps that is guided
    cfg_rescale: float = 0.0
    clip_skip: int = 1  # 1: the text encoder's layer that the family reads; 2: the one before
    seed: int = 0
    num: int = 1
    batch_size: int = 1  # pictures painted together
    size: tuple[int, int] | None = None  # width, height; None: the first map's, else the image's, else the base's
    resize: str = "crop"  # how maps of another shape come to the size
    annotate: bool = False  # the control files are photographs: make their maps first
    control_half: bool = False  # of guidance's two halves the one with the prompt alone is controlled
    control_every: int = 1  # the steps for which an answer of the ControlNets stands

    def __post_init__(self) -> None:
        problems = []
        if not (self.controls or self.image or self.prompt):
            problems.append("nothing to paint from: expected --prompt TEXT, --control FILE or --image FILE")
        problems += self._problems_of_prompts()
        if self.strength is not None and self.image is None:
            problems.append(
                f"strength={self.strength:g}: says how much of a picture changes; give it with --image FILE"
            )
        elif self.image is not None and not self.upscale:
            problems += self._problems_of_strength()
        if self.hires:
            problems += self._problems_of_hires(self.hires)
        if self.upscale:
            problems += self._problems_of_upscale(self.upscale)
        if self.mask:
            problems += self._problems_of_mask(self.mask)
        if self.sampler not in SAMPLERS:
            problems.append(f"unknown sampler {self.sampler!r}: {known(self.sampler, SAMPLERS)}")
        for name in ("steps", "num", "batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"{name}={getattr(self, name)}: expected at least 1")
        if self.seed < 0 or self.seed + self.num > 2**63:
            problems.append(f"seed={self.seed}: expected 0 to {2**63 - self.num}")
        if self.cfg < 0:
            problems.append(f"cfg={self.cfg:g}: expected 0 or more (1 is no guidance)")
        if not 0 <= self.cfg_rescale <= 1:
            problems.append(f"cfg_rescale={self.cfg_rescale:g}: expected 0 (off) to 1; 0.7 is usual")
        elif self.cfg_rescale and self.cfg <= 1:
            problems.append(
                f"cfg_rescale={self.cfg_rescale:g}: without guidance (cfg={self.cfg:g}) nothing is rescaled"
            )
        if self.clip_skip < 1:
            problems.append(f"clip_skip={self.clip_skip}: expected 1 (the usual layer), 2 (the one before) or more")
        if self.resize not in RESIZES:
            problems.append(f"unknown resize {self.resize!r}: {known(self.resize, RESIZES)}")
        problems += self._problems_of_half() + self._problems_of_every()
        if self.size is not None and min(self.size) < 1:
            problems.append(f"size {self.size[0]}x{self.size[1]}: expected WIDTHxHEIGHT in pixels, e.g. 512x768")
        problems += [] if problems else self._problems_of_interval()
        if problems:
            raise RequestError("\n".join(problems))

    def _problems_of_prompts(self) -> list[str]:
        problems = []
        for name in ("prompt", "negative"):
            words = len(getattr(self, name).split())
            if words > MOST_TOKENS:  # each is at least one; a tokenizer need not be asked
                problems.append(f"{name}: {words} words; expected at most {MOST_TOKENS} tokens, shorten it")
        if not problems:
            try:
                _ = self.prompts
            except RequestError as reason:
                problems.append(str(reason))
        return problems

    def _problems_of_strength(self) -> list[str]:
        said = f"strength={self.noise_share:g}"
        steps = 0 if self.repaints else self.steps  # RePaint walks one at least
        problem = problem_of(self.noise_share, steps, said=said, option="--strength ")
        return [problem] if problem else []

    def _problems_of_hires(self, hires: Hires) -> list[str]:
        if self.image or self.mask:
            return [
                f"hires={hires.scale:g}: paints from text, then larger; to enlarge a picture of yours, leave out "
                f"--hires and give --upscale {hires.scale:g}:{hires.strength:g}, without a mask"
            ]
        return hires.problems(self.steps)

    def _problems_of_upscale(self, upscale: Upscale) -> list[str]:
        said = f"upscale={upscale.scale:g}"
        if self.image is None:
            return [f"{said}: enlarges a picture; give it with --image FILE (--hires enlarges what it paints itself)"]
        problems = upscale.problems(self.steps)
        if self.mask:
            problems.append(f"{said}: paints all of a picture, and a mask keeps a part; upscale first, then mask")
        if self.size is not None:
            problems.append(f"{said}: the size is so many times the picture's; leave --size out")
        if self.strength is not None:
            problems.append(f"{said}: has a strength of its own; give --upscale {upscale.scale:g}:{self.strength:g}")
        return problems

    def _problems_of_mask(self, mask: Mask) -> list[str]:
        problems = []
        if self.image is None:
            what = f"mask {mask.file}: lies on" if mask.file else "outpaint: enlarges"
            problems.append(f"{what} a picture; give it with --image FILE")
        if self.repaints and self.sampler in SAMPLERS and self.sampler not in REPAINT_SAMPLERS:
            problems.append(
                f"sampler {self.sampler!r} remembers the steps before, and RePaint jumps back; use one of "
                f"{', '.join(REPAINT_SAMPLERS)}"
            )
        if self.size is not None:
            problems.append("size: a masked picture keeps its own; leave it out (--only-masked paints the hole larger)")
        if self.resize != "crop":
            problems.append("resize: the maps of a masked picture have its size; leave --resize out")
        return problems + (mask.problems(self.first_level) if self.steps >= 1 and 0 < self.noise_share <= 1 else [])

    def _problems_of_interval(self) -> list[str]:
        if self.cfg_interval == WHOLE:
            return []
        start, end = self.cfg_interval
        named = f"cfg_interval={start:g}:{end:g}"
        if not 0 <= start < end <= 1:
            return [f"{named}: expected 0 <= FROM < TO <= 1"]
        if self.cfg <= 1:
            return [f"{named}: without guidance (cfg={self.cfg:g}) there is nothing to limit; leave one of them out"]
        for steps in (self.walked_steps, *([walked(self.steps, self.hires.strength)] if self.hires else [])):
            if not any(lies_within(step, steps, self.cfg_interval) for step in range(steps)):
                return [f"{named}: no step of {steps} lies in it; take a wider one, or more steps"]
        return []

    def _problems_of_half(self) -> list[str]:
        if not self.control_half:
            return []
        problems = []
        if not self.controls:
            problems.append("control_half: there is no control; leave it out, or give --control FILE")
        if self.cfg <= 1:
            problems.append(
                f"control_half: cfg={self.cfg:g} guides nothing, so there are no halves; leave one of them out"
            )
        if any(control.mode != BALANCED for control in self.controls):
            problems.append("control_half: a control mode decides on the halves itself; leave one of them out")
        return problems

    def _problems_of_every(self) -> list[str]:
        said = f"control_every={self.control_every}"
        if self.control_every < 1:
            return [f"{said}: expected at least 1 step (1: the ControlNet is asked in each)"]
        if self.control_every == 1:
            return []
        problems = []
        if not self.controls and not (self.mask and self.mask.way == CONTROLNET):
            problems.append(f"{said}: there is no control; leave it out, or give --control FILE")
        if self.upscale:
            problems.append(f"{said}: tiles ask for their control in each step; leave one of them out")
        return problems

    @property
    def prompts(self) -> tuple[Prompt, Prompt]:
        """What prompt and negative prompt say."""
        read = Prompt.literal if self.plain_prompt else Prompt.parse
        return read(self.prompt), read(self.negative)

    @property
    def seeds(self) -> list[int]:
        """One a picture."""
        return list(range(self.seed, self.seed + self.num))

    def second_pass(self, hires: Hires, size: tuple[int, int]) -> Request:
        """What is asked of the second pass: to start from the picture of the first, all else alike."""
        return replace(self, hires=None, image=FIRST_PASS, strength=hires.strength, size=size)

    @property
    def noise_share(self) -> float:
        """The strength; 1 where the picture, or what is masked of it, starts from noise."""
        if self.upscale:
            return self.upscale.strength
        if self.image is None or (self.mask and self.strength is None):
            return 1.0
        return DEFAULT_STRENGTH if self.strength is None else self.strength

    @property
    def repaints(self) -> bool:
        """Whether a mask is painted by RePaint."""
        return self.mask is not None and self.mask.way == REPAINT

    @property
    def first_level(self) -> int:
        """How many of the steps are to go where RePaint begins."""
        return first_level(self.steps, self.noise_share)

    @property
    def walked_steps(self) -> int:
        """Of the steps, those that are walked: as diffusers counts them, rounded down. By RePaint some of them are
        walked several times."""
        if self.mask and self.repaints:
            mask = self.mask
            return network_calls(walk(self.first_level, jump=mask.jump, samples=mask.samples, window=mask.window))
        return walked(self.steps, self.noise_share)


def parse_controls(
    texts: tuple[str, ...],
    modes: tuple[str, ...] = (),
    masks: tuple[str, ...] = (),
    layers: tuple[str, ...] = (),
) -> tuple[Control, ...]:
    """Controls, and what is said of each beside them."""
    types = [split_type(text)[0] for text in texts]
    said = zip(
        _for_each("control mode", modes, types),
        _for_each("control mask", masks, types),
        _for_each("control layers", layers, types),
        strict=True,
    )
    return tuple(
        Control.parse(
            text,
            mode=mode or BALANCED,
            mask=Path(mask) if mask not in (None, NONE) else None,
            layers=None if weights == NONE else weights,
        )
        for text, (mode, mask, weights) in zip(texts, said, strict=True)
    )


def _for_each(what: str, values: tuple[str, ...], types: list[str | None]) -> list[str | None]:
    """One for all controls, one for each in their order, or `TYPE=…` for those that were said to be of that type."""
    if values and not types:
        raise RequestError(f"{what} {values[0]!r} without a control; give it with --control FILE")
    typed = dict(split_type(value) for value in values)
    if None not in typed and values:
        if strange := [type for type in typed if type not in types]:
            raise RequestError(f"{what} {strange[0]}=…: no control has that type; say --control {strange[0]}=FILE")
        return [typed.get(type) for type in types]
    if len(values) not in (0, 1, len(types)):
        raise RequestError(
            f"{len(values)} {what.removesuffix('s')}s for {len(types)} controls; expected one for all, or one for each"
        )
    return [*(values or (None,))] * len(types) if len(values) < 2 else [*values]


def split_type(text: str) -> tuple[str | None, str]:
    """`TYPE=…` -> (TYPE, …); anything before a `=` that is no registered type belongs to what is named."""
    head, equals, tail = text.partition("=")
    return (head, tail) if equals and head in ANNOTATORS else (None, text)


def parse_size(text: str) -> tuple[int, int]:
    """ "512x768" -> (512, 768), width first."""
    match = re.fullmatch(r"(\d+)[x×X](\d+)", text)
    if not match:
        raise RequestError(f"--size {text!r}: expected WIDTHxHEIGHT in pixels, e.g. 512x768")
    return int(match[1]), int(match[2])


def parse_shares(text: str, option: str, of: str) -> tuple[float, float]:
    """ "0.2:0.8" -> (0.2, 0.8)."""
    match = re.fullmatch(r"(\d*\.?\d+):(\d*\.?\d+)", text)
    if not match:
        raise RequestError(f"--{option} {text!r}: expected two shares of the {of}, e.g. 0.2:0.8")
    return float(match[1]), float(match[2])


def parse_outpaint(text: str) -> tuple[int, int, int, int]:
    """ "0,0,256,0" -> (0, 0, 256, 0): left, top, right, bottom."""
    if not re.fullmatch(r"-?\d+(,-?\d+){3}", text):
        raise RequestError(f"--outpaint {text!r}: expected LEFT,TOP,RIGHT,BOTTOM in pixels, e.g. 0,0,256,0")
    left, top, right, bottom = map(int, text.split(","))
    return left, top, right, bottom
