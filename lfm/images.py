"""Pictures at the edge of the library: a user's scan in, a grid of digits out. Nothing here imports torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from lfm import decoder
from lfm.errors import ConfigError

LARGEST = 1000  # pixels a side; larger scans are reduced before anything else
FAINTEST = 24  # grey levels between ink and paper; less counts as an empty picture
BOX, FINE = 20, 4  # MNIST's digits fit a box of 20 × 20 pixels; strokes are measured at four times that
STROKE = 2.2  # pixels: a usual width of MNIST's strokes; thinner ones are drawn thicker
GAP, GAP_GREY = 1, 48  # between the pictures of a grid


def read(path: Path) -> Image.Image:
    """An image file of any common kind, upright, in mode L or RGB. Raises `ConfigError` that names the file."""
    try:
        with path.open("rb") as file:
            return decoder.decode(file, background=None)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); name an image file") from error
    except decoder.Broken as error:
        raise ConfigError(
            f"{path}: can't be read ({error}); accepted: {', '.join(decoder.FORMATS)} of up to "
            f"{Image.MAX_IMAGE_PIXELS or 0:,} pixels"
        ) from error


def as_digit(image: Image.Image, size: int = 28) -> tuple[Image.Image, str]:
    """A drawn digit as MNIST has them, and what was done in words: white on black, fitted into a box of 20 × 20 pixels, its
    centre of mass in the middle of 28 × 28 (LeCun et al. 1998).

    Ink is what differs from the paper, the median colour of the border: any ink on any plain paper will do. An image that is
    28 × 28 and dark along its border is left as it is.

    Args:
        image: mode L or RGB, any size.
        size: pixels a side; the box is 5/7 of it.

    Raises `ConfigError` if nothing is on the image.
    """
    did = [f"{image.width}×{image.height}"]
    if max(image.size) > LARGEST:
        image = image.copy()
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    ink, light = _ink(image)
    if image.size == (size, size) and light and not _border(np.asarray(image.convert("L"))).max():
        return image.convert("L"), f"{did[0]}, taken as it is"
    did.append("light on dark" if light else "dark on light, inverted")
    sharp = (
        Image.fromarray(ink).filter(ImageFilter.MedianFilter(3)) if min(image.size) > 4 * size else Image.fromarray(ink)
    )
    box = sharp.point(lambda v: 255 * (v > 96)).getbbox() or (0, 0, *image.size)
    fitted, thicker = _fitted(Image.fromarray(ink).crop(box), round(size * BOX / 28))
    did.append(f"the digit of {box[2] - box[0]}×{box[3] - box[1]} fitted into {max(fitted.size)} pixels")
    if thicker:
        did.append("strokes made thicker")
    did.append(f"centred by mass in {size}×{size}")
    return _centred(np.asarray(fitted), size), ", ".join(did)


def _ink(image: Image.Image) -> tuple[np.ndarray, bool]:
    """How much every pixel differs from the paper, uint8 (H, W), and whether ink is lighter than paper."""
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1)
    difference = pixels - np.median(_border(pixels), axis=0)
    distance = np.abs(difference).max(axis=2)
    most = float(np.percentile(distance, 99.9)) if distance.size > 10_000 else float(distance.max())
    if most < FAINTEST:
        raise ConfigError(
            f"nothing is on it: no pixel differs from the background by {FAINTEST} or more of 255 grey levels; "
            "give a picture with more contrast"
        )
    light = float((difference.mean(axis=2) * distance).sum()) > 0
    return ((distance / most - 0.2) / 0.6 * 255).clip(0, 255).astype(np.uint8), light


def _border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels (n, ...) of an image (H, W, ...)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _fitted(ink: Image.Image, box: int) -> tuple[Image.Image, bool]:
    """A cropped digit, its longer side `box` pixels; thin strokes are drawn thicker."""
    scale = FINE * box / max(ink.size)
    fine = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.BICUBIC)
    padded = Image.new("L", (fine.width + 2, fine.height + 2))
    padded.paste(fine, (1, 1))
    area, inside = (float(np.asarray(x, float).sum()) for x in (padded, padded.filter(ImageFilter.MinFilter(3))))
    width = 2 * area / max(1.0, area - inside)  # of the strokes: twice their area by their outline
    grow = round((STROKE * FINE - width) / 2)
    if grow > 0:
        room = Image.new("L", (fine.width + 2 * grow, fine.height + 2 * grow))
        room.paste(fine, (grow, grow))
        fine = room.filter(ImageFilter.MaxFilter(2 * grow + 1))
    scale = box / max(fine.size)
    small = fine.resize((max(1, round(fine.width * scale)), max(1, round(fine.height * scale))), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32)
    return Image.fromarray((pixels * (255 / np.maximum(1.0, np.max(pixels)))).round().astype(np.uint8)), grow > 0


def _centred(pixels: np.ndarray, size: int) -> Image.Image:
    """A digit with its centre of mass in the middle, as far as it stays within the frame."""
    canvas = np.zeros((size, size), np.uint8)
    corner = []
    for axis, length in enumerate(pixels.shape):
        mass = pixels.sum(axis=1 - axis, dtype=float)
        centre = float((mass * (np.arange(length) + 0.5)).sum() / mass.sum())
        corner.append(min(max(round(size / 2 - centre), 0), size - length))
    canvas[corner[0] : corner[0] + pixels.shape[0], corner[1] : corner[1] + pixels.shape[1]] = pixels
    return Image.fromarray(canvas)


def grid(images: Sequence[np.ndarray], columns: int, zoom: int) -> Image.Image:
    """Images (C, H, W) uint8, row by row, a thin line between them, each pixel drawn `zoom` × `zoom`."""
    channels, height, width = images[0].shape
    rows, columns = -(-len(images) // columns), min(columns, len(images))
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), GAP_GREY, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = np.moveaxis(image, 0, -1)
    sheet = sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
