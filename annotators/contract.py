"""What every annotator promises, and the checks and the resize that keep the promise.

image, map: uint8 (H, W, 3) RGB. A map has the size of its picture, and only values that its annotator declares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Image = NDArray[np.uint8]


class Annotator(Protocol):
    """A frozen dataclass whose fields are its parameters, and which is called with a picture."""

    values: ClassVar[frozenset[int] | None]
    """The values a map may hold, before and after any resize; None: all of 0 to 255."""

    version: ClassVar[int]
    """Raised when the same parameters come to give other pixels, so that maps made before are made anew."""

    licence: ClassVar[str]
    """Of the code and the weights behind it."""

    def __call__(self, image: Image) -> Image: ...

    def libraries(self) -> dict[str, str]:
        """Name and version of the libraries that decide the pixels."""
        ...


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
