"""Image files of any kind and size, as squares in 8-bit grey or colour."""

import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
GREY = ("1", "L", "LA", "La")
DEEPEST = 65_535  # the largest value of 16-bit grey

warnings.filterwarnings("ignore", module=r"PIL\.")  # on odd files; a corrupt one raises


class Broken(Exception):
    """An image that can't be decoded, with the reason."""


def decode(file: BinaryIO) -> Image.Image:
    """An image in mode L or RGB, in its own size: upright as its EXIF says, transparent parts over black, the first frame
    of several, 16-bit grey in 8 bits. Grey is what the file says is grey; a palette counts as colour.

    Raises `Broken`, also where there are more pixels than PIL's limit, `Image.MAX_IMAGE_PIXELS`.
    """
    file.seek(0)
    try:
        return _decode(file)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise Broken("not an image in a known format") from error
    except Exception as error:  # PIL raises anything for a damaged file
        raise Broken(" ".join(str(error).split())[:100] or type(error).__name__) from error


def _decode(file: BinaryIO) -> Image.Image:
    with Image.open(file, formats=FORMATS) as opened:
        pixels, most = opened.width * opened.height, Image.MAX_IMAGE_PIXELS
        if most is not None and pixels > most:
            raise ValueError(f"{pixels:,} pixels, more than PIL's limit of {most:,}")
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        values = np.asarray(image, np.float64).clip(0, DEEPEST) * (255 / DEEPEST)
        return Image.fromarray(values.round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    grey = image.mode in GREY
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "black"), layer)
    return image.convert("L" if grey else "RGB")


def square(image: Image.Image, channels: int, size: int) -> np.ndarray:
    """The largest square in the middle of an image, resized: (channels, size, size) uint8."""
    fitted = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.BICUBIC)
    return np.moveaxis(np.asarray(fitted).reshape(size, size, channels), -1, 0)
