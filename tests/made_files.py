"""Picture files whose bytes say what a test likes, sound or not."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray


def encoded(pixels: NDArray[np.uint8], suffix: str) -> bytes:
    """A sound file of pixels in the format of a suffix."""
    return cv2.imencode(suffix, pixels)[1].tobytes()


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header need not fit its rows."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", head)
        + _png_chunk(b"IDAT", zlib.compress(rows))
        + _png_chunk(b"IEND", b"")
    )


def jpeg_that_claims(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG with another size in its header."""
    data = bytearray(jpeg)
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
