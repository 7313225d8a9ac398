"""A picture again, from the settings in its PNG: every file it was made from must be there as it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.files import sha256
from controlkit.generation.execution import Execution
from controlkit.generation.hires import Hires
from controlkit.generation.record import picture_sha256
from controlkit.generation.request import Control, Mask, Net, Request
from controlkit.generation.settings import library_versions, read_settings, weights_sha256
from controlkit.generation.upscale import Upscale
from controlkit.models.bases import find_base
from controlkit.models.controlnets import find_controlnet
from controlkit.models.formats.hypernetworks import Hypernetwork
from controlkit.models.formats.lora import Lora
from controlkit.models.inpaint_hint import INPAINT

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from controlkit.generation.plan import Plan

    _Checked = tuple[str, NDArray[np.uint8], str, tuple[int, int]]  # file, pixels, their hash then, at that size


@dataclass(frozen=True)
class Replay:
    """What a picture's PNG says: its request, and where and how precisely it was computed."""

    path: Path
    settings: dict[str, Any]
    request: Request

    @property
    def device(self) -> str:
        return str(self.settings["device"])

    @property
    def dtype(self) -> str:
        return str(self.settings["dtype"])

    @property
    def execution(self) -> Execution:
        """What of it changes pixels a little."""
        tiling, hires = self.settings["vae_tiling"], self.settings["hires"]
        if hires and hires["vae_tiling"] != tiling:  # nobody said it: each pass followed its size
            tiling = None
        return Execution(vae_tiling=tiling, compile=self.settings["compile"])

    def say_what_differs(self, device: str, say: Callable[[str], None]) -> None:
        """What may change pixels and cannot be refused: other libraries, another device."""
        here = library_versions()
        others = [
            f"{name} {made_with}, here is {here.get(name)}"
            for name, made_with in self.settings["versions"].items()
            if here.get(name) != made_with
        ]
        if others:
            say(f"{self.path} was made with {'; '.join(others)}: pixels may differ")
        if device != self.device:
            say(f"{self.path} was made on {self.device}, this is {device}: pixels may differ")

    def check_pixels(self, plan: Plan) -> None:
        """Refuse maps and pictures that come out otherwise than they did, from the same files."""
        controls, hires, image = self.settings["controls"], self.settings["hires"], self.settings["image"]
        masks = [control["mask"] and control["mask"]["pixels_sha256"] for control in controls]
        checked = _checked_controls(plan, [control["pixels_sha256"] for control in controls], masks)
        if plan.second:
            checked += _checked_controls(plan.second, hires["controls"], hires["control_masks"])
        picture = plan.start.pixels if plan.start else plan.canvas.picture if plan.canvas else None
        if picture is not None:
            checked.append((str(plan.request.image), picture, image["pixels_sha256"], plan.size))
        problems = [
            f"{file}: the same file, but what is made of it at {size[0]}x{size[1]} is not what it was; "
            f"install the libraries that {self.path} was made with"
            for file, pixels, digest, size in checked
            if picture_sha256(pixels) != digest
        ]
        if problems:
            raise RequestError("\n".join(problems))


def _checked_controls(plan: Plan, maps: list[str], masks: list[str | None]) -> list[_Checked]:
    """The maps of one pass, and what says where they hold, beside what they hashed to."""
    found: list[_Checked] = []
    for control, fitted, region, of_map, of_mask in zip(
        plan.request.controls, plan.fitted, plan.regions, maps, masks, strict=True
    ):
        found.append((str(control.file), fitted, of_map, plan.size))
        if region and of_mask:
            found.append((str(control.mask), region.pixels, of_mask, plan.size))
    return found


def open_replay(path: Path) -> Replay:
    """The request inside a PNG; refused in one line for each file that is missing or not the same any more."""
    if not path.exists():
        raise RequestError(f"--replay {path}: there is no such file")
    settings = read_settings(path)
    if "controls" not in settings:
        raise RequestError(f"--replay {path}: was not made by `controlkit generate`; expected one of its pictures")
    problems = list(filter(None, [_changed(*each, path) for each in _files(settings)]))
    if problems:
        raise RequestError("\n".join(problems))
    return Replay(path, settings, request_of(settings))


