"""IDX files (LeCun's format) of unsigned bytes, packed with gzip or not."""

import gzip
import io
import math
import zlib

import numpy as np

from pipeline.errors import UserError

LARGEST = 1 << 26  # bytes of a file, packed or not; MNIST's largest has 47 million
MAGIC = b"\0\0\x08"  # and one byte: the number of dimensions


def unpack(name: str, data: bytes) -> bytes:
    """The content of a gzip file; any other file is its own content."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        content = gzip.GzipFile(fileobj=io.BytesIO(data)).read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: corrupt gzip file ({error}); fetch it again") from error
    if len(content) > LARGEST:
        raise UserError(f"{name}: unpacks to more than {LARGEST:,} bytes; fetch it again")
    return content


def parse(name: str, content: bytes) -> np.ndarray:
    """The array in an unpacked file: magic, big-endian sizes, values."""
    if len(content) < 4 or not content.startswith(MAGIC):
        raise UserError(
            f"{name}: starts with '{content[:4].hex(' ')}', not with the IDX magic 00 00 08; fetch it again"
        )
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4) if len(content) >= 4 + 4 * rank else np.zeros(0)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape))
    if len(shape) != rank or values.size != math.prod(shape.tolist()):
        raise UserError(f"{name}: holds {values.size:,} values, its header says {shape.tolist()}; fetch it again")
    return values.reshape(shape.astype(np.int64))
