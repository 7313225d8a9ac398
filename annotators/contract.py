"""What every annotator promises, and the checks and the resize that keep the promise.

image, map: uint8 (H, W, 3) RGB. A map has the size of its picture, and only values that its annotator declares.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]


class Annotator(Protocol):
    """A frozen dataclass whose fields are its parameters, and which is called with a picture.

    One that can work on several pictures at once also has `batch(images) -> list[Image]` (`annotate_many`).
    """

    type: ClassVar[str]
    """The control type; the registry sets it."""

    backend: ClassVar[str]
    """Which way of making that type; the registry sets it."""

    values: ClassVar[frozenset[int] | None]
    """The values a map may hold, before and after any resize; None: all of 0 to 255."""

    version: ClassVar[int]
    """Raised when the same parameters come to give other pixels, so that maps made before are made anew."""

    licence: ClassVar[str]
    """Of the code and the weights behind it."""

    runs_with: ClassVar[frozenset[str]]
    """The fields that say where and from what it runs, and not what the map is: no part of a map's ledger."""

    mirrors: ClassVar[bool]
    """Whether a mirrored map may stand for that of the mirrored picture: not where colours tell left from right."""

    def __call__(self, image: Image) -> Image: ...

    def libraries(self) -> dict[str, str]:
        """Name and version of the libraries that decide the pixels."""
        ...


class Weightless:
    """What the annotators that are OpenCV and arithmetic share."""

    values: ClassVar[frozenset[int] | None] = None
    version: ClassVar[int] = 1
    licence: ClassVar[str] = "Apache-2.0 (OpenCV); no weights"
    runs_with: ClassVar[frozenset[str]] = frozenset()
    mirrors: ClassVar[bool] = True

    def libraries(self) -> dict[str, str]:
        import cv2

        return {"opencv": cv2.__version__}


def annotate_many(annotator: Annotator, images: Sequence[Image]) -> list[Image]:
    """A map for each picture, made together where the annotator can."""
    batch = getattr(annotator, "batch", None)
    return list(batch(images)) if batch else [annotator(image) for image in images]


def parameters_of(annotator: Annotator) -> dict[str, Any]:
    """The parameters that decide the map, for its ledger: the fields without those in `runs_with`."""
    fields = asdict(annotator)  # type: ignore[call-overload]
    return {name: value for name, value in fields.items() if name not in annotator.runs_with}


def check_image(name: str, image: Any) -> None:
    """Refuse what is not uint8 (H, W, 3), with the words that turn it into that."""
    import numpy as np

    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if image.size:
            return
        raise ValueError(f"{name}: the picture is empty: shape {image.shape}")
    shape, dtype = tuple(getattr(image, "shape", ())), getattr(image, "dtype", type(image).__name__)
    if "torch" in str(dtype):
        advice = "pass image.permute(1, 2, 0).mul(255).byte().numpy()"
    elif hasattr(image, "convert"):
        shape, dtype, advice = getattr(image, "size", ()), "a PIL image", 'pass np.asarray(image.convert("RGB"))'
    elif str(dtype).startswith("float"):
        advice = "pass (image * 255).astype(np.uint8) if it is 0 to 1, with the channels last"
    elif len(shape) == 2:
        advice = "pass np.stack([image] * 3, axis=-1)"
    else:
        advice = "pass an RGB picture with the channels last"
    raise ValueError(f"{name}: expected uint8 (H, W, 3) RGB, got {dtype} {shape}; {advice}")


def in_three_channels(grey: NDArray[Any]) -> Image:
    """A map of one channel, uint8 (H, W), as the contract has it."""
    import cv2
    import numpy as np

    return np.asarray(cv2.merge([grey.astype(np.uint8, copy=False)] * 3), dtype=np.uint8)  # np.repeat goes byte by byte


def resize_map(control_map: Image, width: int, height: int, values: frozenset[int] | None) -> Image:
    """A map at another size that still keeps its annotator's contract.

    A map of two values stays one: enlarged, its edges stay sharp; reduced, a line of one pixel stays a line, where
    nearest-neighbour would lose it and averaging would turn it grey.
    """
    import cv2
    import numpy as np

    old_height, old_width = control_map.shape[:2]
    if (old_width, old_height) == (width, height):
        return control_map.copy()
    reduction = max(old_width / width, old_height / height)
    if values is None:
        how = cv2.INTER_AREA if reduction > 1 else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(control_map, (width, height), interpolation=how), dtype=np.uint8)
    if values != frozenset({0, 255}):
        return np.asarray(cv2.resize(control_map, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    how = cv2.INTER_AREA if reduction > 1 else cv2.INTER_LINEAR
    share = cv2.resize(control_map.astype(np.float32) / 255, (width, height), interpolation=how)  # of white in a cell
    # A straight one-pixel line fills 1/reduction of each cell that it crosses; half of that still counts as the line.
    return np.where(share >= 0.5 / max(reduction, 1), 255, 0).astype(np.uint8)
