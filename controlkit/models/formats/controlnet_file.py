"""ControlNets in a single file, standing wherever a folder does: whole ones, and those that add to a base."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import RequestError
from controlkit.models.bases import Base
from controlkit.models.controlnets import ControlNet
from controlkit.models.formats import detect
from controlkit.models.formats.configs import controlnet_config, stated_configs
from controlkit.models.formats.names import Part
from controlkit.models.formats.reading import TensorFile, read_tensors
from controlkit.models.formats.relative import added_up, check_shapes, config_on, stated_family, without_marks
from controlkit.models.formats.single_file import empty_model, fill
from controlkit.models.formats.unet import controlnet_from_ldm
from controlkit.models.quiet import quiet_libraries

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

CONDITION = "controlkit.condition"
"""In the metadata of a ControlNet of ours: the control type it was trained on."""


@dataclass(frozen=True)
class FileControlNet(ControlNet):
    """A ControlNet in a single file; `folder` is the file. `ldm`: under the names of the original code."""

    file: TensorFile = field(kw_only=True)
    part: Part = field(kw_only=True)
    ldm: bool = field(kw_only=True)

    @cached_property
    def config(self) -> dict[str, Any]:
        if (stated := stated_configs(self.file).get("controlnet")) is not None:
            return stated
        return self._read(lambda: controlnet_config(self.part.shapes(self.file), ldm=self.ldm))

    @cached_property
    def conditions(self) -> tuple[str, ...]:
        said = self.file.metadata.get(CONDITION) or self.file.metadata.get("modelspec.preprocessor")
        return (said,) if said else ()

    def tensors(self) -> dict[str, torch.Tensor]:
        theirs = self.part.tensors(self.file)
        return controlnet_from_ldm(theirs, self.config) if self.ldm else theirs

    def load(self, **options: Any) -> Any:
        quiet_libraries()
        model = empty_model("controlnet", self.config)
        return fill(model, self.tensors(), options.get("torch_dtype"), f"ControlNet {self.name!r}")

    def _read(self, config: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the shapes tell; refused in one line where they tell nothing."""
        try:
            return config()
        except (KeyError, IndexError) as reason:
            raise RequestError(f"{self.file.path} lacks the tensor {reason}; it is no whole ControlNet") from None
        except RequestError as reason:
            raise RequestError(f"{self.file.path}: {reason}") from None


@dataclass(frozen=True)
class RelativeControlNet(FileControlNet):
    """What a file adds to a base (`relative.py`); a ControlNet once it stands on one."""

    kind: str = field(kw_only=True)
    base: Base | None = field(kw_only=True, default=None)

    @property
    def family(self) -> str | None:
        """Of the bases that it was made for, where the file tells."""
        return stated_family(self.part.shapes(self.file))

    @cached_property
    def config(self) -> dict[str, Any]:
        base, shapes = self._need_base(), self.part.shapes(self.file)
        return self._read(lambda: config_on(base, shapes))

    def on(self, base: Base) -> RelativeControlNet:
        standing = replace(self, base=base)
        if self.family not in (None, base.family):
            raise RequestError(
                f"ControlNet {self.name!r} is a {self.kind} for {self.family}, base {base.name!r} is {base.family}; "
                f"choose a base of its family"
            )
        shapes = controlnet_from_ldm(self.part.shapes(self.file), standing.config)
        check_shapes(shapes, standing.config, f"ControlNet {self.name!r}", base.name)
        standing.check_fits(base)
        return standing

    def tensors(self) -> dict[str, torch.Tensor]:
        file = controlnet_from_ldm(self.part.tensors(self.file), self.config)
        return added_up(self.kind, file, self._need_base(), self.config)

    def _need_base(self) -> Base:
        if self.base is None:
            raise RequestError(
                f"{self.name} is: {self.kind}, which holds only what a ControlNet adds to a base; say to which "
                f"(--base BASE)"
            )
        return self.base


def open_controlnet(name: str) -> FileControlNet:
    """A ControlNet in a single file; everything but the weights is read and checked."""
    path = Path(name).expanduser()
    file = read_tensors(path)
    kind = detect.kind_of(file)
    if kind not in detect.CONTROLNETS:
        raise RequestError(
            f"ControlNet {name!r} is: {kind}; expected a ControlNet of Stable Diffusion 1.x, 2.x or SDXL"
        )
    if kind == detect.DIFFUSERS_CONTROLNET:
        return FileControlNet(name, path, file=file, part=Part.of(file, ""), ldm=False)
    prefix = next(each for each in detect.CONTROLNET_PREFIXES if f"{each}zero_convs.0.0.weight" in file)
    part = Part.of(file, prefix)
    if kind in detect.RELATIVE_CONTROLNETS:
        return RelativeControlNet(name, path, file=file, part=Part(without_marks(part)), ldm=False, kind=kind)
    return FileControlNet(name, path, file=file, part=part, ldm=True)
