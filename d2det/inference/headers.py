"""What a picture file says about itself: format, size and orientation, read without decoding.

Only the first bytes and the header structures are touched, so this is safe and fast on any input
and works on a file whose pixels would not fit in memory. `decode` and the planner build on it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import SEEK_CUR, BytesIO
from typing import Any, BinaryIO, Literal

ImageFormat = Literal["jpeg", "png", "tiff", "webp", "bmp", "jp2"]

DecodeReason = Literal[
    "empty",
    "not_image",
    "unsupported_format",
    "truncated",
    "corrupt",
    "too_many_pixels",
    "too_large",
    "zero_size",
    "io_error",
    "timeout",
    "crashed",
]
"""Why a picture was refused; a closed list that error tables and HTTP answers share."""


class DecodeError(ValueError):
    """A picture that cannot be used.

    Attributes:
        reason: One of the closed list.
        detail: One line for people, without the name of the file.
    """

    def __init__(self, reason: DecodeReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason: DecodeReason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)


@dataclass(frozen=True)
class ImageHeader:
    """What the header claims.

    format: container of the picture.
    width, height: pixels as stored, before the orientation is applied.
    orientation: EXIF orientation, 1 (upright) to 8.
    scan_offset: where the first scan of a JPEG begins; 0 for other formats.
    """

    format: ImageFormat
    width: int
    height: int
    orientation: int = 1
    scan_offset: int = 0

    @property
    def size(self) -> tuple[int, int]:
        """Returns the (height, width) of the upright picture, as it will be decoded."""
        upright = (self.height, self.width)
        return upright[::-1] if self.orientation >= 5 else upright


_UNSUPPORTED_MAGIC = (
    (b"GIF8", "GIF"),
    (b"8BPS", "Photoshop"),
    (b"%PDF", "PDF"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    *((b"P%d" % kind, "PNM") for kind in range(1, 8)),
)
_MAX_IFD_ENTRIES = 4096
"""Far above what cameras and GIS tools write; bounds the work on a hostile directory."""


def read_header(stream: BinaryIO) -> ImageHeader:
    """Returns the header of the picture in a seekable stream that stands at its first byte.

    Raises:
        DecodeError: empty, not_image, unsupported_format, truncated, corrupt or zero_size.
    """
    magic = stream.read(16)
    if not magic:
        raise DecodeError("empty", "no bytes")
    if magic[:3] == b"\xff\xd8\xff":
        header = _read_jpeg(stream)
    elif magic[:8] == b"\x89PNG\r\n\x1a\n":
        header = _read_png(stream)
    elif magic[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        header = _read_tiff(stream)
    elif magic[:4] == b"RIFF" and magic[8:12] == b"WEBP":
        header = _read_webp(stream)
    elif magic[:2] == b"BM":
        header = _read_bmp(stream)
    elif magic[:12] == b"\x00\x00\x00\x0cjP  \r\n\x87\n" or magic[:4] == b"\xff\x4f\xff\x51":
        header = _read_jp2(stream)
    else:
        raise _unknown_format(magic)
    if header.width <= 0 or header.height <= 0:
        raise DecodeError("zero_size", f"{header.width} x {header.height} pixels")
    return header


def _unknown_format(magic: bytes) -> DecodeError:
    for prefix, name in _UNSUPPORTED_MAGIC:
        if magic.startswith(prefix):
            return DecodeError("unsupported_format", f"{name} is not read")
    if magic[4:8] == b"ftyp":
        brand = magic[8:12].decode("ascii", "replace")
        return DecodeError("unsupported_format", f"{brand.strip()} (HEIF family) is not read")
    return DecodeError("not_image", f"begins with {magic[:8].hex(' ')}")


def _take(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise DecodeError("truncated", "the file ends inside its header")
    return data


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, _take(stream, struct.calcsize(layout)))


def _read_jpeg(stream: BinaryIO) -> ImageHeader:
    """Walks the marker segments up to the first scan."""
    stream.seek(2)
    size, orientation = None, 1
    while True:
        marker = _next_jpeg_marker(stream)
        if marker == 0xD9:
            raise DecodeError("corrupt", "JPEG ends before its first scan")
        (length,) = _unpack(stream, ">H")
        if marker == 0xDA:
            break
        if length < 2:
            raise DecodeError("corrupt", f"JPEG segment of length {length}")
        end = stream.tell() + length - 2
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and size is None:
            _, height, width = _unpack(stream, ">BHH")
            size = (width, height)
        elif marker == 0xE1 and orientation == 1 and stream.read(6) == b"Exif\x00\x00":
            orientation = _exif_orientation(stream.read(max(length - 8, 0)))
        stream.seek(end)
    if size is None:
        raise DecodeError("corrupt", "JPEG without a frame header")
    return ImageHeader("jpeg", *size, orientation, scan_offset=stream.tell())


def _next_jpeg_marker(stream: BinaryIO) -> int:
    """Returns the next marker that starts a segment; fill bytes are skipped."""
    first, marker = _take(stream, 2)
    if first != 0xFF:
        raise DecodeError("corrupt", "JPEG segment without a marker")
    while marker == 0xFF:
        (marker,) = _take(stream, 1)
    return marker


def _read_png(stream: BinaryIO) -> ImageHeader:
    stream.seek(8)
    _, name, width, height = _unpack(stream, ">I4sII")
    if name != b"IHDR":
        raise DecodeError("corrupt", "PNG does not begin with IHDR")
    stream.seek(33)
    orientation = 1
    while len(head := stream.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"eXIf":
            orientation = _exif_orientation(stream.read(length))
        if name in (b"eXIf", b"IDAT", b"IEND"):
            break
        stream.seek(length + 4, SEEK_CUR)
    return ImageHeader("png", width, height, orientation)


def _read_bmp(stream: BinaryIO) -> ImageHeader:
    stream.seek(14)
    (header_bytes,) = _unpack(stream, "<I")
    width, height = _unpack(stream, "<HH" if header_bytes == 12 else "<ii")
    return ImageHeader("bmp", width, abs(height))  # a negative height means top-down rows


def _read_webp(stream: BinaryIO) -> ImageHeader:
    stream.seek(12)
    name = _take(stream, 4)
    _unpack(stream, "<I")
    if name == b"VP8 ":
        frame = _take(stream, 10)
        if frame[3:6] != b"\x9d\x01\x2a":
            raise DecodeError("corrupt", "WebP frame without its start code")
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", frame[6:]))
        return ImageHeader("webp", width, height)
    if name == b"VP8L":
        signature, bits = struct.unpack("<BI", _take(stream, 5))
        if signature != 0x2F:
            raise DecodeError("corrupt", "lossless WebP without its signature")
        return ImageHeader("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if name != b"VP8X":
        raise DecodeError("corrupt", f"WebP begins with chunk {name!r}")
    canvas = _take(stream, 10)
    width, height = (int.from_bytes(canvas[at : at + 3], "little") + 1 for at in (4, 7))
    has_exif = canvas[0] & 0x08
    return ImageHeader("webp", width, height, _webp_orientation(stream) if has_exif else 1)


def _webp_orientation(stream: BinaryIO) -> int:
    while len(head := stream.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        if name == b"EXIF":
            return _exif_orientation(stream.read(length).removeprefix(b"Exif\x00\x00"))
        stream.seek(length + length % 2, SEEK_CUR)
    return 1


def _read_jp2(stream: BinaryIO) -> ImageHeader:
    """Reads the image header box, or the size marker of a bare codestream."""
    stream.seek(0)
    if stream.read(2) == b"\xff\x4f":
        _, _, _, right, bottom, left, top = _unpack(stream, ">HHHIIII")
        return ImageHeader("jp2", right - left, bottom - top)
    stream.seek(12)
    for _ in range(64):  # boxes before the header; more is nonsense
        length, name = struct.unpack(">I4s", _take(stream, 8))
        if name == b"ihdr":
            height, width = _unpack(stream, ">II")
            return ImageHeader("jp2", width, height)
        if name != b"jp2h":  # that one is entered, not skipped
            stream.seek(max(length - 8, 0), SEEK_CUR)
    raise DecodeError("corrupt", "JPEG 2000 without an image header")


_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _ORIENTATION = 256, 257, 258, 274
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def _read_tiff(stream: BinaryIO) -> ImageHeader:
    tags = _read_first_directory(stream)
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise DecodeError("corrupt", "TIFF without a width and a height")
    if (bits := tags.get(_BITS_PER_SAMPLE, 1)) > 16:
        raise DecodeError("unsupported_format", f"TIFF with {bits}-bit samples is not read")
    return ImageHeader("tiff", tags[_WIDTH], tags[_HEIGHT], _valid_orientation(tags))


def _exif_orientation(data: bytes) -> int:
    """Returns the orientation in an EXIF block, which is a small TIFF; 1 when it is broken."""
    if data[:4] not in (b"II*\x00", b"MM\x00*"):
        return 1
    try:
        return _valid_orientation(_read_first_directory(BytesIO(data)))
    except DecodeError:
        return 1


def _valid_orientation(tags: dict[int, int]) -> int:
    orientation = tags.get(_ORIENTATION, 1)
    return orientation if 1 <= orientation <= 8 else 1


def _read_first_directory(stream: BinaryIO) -> dict[int, int]:
    """Returns the first value of each integer tag of interest in the first directory."""
    stream.seek(0)
    order = "<" if _take(stream, 2) == b"II" else ">"
    (version,) = _unpack(stream, order + "H")
    big = version == 43
    if big:
        stream.seek(8)
    (offset,) = _unpack(stream, order + ("Q" if big else "I"))
    stream.seek(min(offset, 2**62))
    (count,) = _unpack(stream, order + ("Q" if big else "H"))
    if count > _MAX_IFD_ENTRIES:
        raise DecodeError("corrupt", f"TIFF directory of {count} entries")
    tags = {}
    for _ in range(count):
        tag, kind, values, field = _unpack(stream, order + ("HHQ8s" if big else "HHI4s"))
        if tag in (_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _ORIENTATION) and kind in _TIFF_TYPES:
            tags[tag] = _first_value(stream, field, order + _TIFF_TYPES[kind], values)
    return tags


def _first_value(stream: BinaryIO, field: bytes, layout: str, values: int) -> int:
    """Returns the first of a tag's values; they lie in `field`, or where it points if too long."""
    size = struct.calcsize(layout)
    if values * size <= len(field):
        return int(struct.unpack(layout, field[:size])[0])
    place = stream.tell()
    stream.seek(struct.unpack(layout[0] + ("Q" if len(field) == 8 else "I"), field)[0])
    (value,) = _unpack(stream, layout)
    stream.seek(place)
    return int(value)
