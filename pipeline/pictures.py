"""Pictures: sheets of small images with captions, byte-identical for equal input."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.files import replacing

PAPER, INK, GAP, MARGIN = 255, 64, 2, 12


def sheet(
    path: Path,
    images: np.ndarray,
    zoom: int,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Write a PNG of images in rows and columns.

    Args:
        images: (rows, columns, C, H, W) uint8, grey or colour.
        zoom: how many pixels of the picture a pixel of an image is wide.
        rows, columns: captions, left of each row and above each column.
    """
    cells = np.moveaxis(images, 2, -1).repeat(zoom, 2).repeat(zoom, 3)  # (R, K, H, W, C)
    r, k, height, width, _ = cells.shape
    font_size = 11 + zoom
    font = ImageFont.load_default(size=font_size)
    left = MARGIN + max((int(font.getlength(text)) + 8 for text in rows or []), default=0)
    top = MARGIN + (font_size + 8 if columns else 0)
    size = (left + k * (width + GAP) - GAP + MARGIN, top + r * (height + GAP) - GAP + MARGIN)
    picture = Image.new("RGB" if images.shape[2] == 3 else "L", size, (PAPER,) * 3 if images.shape[2] == 3 else PAPER)
    draw, ink = ImageDraw.Draw(picture), (INK,) * 3 if images.shape[2] == 3 else INK
    for i in range(r):
        y = top + i * (height + GAP)
        if rows:
            draw.text((left - 8, y + height / 2), rows[i], ink, font, anchor="rm")
        for j in range(k):
            picture.paste(
                Image.fromarray(cells[i, j].squeeze(-1) if cells.shape[-1] == 1 else cells[i, j]),
                (left + j * (width + GAP), y),
            )
    for j, text in enumerate(columns or []):
        draw.text((left + j * (width + GAP) + width / 2, top - 4), text, ink, font, anchor="mb")
    with replacing(path) as part:
        picture.save(part, "PNG")