def request_of(settings: dict[str, Any]) -> Request:
    """The request of one picture, as `record` wrote it down."""
    image, hires, vae, filler = (settings[name] for name in ("image", "hires", "vae", "inpaint_controlnet"))
    return Request(
        controls=tuple(
            Control(
                file=Path(control["file"]),
                type=control["type"],
                mask=Path(control["mask"]["file"]) if control["mask"] else None,
                **{name: control[name] for name in ("weight", "start", "end", "mode", "layers")},
            )
            for control in settings["controls"]
        ),
        controlnets=(*_nets_of(settings["controls"]), *((Net(name=filler["name"], type=INPAINT),) if filler else ())),
        image=Path(image["file"]) if image else None,
        strength=image["strength"] if image and not settings["upscale"] else None,
        hires=Hires(scale=hires["scale"], strength=hires["strength"]) if hires else None,
        upscale=Upscale(**settings["upscale"]) if settings["upscale"] else None,
        mask=_mask_of(settings["mask"]) if settings["mask"] else None,
        base=settings["base"]["name"],
        prediction=settings["base"]["prediction"],
        tokenizer=settings["base"]["tokenizer"],
        loras=tuple(Lora(Path(lora["file"]), lora["weight"]) for lora in settings["loras"]),
        hypernetworks=tuple(Hypernetwork(Path(each["file"]), each["weight"]) for each in settings["hypernetworks"]),
        embeddings=tuple(Path(embedding["file"]) for embedding in settings["embeddings"]),
        vae=vae["name"] if vae else None,
        # A mask has that of its picture, and what is upscaled follows from its own.
        size=None if settings["mask"] or settings["upscale"] else (settings["width"], settings["height"]),
        cfg_interval=(settings["cfg_interval"][0], settings["cfg_interval"][1]),
        seed=settings["seed"],
        **{name: settings[name] for name in _AS_THEY_ARE},
    )


def _nets_of(controls: list[dict[str, Any]]) -> list[Net]:
    """Each once, in their order. One for a single map is named by its type, as by its position."""
    read: dict[int, list[dict[str, Any]]] = {}
    for place, control in enumerate(controls):
        read.setdefault(control["controlnet"].get("number", place), []).append(control)
    return [
        Net(name=of_net[0]["controlnet"]["name"], type=of_net[0]["type"] if len(of_net) == 1 else None)
        for _, of_net in sorted(read.items())
    ]


def _mask_of(mask: dict[str, Any]) -> Mask:
    lists: dict[str, Any] = {name: tuple(mask[name]) for name in ("outpaint", "window")}
    own = {name: value for name, value in mask.items() if name not in ("file", "sha256", *lists)}
    return Mask(file=Path(mask["file"]) if mask["file"] else None, **lists, **own)


_AS_THEY_ARE = (
    *("prompt", "negative", "plain_prompt", "annotate", "resize", "sampler", "steps", "eta", "cfg", "cfg_rescale"),
    *("clip_skip", "control_half", "control_every"),
)


def _files(settings: dict[str, Any]) -> list[tuple[str, str, Callable[[], str], str]]:
    """(option, name, hash of what is there now, hash of what it was) of everything that decided the picture."""
    base = settings["base"]

    def of_base() -> str:
        return weights_sha256(
            find_base(base["name"], prediction=base["prediction"], tokenizer=base["tokenizer"]).folder
        )

    def of_net(name: str) -> Callable[[], str]:
        return lambda: weights_sha256(find_controlnet(name).folder)

    def of_weights(name: str) -> Callable[[], str]:
        return lambda: weights_sha256(Path(name).expanduser())

    def of_file(name: str) -> Callable[[], str]:
        return lambda: sha256(Path(name))

    found = [("--base", base["name"], of_base, base["sha256"])]
    for control in settings["controls"]:
        net = control["controlnet"]
        found.append(("--control", control["file"], of_file(control["file"]), control["sha256"]))
        found.append(("--controlnet", net["name"], of_net(net["name"]), net["sha256"]))
        if keypoints := control["keypoints"]:
            found.append(("--control", keypoints["file"], of_file(keypoints["file"]), keypoints["sha256"]))
        if region := control["mask"]:
            found.append(("--control-mask", region["file"], of_file(region["file"]), region["sha256"]))
    if net := settings["inpaint_controlnet"]:
        found.append(("--controlnet", net["name"], of_net(net["name"]), net["sha256"]))
    if image := settings["image"]:
        found.append(("--image", image["file"], of_file(image["file"]), image["sha256"]))
    if (mask := settings["mask"]) and mask["file"]:
        found.append(("--mask", mask["file"], of_file(mask["file"]), mask["sha256"]))
    for option, key in (("--lora", "loras"), ("--hypernetwork", "hypernetworks"), ("--embedding", "embeddings")):
        found += [(option, each["file"], of_weights(each["file"]), each["sha256"]) for each in settings[key]]
    if vae := settings["vae"]:
        found.append(("--vae", vae["name"], of_weights(vae["name"]), vae["sha256"]))
    return found


def _changed(option: str, name: str, now: Callable[[], str], then: str, path: Path) -> str | None:
    """What is wrong with one of them, or None."""
    try:
        found = now()
    except RequestError as reason:
        return f"{option} {name}: {path} was made with it ({reason})"
    except OSError as reason:
        return f"{option} {name}: {path} was made with it, and it cannot be read ({reason.strerror}); put it back there"
    if found != then:
        return f"{option} {name}: has changed since {path} was made: SHA-256 {found[:12]}…, expected {then[:12]}…"
    return None
