"""Large georeferenced scenes of bright squares whose places are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIDE, STEP = 30, 97
"""Squares and their spacing in pixels; with windows of 128 many lie across seams."""


def square_places(width: int, height: int) -> list[tuple[int, int]]:
    """Left upper corners of all squares."""
    return [
        (x, y) for y in range(11, height - SIDE - 3, STEP) for x in range(7, width - SIDE - 3, STEP)
    ]


def square_pixels(width: int, height: int) -> np.ndarray:
    """The scene, (H, W, 3) uint8."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    for x, y in square_places(width, height):
        pixels[y : y + SIDE, x : x + SIDE] = 220
    return pixels


def write_geotiff(path: Path, pixels: np.ndarray, **profile: Any) -> Path:
    """Writes (H, W, C) pixels in tiles, at 500 000, 4 000 000 of UTM zone 32, 0.5 m a pixel."""
    import rasterio
    from rasterio.transform import from_origin

    height, width, bands = pixels.shape
    values = {
        "crs": "EPSG:32632",
        "transform": from_origin(500_000, 4_000_000, 0.5, 0.5),
        "tiled": True,
        "blockxsize": 128,
        "blockysize": 128,
        "compress": "deflate",
        **profile,
    }
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=bands,
        dtype=pixels.dtype,
        **values,
    ) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path
