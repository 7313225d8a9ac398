"""Reading any picture people own as uint8 (H, W, 3) RGB, upright, or refusing it in one line."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from controlkit.data.readable import Part
from controlkit.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from controlkit.data.readable import Readable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})

MAX_PIXELS = 178_956_970
"""Pillow's own bound against decompression bombs: about 13,377 x 13,377."""


class BadPicture(RequestError):  # noqa: N818 (named for what came, not for what went wrong)
    """This file is no picture that can be read; the rest of a folder is not touched by it."""

    def __init__(self, path: Readable, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def read_picture(path: Readable) -> NDArray[np.uint8]:
    """The picture as people see it: EXIF rotation applied, 16 bits scaled to 8, transparency laid on white."""
    try:
        return decode_picture(path, path.read_bytes())
    except FileNotFoundError:
        raise BadPicture(path, "there is no such file") from None
    except OSError as reason:
        raise BadPicture(path, f"cannot be read ({reason.strerror})") from None


def decode_picture(path: Readable, data: bytes) -> NDArray[np.uint8]:
    """`read_picture` of bytes that were read already; `path` is for the messages."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise BadPicture(path, "is empty (0 bytes); get a whole copy")
    try:
        with warnings.catch_warnings():
            # Large is allowed up to MAX_PIXELS; Pillow warns from half of that. A damaged EXIF block is no damage.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
                ImageOps.exif_transpose(opened, in_place=True)
                return _rgb(path, opened)
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture(path, f"no picture: its {len(data):,} bytes are in no format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise BadPicture(path, f"has more than {MAX_PIXELS:,} pixels; make it smaller first") from None
    except MemoryError:
        raise BadPicture(path, "needs more memory than there is; make it smaller first") from None
    except Exception as reason:  # a damaged file makes decoders raise nearly anything, SyntaxError too
        text = " ".join(str(reason).split()) or type(reason).__name__
        raise BadPicture(path, f"damaged or cut off ({text}); get a whole copy") from None


def upright_size(source: Readable | bytes) -> tuple[int, int]:
    """Width and height as people see the picture, from its head."""
    from PIL import Image

    if isinstance(source, Part) and source.upright:
        return source.upright
    if not isinstance(source, bytes | Path):
        source = source.read_bytes()
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
        turned = image.getexif().get(0x0112, 1) >= 5
        return (image.height, image.width) if turned else (image.width, image.height)


def cover(width: int, height: int, size: int | tuple[int, int]) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """How a picture comes to that size (width, height; a number for a square): the width and height to scale it to, so
    that it covers the size, and the window (rows, columns) in the middle of that. What shares the picture's geometry
    goes through the same."""
    across, down = (size, size) if isinstance(size, int) else size
    scale = max(across / width, down / height)
    to = max(across, round(width * scale)), max(down, round(height * scale))
    left, top = (to[0] - across) // 2, (to[1] - down) // 2
    return to, (slice(top, top + down), slice(left, left + across))


def resize_picture(image: NDArray[np.uint8], to: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture at (width, height): averaged when it shrinks, cubic when it grows."""
    import cv2

    height, width = image.shape[:2]
    if to == (width, height):
        return image
    how = cv2.INTER_AREA if to[0] < width or to[1] < height else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, to, interpolation=how), dtype=np.uint8)


def _rgb(path: Readable, image: Image) -> NDArray[np.uint8]:
    """A decoded Pillow picture of any mode as uint8 (H, W, 3) RGB."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey of either byte order, or 32-bit, as Pillow holds some 16-bit files
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            values = f"{grey.min()} to {grey.max()}"
            raise BadPicture(path, f"its values go from {values}, expected 0 to 65535; save it with 8 or 16 bits")
        return np.repeat(np.round(grey / 257.0).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise BadPicture(path, "its pixels are floating-point numbers of no declared range; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)
