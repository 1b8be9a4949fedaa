"""Pictures: sheets of small images with captions, byte-identical for equal input."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GAP, MARGIN = 255, "#404040", 2, 12


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
    cells = np.moveaxis(picture.images, 2, -1).repeat(zoom, 2).repeat(zoom, 3)
    r, k, height, width, channels = cells.shape
    font_size = 11 + zoom
    font = ImageFont.load_default(size=font_size)
    left = MARGIN + max((int(font.getlength(text)) + 8 for text in picture.rows), default=0)
    top = MARGIN + (font_size + 8 if picture.columns else 0)
    ys, xs = (start + np.arange(n) * (size + GAP) for start, n, size in ((top, r, height), (left, k, width)))
    canvas = np.full((ys[-1] + height + MARGIN, xs[-1] + width + MARGIN, channels), PAPER, np.uint8)
    for i, j in np.ndindex(r, k):
        canvas[ys[i] : ys[i] + height, xs[j] : xs[j] + width] = cells[i, j]
    image = Image.fromarray(canvas if channels > 1 else canvas[..., 0])
    draw = ImageDraw.Draw(image)
    for y, text in zip(ys, picture.rows, strict=False):
        draw.text((left - 8, y + height / 2), text, INK, font, anchor="rm")
    for x, text in zip(xs, picture.columns, strict=False):
        draw.text((x + width / 2, top - 4), text, INK, font, anchor="mb")
    image.save(path, "PNG")
