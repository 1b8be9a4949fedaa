"""Pictures: sheets of small images with captions, byte-identical for equal input."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GAP, MARGIN = 255, 64, 2, 12


class Picture(NamedTuple):
    """Images in rows and columns, with captions."""

    name: str
    title: str
    images: np.ndarray  # (R, K, C, H, W) uint8, grey or colour
    rows: Sequence[str] = ()  # captions left of each row
    columns: Sequence[str] = ()  # captions above each column


def strip(images: np.ndarray, zoom: int) -> bytes:
    """A PNG of images (K, C, H, W) side by side, nothing (transparent) between them."""
    cells = np.moveaxis(images, 1, -1).repeat(zoom, 1).repeat(zoom, 2)  # (K, H, W, C)
    opaque = np.concatenate([cells, np.full_like(cells[..., :1], 255)], -1)
    row = np.pad(opaque, ((0, 0), (0, 0), (0, GAP), (0, 0))).transpose(1, 0, 2, 3)  # (H, K, W + gap, C + 1)
    file = io.BytesIO()
    Image.fromarray(row.reshape(len(row), -1, row.shape[-1])[:, :-GAP]).save(file, "PNG")
    return file.getvalue()


def sheet(path: Path, picture: Picture, zoom: int) -> None:
    """Write a picture with its captions as a PNG to `path`; a pixel of an image becomes `zoom` × `zoom` pixels."""
    images, rows, columns = picture.images, picture.rows, picture.columns
    cells = np.moveaxis(images, 2, -1).repeat(zoom, 2).repeat(zoom, 3)  # (R, K, H, W, C)
    r, k, height, width, _ = cells.shape
    font_size = 11 + zoom
    font = ImageFont.load_default(size=font_size)
    left = MARGIN + max((int(font.getlength(text)) + 8 for text in rows), default=0)
    top = MARGIN + (font_size + 8 if columns else 0)
    size = (left + k * (width + GAP) - GAP + MARGIN, top + r * (height + GAP) - GAP + MARGIN)
    canvas = Image.new("RGB" if images.shape[2] == 3 else "L", size, (PAPER,) * 3 if images.shape[2] == 3 else PAPER)
    draw, ink = ImageDraw.Draw(canvas), (INK,) * 3 if images.shape[2] == 3 else INK
    for i in range(r):
        y = top + i * (height + GAP)
        if rows:
            draw.text((left - 8, y + height / 2), rows[i], ink, font, anchor="rm")
        for j in range(k):
            canvas.paste(
                Image.fromarray(cells[i, j].squeeze(-1) if cells.shape[-1] == 1 else cells[i, j]),
                (left + j * (width + GAP), y),
            )
    for j, text in enumerate(columns):
        draw.text((left + j * (width + GAP) + width / 2, top - 4), text, ink, font, anchor="mb")
    canvas.save(path, "PNG")
