"""Bodies that mean harm, or have come to it: pictures damaged in every way, bombs, wrong types."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

from tests.made_files import encoded, jpeg_that_claims, png

FORMATS = {"jpeg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp"}


def hostile_bodies() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """Yields a name, a body and its headers; none of them is a sound picture."""
    for kind, suffix in FORMATS.items():
        yield from _damaged(kind, _sound(suffix))
    yield from _bombs()
    yield from _not_pictures()
    yield from _bad_transport()


def _sound(suffix: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return encoded(pixels, suffix)


def _damaged(kind: str, data: bytes) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    for percent in (1, 5, 10, 25, 40, 50, 60, 75, 90):
        yield f"{kind} cut to {percent} %", data[: len(data) * percent // 100], {}
    for count in (1, 2, 4, 8, 12, 16, 24, 32):
        yield f"{kind} of {count} bytes", data[:count], {}
    for turn in range(6):
        broken = bytearray(data)
        for place in rng.integers(0, min(40, len(data)), 12):
            broken[place] = int(rng.integers(0, 256))
        yield f"{kind} with a wrecked head {turn}", bytes(broken), {}
    for turn in range(4):
        yield f"{kind} head and noise {turn}", data[:30] + rng.bytes(2000), {}
    middle = len(data) // 2
    yield f"{kind} doubled inside", data[:middle] + data, {}
    yield f"{kind} of zeros inside", data[:30] + bytes(len(data) - 30), {}


def _bombs() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    for side in (20_000, 65_535, 1 << 20, (1 << 31) - 1):
        yield f"png of {side} squared", _png(side, side), {}
    yield "png that is a line", _png(1_000_000, 10), {}
    yield "png without size", _png(0, 0), {}
    buffer = BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    yield "png of 400 megapixels, whole", buffer.getvalue(), {}
    for side in (20_000, 65_535):
        jpeg = jpeg_that_claims(_sound(".jpg"), side, side)
        yield f"jpeg that claims {side} squared", jpeg, {}
    for side in (30_001, 1 << 24):
        head = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
        info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        yield f"bmp that claims {side} squared", head + info, {}
    yield "bmp of negative width", _bmp(-60, 40), {}
    canvas = (16_000_000).to_bytes(3, "little") * 2
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas
    yield "webp that claims 16 000 000 squared", webp, {}
    for count in (1, 4096, 65_535):
        tiff = b"II*\x00" + struct.pack("<IH", 8, count) + bytes(12) * min(count, 100)
        yield f"tiff of {count} entries", tiff, {}
    yield "tiff that points at itself", b"II*\x00" + struct.pack("<I", 4), {}
    yield "tiff that points away", b"II*\x00" + struct.pack("<I", 0xFFFFFFF0), {}
    yield "big tiff that points away", b"II+\x00\x08\x00\x00\x00" + b"\xff" * 8, {}


def _png(width: int, height: int) -> bytes:
    return png(width, height, bytes(10_000))


def _bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + info + bytes(7200)


def _not_pictures() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    texts = {
        "nothing": b"",
        "text": b"hello",
        "html": b"<!doctype html><script>alert(1)</script>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "gif": b"GIF89a" + bytes(100),
        "pdf": b"%PDF-1.7" + bytes(100),
        "zip": b"PK\x03\x04" + bytes(100),
        "elf": b"\x7fELF" + bytes(100),
        "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
        "photoshop": b"8BPS" + bytes(100),
        "icon": b"\x00\x00\x01\x00" + bytes(100),
        "exr": b"v/1\x01" + bytes(100),
        "heic": b"\x00\x00\x00\x18ftypheic" + bytes(100),
        "avif": b"\x00\x00\x00\x18ftypavif" + bytes(100),
        "jpeg 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(100),
        "pnm": b"P6 60 40 255 " + bytes(7200),
        "postscript": b"%!PS-Adobe-3.0" + bytes(100),
        "zeros": bytes(5000),
        "ones": b"\xff" * 5000,
    }
    for name, data in texts.items():
        yield name, data, {}
    rng = np.random.default_rng(3)
    for turn in range(20):
        yield f"noise {turn}", rng.bytes(int(rng.integers(1, 5000))), {}


def _bad_transport() -> Iterator[tuple[str, bytes, dict[str, str]]]:
    sound = _sound(".jpg")
    bomb = gzip.compress(bytes(200_000_000), 9)
    yield "gzip bomb", bomb, {"Content-Encoding": "gzip"}
    yield "gzip in gzip", gzip.compress(bomb), {"Content-Encoding": "gzip"}
    yield "deflate bomb", zlib.compress(bytes(100_000_000), 9), {"Content-Encoding": "deflate"}
    yield "cut gzip", gzip.compress(sound)[:-5], {"Content-Encoding": "gzip"}
    yield "no gzip", sound, {"Content-Encoding": "gzip"}
    yield "unknown encoding", sound, {"Content-Encoding": "zstd"}
    yield "two encodings", sound, {"Content-Encoding": "gzip, gzip"}
    for kind in ("text/html", "video/mp4", "application/xml", "application/x-python-pickle"):
        yield f"sound picture as {kind}", sound, {"Content-Type": kind}
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    yield "form without parts", b"--b--\r\n", form
    yield "form that ends early", b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\nabc", form
    yield "form of noise", b"\x00" * 1000, form
    yield "form without boundary", b"--b--", {"Content-Type": "multipart/form-data"}
    yield "form of 1000 parts", b"--b\r\n\r\nx\r\n" * 1000 + b"--b--", form
    long = b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\nx\r\n--b--"
    yield "form with a long header", long, form
    json = {"Content-Type": "application/json"}
    yield "deep json", b'{"image":' + b"[" * 100_000, json
    yield "json of another kind", b'"text"', json
    yield "json null", b"null", json
    yield "json with a file", b'{"image":{"url":"file:///etc/passwd"}}', json
    yield "json with metadata", b'{"image":{"url":"http://169.254.169.254/latest/"}}', json
    yield "json of no base64", b'{"image":{"b64":"@@@"}}', json
    yield "json with a list", b'{"images":[]}', json
    yield "not utf-8 json", b'{"image":{"b64":"\xff\xfe"}}', json
