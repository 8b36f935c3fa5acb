"""Over a hundred files and names that have broken decoders and pipelines, made in a folder."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from tests import made_files
from tests.made_files import jpeg_that_claims, png

_NOISE = np.random.default_rng(5).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def encoded(suffix: str) -> bytes:
    """A sound picture in the format of a suffix."""
    return made_files.encoded(_NOISE, suffix)


def _with_bad_checksum() -> bytes:
    data = bytearray(encoded(".png"))
    data[-20] ^= 0xFF  # inside the last bytes of IDAT
    return bytes(data)


def bad_contents() -> dict[str, bytes]:
    """Files that are no sound pictures, by name."""
    files: dict[str, bytes] = {
        "empty.png": b"",
        "one_byte.jpg": b"\xff",
        "text.png": b"not a picture at all\n" * 10,
        "html.jpg": b"<!doctype html><html><body>404</body></html>",
        "json.png": b'{"error": "no such key"}',
        "zeros.tif": bytes(4096),
        "gif.png": b"GIF89a" + bytes(100),
        "psd.tif": b"8BPS" + bytes(100),
        "pdf.jpg": b"%PDF-1.7" + bytes(100),
        "zip.png": b"PK\x03\x04" + bytes(100),
        "elf.png": b"\x7fELF" + bytes(100),
        "heic.jpg": b"\x00\x00\x00\x18ftypheic" + bytes(100),
        "avif.jpg": b"\x00\x00\x00\x18ftypavif" + bytes(100),
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "pnm.png": b"P6\n9 9\n255\n" + bytes(243),
        "exr.tif": b"v/1\x01" + bytes(100),
        "bomb_20000.png": png(20_000, 20_000, bytes(1000)),
        "bomb_wide.png": png(1_000_000, 100, bytes(1000)),
        "bomb_max.png": png(2**31 - 1, 2**31 - 1, b""),
        "zero_width.png": png(0, 10, b""),
        "zero_height.png": png(10, 0, b""),
        "bomb.jpg": jpeg_that_claims(encoded(".jpg"), 65_000, 65_000),
        "taller.jpg": jpeg_that_claims(encoded(".jpg"), 80, 20_000)[:-2],
        "zero.jpg": jpeg_that_claims(encoded(".jpg"), 0, 0),
        "crc.png": _with_bad_checksum(),
        "short_idat.png": png(64, 64, bytes(100)),
        "depth.png": png(8, 8, bytes(200), depth=7),
        "colour.png": png(8, 8, bytes(200), colour=9),
        "no_iend.png": encoded(".png")[:-12],
        "bmp_huge.bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, 2**30, 2**30) + bytes(40),
        "bmp_zero.bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, 0, 0) + bytes(40),
        "tiff_loop.tif": b"II*\x00" + struct.pack("<I", 8) + struct.pack("<HI", 0, 8),
        "tiff_far.tif": b"II*\x00" + struct.pack("<I", 2**31) + bytes(20),
        "tiff_many.tif": b"II*\x00" + struct.pack("<IH", 8, 65535) + bytes(200),
        "webp_short.webp": b"RIFF\xff\xff\xff\x7fWEBPVP8 " + bytes(30),
        "jpeg_only_soi.jpg": b"\xff\xd8\xff\xd9",
        "jpeg_segment.jpg": b"\xff\xd8\xff\xe1\x00\x00" + bytes(20),
    }
    for suffix in (".jpg", ".png", ".tif", ".webp", ".bmp"):
        whole = encoded(suffix)
        for percent in (2, 10, 30, 60, 90):
            name = f"cut_{percent:02d}{suffix}"
            files[name] = whole[: len(whole) * percent // 100]
        files[f"garbage{suffix}"] = whole[:8] + _NOISE.tobytes()[:2000]
        files[f"twice_head{suffix}"] = whole[:20] + whole[:40]
    for number in range(20):
        head = bytearray(encoded(".png"))
        generator = np.random.default_rng(number)
        for place in generator.integers(8, len(head), 30):
            head[place] ^= 0xFF
        files[f"flipped_{number:02d}.png"] = bytes(head)
    return files


def odd_names() -> list[bytes]:
    """Names of sound pictures that confuse programs."""
    return [
        b"\xff\xfe.png",
        "caf\u00e9.png".encode(),
        "cafe\u0301.png".encode(),
        b"line\nbreak.png",
        b"tab\tname.png",
        b"-rf.png",
        b"%2e%2e%2fescape.png",
        b"a%20b.png",
        b"a b.png",
        b"#row=3.png",
        b"?query=1.png",
        b"quote'\".png",
        b"<script>alert(1)</script>.png".replace(b"/", b"_"),
        b"semi;colon.png",
        b"back\\slash.png",
        b"*.png",
        b"[abc].png",
        "\u202egnp.exe.png".encode(),
        "\U0001f6e9.png".encode(),
        b"x" * 251 + b".png",
        b"CON.png",
        b"UPPER.PNG",
        b"two..dots.png",
        b"trailing .png",
    ]


def write_bad_lake(folder: Path) -> dict[str, int]:
    """Writes all of them into `folder`; returns how many rows are errors and how many are sound."""
    folder.mkdir(parents=True)
    contents = bad_contents()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    names = odd_names()
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(encoded(".png"))
    os.mkfifo(folder / "fifo.png")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "outside.png").symlink_to("/etc/hostname")
    (folder / "folder.png").mkdir()  # a folder is entered, not read
    (folder / "up").symlink_to(folder)
    return {"bad": len(contents) + 4, "odd": len(names)}
