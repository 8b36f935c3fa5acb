"""From bytes of unknown origin to an upright RGB picture, or one reason why not.

The order is that of increasing trust: size limit, magic bytes, header size, completeness, decode,
decoded size. A decompression bomb is refused by its header; OpenCV's own limits, which
`d2det/__init__.py` sets because OpenCV reads them when it is imported, stand behind that.
torchvision's `decode_image` is never used: damaged PNGs kill its process.

What no check can see: flipped bits inside JPEG or WebP data, and a JPEG whose data ends early but
properly. PNG carries checksums, and they are verified.
"""

from __future__ import annotations

import stat
import struct
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from d2det.inference.headers import DecodeError, DecodeReason, ImageHeader, read_header
from d2det.inference.limits import DEFAULT_LIMITS, DecodeLimits

__all__ = [
    "DEFAULT_LIMITS",
    "DecodeError",
    "DecodeLimits",
    "DecodeReason",
    "ImageHeader",
    "check_header",
    "decode_image",
    "read_header",
    "read_image",
]


def read_image(path: Path | str, limits: DecodeLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Returns the picture in a file as (H, W, 3) uint8 RGB, upright.

    Raises:
        DecodeError: As `decode_image`, or io_error when the file cannot be read.
    """
    try:
        # Not opened before it is known to be a regular file: opening a FIFO would wait for ever.
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("io_error", "not a regular file")
        if status.st_size > limits.max_bytes:
            raise _too_large(status.st_size, limits)
        data = Path(path).read_bytes()
    except OSError as error:
        raise DecodeError("io_error", error.strerror or str(error)) from error
    return decode_image(data, limits)


def decode_image(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Returns the first picture in `data` as (H, W, 3) uint8 RGB after EXIF orientation.

    16-bit samples are scaled to 8, grey, palette and CMYK become RGB, alpha is dropped.

    Raises:
        DecodeError: With a reason of the closed list.
    """
    if len(data) > limits.max_bytes:
        raise _too_large(len(data), limits)
    header = read_header(BytesIO(data))
    check_header(header, limits)
    _check_complete(data, header)
    image = _decode(data, header)
    if image.shape[:2] != (upright := header.size):
        raise DecodeError("corrupt", f"header says {upright}, data {image.shape[:2]} (h, w)")
    return image


def check_header(header: ImageHeader, limits: DecodeLimits) -> None:
    """Raises DecodeError when the header alone shows that the picture is over a limit."""
    if header.format == "jp2" and not limits.jpeg2000:
        raise DecodeError("unsupported_format", "JPEG 2000 is read only with jpeg2000=True")
    size = f"{header.width} x {header.height}"
    if max(header.width, header.height) > limits.max_side:
        raise DecodeError("too_many_pixels", f"{size} pixels, a side may have {limits.max_side}")
    if header.width * header.height > limits.max_pixels:
        raise DecodeError("too_many_pixels", f"{size} pixels, the limit is {limits.max_pixels}")


def _too_large(size: int, limits: DecodeLimits) -> DecodeError:
    return DecodeError("too_large", f"{size} bytes, the limit is {limits.max_bytes}")


def _check_complete(data: bytes, header: ImageHeader) -> None:
    """Refuses files that end early, so that no version of a decoder pads them with grey."""
    if header.format == "jpeg":
        # Looked for behind the first scan: the EXIF thumbnail has an end marker of its own. Bytes
        # after the end are fine, phones append films there.
        complete = data.find(b"\xff\xd9", header.scan_offset) >= 0
    elif header.format == "webp":
        complete = len(data) >= struct.unpack_from("<I", data, 4)[0] + 8
    elif header.format == "png":
        complete = _check_png_chunks(data)
    else:  # the decoders of the others refuse missing rows
        complete = True
    if not complete:
        raise DecodeError("truncated", f"{header.format} data ends early")


def _check_png_chunks(data: bytes) -> bool:
    """Returns whether the chunks go on to IEND; raises when a critical one fails its checksum."""
    view, start = memoryview(data), 8
    while start + 12 <= len(view):
        length, name = struct.unpack_from(">I4s", view, start)
        end = start + length + 12
        if end > len(view):
            return False
        is_critical = not name[0] & 0x20
        if is_critical and zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(
            view[end - 4 : end], "big"
        ):
            raise DecodeError("corrupt", f"PNG chunk {name.decode('latin-1')} fails its checksum")
        if name == b"IEND":
            return True
        start = end
    return False


def _decode(data: bytes, header: ImageHeader) -> NDArray[np.uint8]:
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        if "CV_IO_MAX_IMAGE" in (detail := str(error)):
            raise DecodeError("too_many_pixels", "over an OPENCV_IO_MAX_IMAGE_* limit") from error
        raise DecodeError("corrupt", detail.strip().splitlines()[-1]) from error
    if image is None:
        raise DecodeError("corrupt", f"{header.format} data is damaged or of an unknown kind")
    # OpenCV turns TIFFs itself whatever the flag says.
    orientation = 1 if header.format == "tiff" else header.orientation
    return np.ascontiguousarray(_upright(image, orientation))


def _upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Returns the picture, (H, W, 3), turned and mirrored as EXIF orientation 1..8 asks."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image
