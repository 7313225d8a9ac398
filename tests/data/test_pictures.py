"""Any picture people own is read as they see it, or refused in one line."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from controlkit.data.pictures import BadPicture, read_picture
from tests.conftest import draw_photo

PHOTO = draw_photo(3, 48, 32)


def save(path, image, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "a.webp"])
def test_lossless_formats_give_the_pixels_that_went_in(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    read = read_picture(save(tmp_path / name, Image.fromarray(PHOTO), **options))
    assert read.dtype == np.uint8
    assert np.array_equal(read, PHOTO)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(PHOTO), exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(read_picture(path), expected)
    assert (expected.shape == PHOTO.shape) == (orientation <= 4)


def test_grey_becomes_three_equal_channels(tmp_path):
    read = read_picture(save(tmp_path / "a.png", Image.fromarray(PHOTO[:, :, 0])))
    assert np.array_equal(read, np.repeat(PHOTO[:, :, :1], 3, axis=2))


def test_16_bit_is_scaled_not_clipped(tmp_path):
    """Pillow's own conversion to RGB turns nearly all 16-bit pictures white."""
    deep = PHOTO[:, :, 0].astype(np.uint16) * 257
    read = read_picture(save(tmp_path / "a.png", Image.fromarray(deep)))
    assert np.array_equal(read[:, :, 0], PHOTO[:, :, 0])


def test_16_bit_colour_is_scaled(tmp_path):
    """Written by hand, since Pillow writes none."""
    deep = PHOTO.astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    chunks = [
        (b"IHDR", struct.pack(">2I5B", 48, 32, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    data = b"".join(struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert np.array_equal(read_picture(tmp_path / "a.png"), PHOTO)


def test_a_palette_gives_its_colours(tmp_path):
    palette = Image.fromarray(PHOTO).quantize(16)
    assert np.array_equal(read_picture(save(tmp_path / "a.png", palette)), np.asarray(palette.convert("RGB")))


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(PHOTO).convert("CMYK"), quality=100)
    assert np.abs(read_picture(path).astype(int) - PHOTO).mean() < 12


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    """The colours hidden under alpha 0 mean nothing; Pillow's own conversion to RGB uncovers them."""
    image = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    if mode == "P":
        image = image.convert("RGB").quantize(2)
        path = save(tmp_path / "a.png", image, transparency=image.getpixel((7, 0)))
    else:
        path = save(tmp_path / "a.png", image.convert(mode))
    read = read_picture(path)
    assert (read[:, 4:] == 255).all()
    assert (read[:, :4] < 20).all()


def test_of_an_animation_the_first_frame_is_read(tmp_path):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (read_picture(path) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (4000, 3)])
def test_extreme_sizes_are_read(tmp_path, size):
    assert read_picture(save(tmp_path / "a.png", Image.new("RGB", size, "blue"))).shape == (size[1], size[0], 3)


def test_a_truncated_jpeg_is_refused(tmp_path):
    path = save(tmp_path / "a.jpg", Image.fromarray(draw_photo(1, 400, 300)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadPicture, match="damaged or cut off"):
        read_picture(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty (0 bytes)"),
        (b"not a picture at all", "no picture: its 20 bytes are in no format"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "damaged or cut off"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path, data, words):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(BadPicture) as reason:
        read_picture(path)
    assert str(path) in str(reason.value)
    assert words in str(reason.value) or "no picture" in str(reason.value)
    assert "\n" not in str(reason.value)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(BadPicture, match="there is no such file"):
        read_picture(tmp_path / "a.png")


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", Image.fromarray(PHOTO[:, :, 0].astype(np.float32)))
    with pytest.raises(BadPicture, match="floating-point"):
        read_picture(path)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    """A few bytes that claim 50,000 x 50,000 pixels."""
    header = struct.pack(">2I5B", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    end = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + end)
    with pytest.raises(BadPicture, match="more than 178,956,970 pixels"):
        read_picture(tmp_path / "a.png")
