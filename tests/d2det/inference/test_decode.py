"""Sound pictures of every kind become upright RGB; bad ones get the right reason, never a crash."""

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from d2det.inference.decode import DecodeError, DecodeLimits, decode_image, read_header, read_image

HEIGHT, WIDTH = 40, 64


def picture() -> np.ndarray:
    """A smooth picture without symmetry, so that compression is mild and turning shows."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = (x * 255 // WIDTH, y * 255 // HEIGHT, (x * y) * 255 // (WIDTH * HEIGHT))
    return np.stack(channels, -1).astype(np.uint8)


def encode(kind: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def with_orientation(kind: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x112] = orientation
    return encode(kind, exif=exif, **options)


def png(*chunks: tuple[bytes, bytes], end: bool = True) -> bytes:
    pieces = [b"\x89PNG\r\n\x1a\n"]
    for name, data in (*chunks, *([(b"IEND", b"")] if end else [])):
        checksum = zlib.crc32(name + data)
        pieces.append(struct.pack(">I4s", len(data), name) + data + struct.pack(">I", checksum))
    return b"".join(pieces)


def png_header(width: int, height: int) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_every_format_decodes_to_rgb(kind: str) -> None:
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(kind, {})
    image = decode_image(encode(kind, **options))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - picture()).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_foreseen_by_the_header(kind: str, orientation: int) -> None:
    data = with_orientation(kind, orientation, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    image = decode_image(data)
    assert read_header(io.BytesIO(data)).size == image.shape[:2] == expected.shape[:2]
    assert np.abs(image.astype(int) - expected).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "L"),
        ("PNG", "LA"),
        ("PNG", "P"),
        ("PNG", "1"),
        ("PNG", "RGBA"),
        ("TIFF", "L"),
        ("TIFF", "CMYK"),
        ("TIFF", "RGBA"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("WEBP", "RGBA"),
        ("BMP", "P"),
    ],
)
def test_every_colour_mode_becomes_rgb(kind: str, mode: str) -> None:
    data = encode(kind, mode, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    image = decode_image(data)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image - expected).mean() <= 3


@pytest.mark.parametrize("extension", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_not_clipped(extension: str, channels: int) -> None:
    wide = picture()[..., :channels].astype(np.uint16) * 257
    image = decode_image(cv2.imencode(extension, wide)[1].tobytes())
    expected = picture()[..., channels - 1 :: -1][..., :channels].astype(int)
    assert np.abs(image[..., :channels] - expected).max() <= 1


def test_jpeg_2000_is_read_on_request_only() -> None:
    data = encode("JPEG2000")
    assert reason(data) == "unsupported_format"
    image = decode_image(data, DecodeLimits(jpeg2000=True))
    assert np.array_equal(image, picture())


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm() -> None:
    film = np.random.default_rng(0).bytes(200_000) + b"\xff\xda" + b"\xff\xd9\xff\xda"
    assert np.array_equal(decode_image(encode("JPEG") + film), decode_image(encode("JPEG")))


def test_a_broken_exif_block_leaves_the_picture_upright() -> None:
    data = with_orientation("JPEG", 6)
    at = data.index(b"Exif\x00\x00") + 6
    for broken in (
        data[:at] + b"XX" + data[at + 2 :],
        data[: at + 4] + b"\xff" * 4 + data[at + 8 :],
    ):
        assert decode_image(broken).shape == (HEIGHT, WIDTH, 3)


def reason(data: bytes, limits: DecodeLimits | None = None) -> str:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, limits or DecodeLimits())
    assert caught.value.detail
    return caught.value.reason


BMP_ZERO = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHH", 40, 0, 5, 1, 24)
TIFF_NO_SIZE = b"II*\x00" + struct.pack("<IH", 8, 0)
TIFF_MANY_TAGS = b"II*\x00" + struct.pack("<IH", 8, 65535)
FLOAT_TIFF = cv2.imencode(".tif", picture().astype(np.float32))[1].tobytes()
IDAT = zlib.compress(b"\x00" * (HEIGHT * (WIDTH * 3 + 1)))

BAD = [
    pytest.param(b"", "empty", id="empty"),
    pytest.param(b"\x00", "not_image", id="one byte"),
    pytest.param(b"hello, world, this is text", "not_image", id="text"),
    pytest.param(b"<html><body>404</body></html>", "not_image", id="html"),
    pytest.param(b"\x00" * 5000, "not_image", id="zeros"),
    pytest.param(b"PK\x03\x04" + b"\x00" * 100, "not_image", id="zip"),
    pytest.param(encode("GIF"), "unsupported_format", id="gif"),
    pytest.param(encode("PPM"), "unsupported_format", id="pnm"),
    pytest.param(b"8BPS\x00\x01" + b"\x00" * 50, "unsupported_format", id="psd"),
    pytest.param(b"%PDF-1.7\n" + b"x" * 50, "unsupported_format", id="pdf"),
    pytest.param(b"\x00\x00\x00\x18ftypheic" + b"\x00" * 50, "unsupported_format", id="heic"),
    pytest.param(FLOAT_TIFF, "unsupported_format", id="float tiff"),
    pytest.param(encode("JPEG")[:2], "not_image", id="jpeg magic cut"),
    pytest.param(b"\xff\xd8\xff", "truncated", id="jpeg magic only"),
    pytest.param(b"\xff\xd8\xff\xd9", "corrupt", id="jpeg without content"),
    pytest.param(b"\xff\xd8\xff\xe0\x00\x00" + b"\x00" * 50, "corrupt", id="jpeg segment length 0"),
    pytest.param(b"\xff\xd8\xff\xda\x00\x08" + b"\x00" * 9, "corrupt", id="jpeg scan first"),
    pytest.param(encode("JPEG")[:-2], "truncated", id="jpeg without end"),
    pytest.param(encode("JPEG", progressive=True)[:-200], "truncated", id="jpeg progressive cut"),
    pytest.param(encode("JPEG")[:100], "truncated", id="jpeg cut in header"),
    pytest.param(jpeg_claiming(20000, 20000), "too_many_pixels", id="jpeg bomb"),
    pytest.param(jpeg_claiming(0, 40), "zero_size", id="jpeg zero width"),
    pytest.param(png(png_header(30000, 30000), (b"IDAT", IDAT)), "too_many_pixels", id="png bomb"),
    pytest.param(png(png_header(10**6, 10)), "too_many_pixels", id="png long side"),
    pytest.param(png(png_header(0, 5)), "zero_size", id="png zero width"),
    pytest.param(png((b"tEXt", b"a" * 8)), "corrupt", id="png without header"),
    pytest.param(png(png_header(WIDTH, HEIGHT)), "corrupt", id="png without pixels"),
    pytest.param(
        png(png_header(WIDTH, HEIGHT), (b"IDAT", IDAT[: len(IDAT) // 2])), "corrupt", id="png short"
    ),
    pytest.param(
        png(png_header(WIDTH, HEIGHT), (b"IDAT", IDAT), end=False), "truncated", id="png no end"
    ),
    pytest.param(encode("PNG")[:-20], "truncated", id="png cut"),
    pytest.param(flipped(encode("PNG"), 100), "corrupt", id="png flipped bit"),
    pytest.param(flipped(encode("PNG"), 18), "corrupt", id="png flipped bit in header"),
    pytest.param(encode("WEBP")[:-10], "truncated", id="webp cut"),
    pytest.param(b"RIFF\x10\x00\x00\x00WEBPXXXX\x00\x00\x00\x00", "corrupt", id="webp chunk"),
    pytest.param(encode("WEBP")[:18], "truncated", id="webp cut in header"),
    pytest.param(encode("BMP")[:-500], "corrupt", id="bmp cut"),
    pytest.param(BMP_ZERO + b"\x00" * 30, "zero_size", id="bmp zero width"),
    pytest.param(encode("TIFF")[:-500], "corrupt", id="tiff cut"),
    pytest.param(TIFF_NO_SIZE, "corrupt", id="tiff without size"),
    pytest.param(TIFF_MANY_TAGS, "corrupt", id="tiff huge directory"),
    pytest.param(b"MM\x00*\xff\xff\xff\xf0", "truncated", id="tiff directory beyond end"),
]


@pytest.mark.parametrize(("data", "expected"), BAD)
def test_bad_pictures_are_refused_by_reason(data: bytes, expected: str) -> None:
    assert reason(data) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP"])
def test_no_cut_ever_passes(kind: str) -> None:
    data = encode(kind)
    for length in np.linspace(1, len(data) - 1, 40).astype(int).tolist():
        assert reason(data[:length]) in ("truncated", "corrupt", "not_image", "zero_size")


def test_limits_are_those_given() -> None:
    data = encode("PNG")
    assert reason(data, DecodeLimits(max_bytes=len(data) - 1)) == "too_large"
    assert reason(data, DecodeLimits(max_pixels=HEIGHT * WIDTH - 1)) == "too_many_pixels"
    assert reason(data, DecodeLimits(max_side=WIDTH - 1)) == "too_many_pixels"
    exact = DecodeLimits(max_bytes=len(data), max_pixels=HEIGHT * WIDTH, max_side=WIDTH)
    assert decode_image(data, exact).shape == (HEIGHT, WIDTH, 3)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_gives_a_picture_of_the_claimed_size_or_a_reason(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "TIFF", "WEBP", "BMP", "JPEG2000"]))
    damaged = bytearray(encode(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        limits = DecodeLimits(max_pixels=10**6, jpeg2000=True)
        image = decode_image(bytes(damaged), limits)
        assert image.shape[:2] == read_header(io.BytesIO(bytes(damaged))).size
        assert image.size <= 3 * 10**6


def test_files_are_read_and_unreadable_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "Bild ä\n.png"
    path.write_bytes(encode("PNG"))
    assert np.array_equal(read_image(path), picture())
    os.mkfifo(tmp_path / "fifo")
    for bad in (tmp_path / "missing.png", tmp_path, tmp_path / "fifo"):
        with pytest.raises(DecodeError, match="io_error"):
            read_image(bad)
    with pytest.raises(DecodeError, match="too_large"):
        read_image(path, DecodeLimits(max_bytes=10))


def test_errors_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("corrupt", "why")))
    assert (error.reason, error.detail) == ("corrupt", "why")


def test_opencv_itself_refuses_bombs_once_the_package_is_imported() -> None:
    """In a process of its own: OpenCV reads its limits when it is first imported."""
    code = (
        "import d2det, sys; from tests.d2det.inference.test_decode import *;"
        "unlimited = DecodeLimits(max_pixels=10**12, max_side=10**6);"
        "sys.exit(reason(jpeg_claiming(25000, 25000), unlimited))"  # 625 of OpenCV's 1073 Mpx
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stderr.decode().strip() == "too_many_pixels"
