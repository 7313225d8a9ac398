"""A sheet: pictures side by side at their own size, with what tells them apart above and beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAPER, _INK = "white", "black"


def draw_sheet(
    rows: list[list[NDArray[np.uint8]]], above: list[list[str]], beside: list[str] | None = None
) -> NDArray[np.uint8]:
    """`above` has a label for each picture of the rows that have labels: of one row if only the first has any."""
    from PIL import Image, ImageDraw, ImageFont

    height = max(image.shape[0] for row in rows for image in row)
    width = max(image.shape[1] for row in rows for image in row)
    size = max(12, width // 20)
    font = ImageFont.load_default(size)
    gap, line = max(4, size // 2), round(size * 1.6)
    widest = max(font.getlength(label) for labels in above for label in labels)
    across = max(width, round(widest)) + gap
    left = round(max(font.getlength(label) for label in beside)) + 2 * gap if beside else gap
    heads = [line if number < len(above) else 0 for number in range(len(rows))]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (left + columns * across, gap + sum(heads) + len(rows) * (height + gap)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = gap
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            x = left + column * across
            if heads[number]:
                draw.text((x, top), above[number][column], fill=_INK, font=font)
            sheet.paste(Image.fromarray(image), (x, top + heads[number]))
        if beside:
            draw.text((gap, top + heads[number] + height / 2), beside[number], fill=_INK, font=font, anchor="lm")
        top += heads[number] + height + gap
    return np.asarray(sheet)


def draw_grid(images: list[NDArray[np.uint8]], labels: list[str]) -> NDArray[np.uint8]:
    """Pictures in rows of about as many as there are rows, each under its label."""
    columns = int(np.ceil(len(images) ** 0.5))
    starts = range(0, len(images), columns)
    return draw_sheet(
        [images[start : start + columns] for start in starts], [labels[start : start + columns] for start in starts]
    )
