"""GeoTIFFs read by window: the pixels asked for and no others, as 8-bit RGB.

Only GDAL's GTiff driver is let near a file. Runs in a decoder process, whose death costs a picture.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2det.inference.headers import DecodeError
from d2det_platform.label import uris
from d2det_platform.label.files import filesystem_of
from d2det_platform.label.options import RasterOptions

OVERVIEW_PX = 1024
"""Longer side of the overview whose percentiles stretch a scene."""
_GDAL = {"GDAL_CACHEMAX": 64, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""64 MB of blocks, and no look at neighbours of the file."""


@dataclass(frozen=True)
class RasterInfo:
    """Size and place of a raster. transform: pixel to CRS, (a, b, c, d, e, f) row by row."""

    width: int
    height: int
    crs: str | None
    transform: tuple[float, ...] | None


def is_available() -> bool:
    """Returns whether rasterio is installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


class Raster:
    """An open GeoTIFF.

    Raises:
        DecodeError: it cannot be opened, or not be turned into RGB as asked.
    """

    def __init__(self, uri: str, options: RasterOptions) -> None:
        self.uri, self.options = uri, options
        self._data = _open(uri)
        self.bands = options.bands or self._usual_bands()
        if max(self.bands) > self._data.count:
            raise DecodeError(
                "unsupported_format", f"band {max(self.bands)} of {self._data.count} was asked for"
            )
        self._ranges = self._stretch()

    def info(self) -> RasterInfo:
        """Returns size and georeference."""
        data, crs, transform = self._data, None, None
        if data.crs is not None and not data.transform.is_identity:
            code = data.crs.to_epsg()
            crs = f"EPSG:{code}" if code else str(data.crs.to_wkt())
            transform = tuple(float(value) for value in tuple(data.transform)[:6])
        return RasterInfo(data.width, data.height, crs, transform)

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Returns the (height, width, 3) uint8 RGB pixels of a window."""
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        try:
            pixels = self._data.read(list(self.bands), window=Window(x, y, width, height))
        except RasterioError as error:
            raise DecodeError("corrupt", str(error.__cause__ or error)) from error
        pixels = self._as_bytes(pixels)
        if len(self.bands) == 1:
            pixels = self._as_colours(pixels)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def close(self) -> None:
        """Closes the file."""
        self._data.close()

    def _usual_bands(self) -> tuple[int, ...]:
        return (1, 2, 3) if self._data.count >= 3 else (1,)

    def _stretch(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Values of each band that become 0 and 255, (B, 1, 1); None: no stretch."""
        kind, shape = self.options.stretch, (len(self.bands), 1, 1)
        if kind == "none":
            if any(self._data.dtypes[band - 1] not in ("uint8", "uint16") for band in self.bands):
                raise DecodeError(
                    "unsupported_format",
                    f"samples are {self._data.dtypes[0]}: choose a --raster.stretch",
                )
            return None
        if kind == "range":
            return np.full(shape, self.options.low), np.full(shape, self.options.high)
        scale = max(1.0, max(self._data.width, self._data.height) / OVERVIEW_PX)
        size = (max(1, int(self._data.height / scale)), max(1, int(self._data.width / scale)))
        overview = self._data.read(
            list(self.bands), out_shape=(len(self.bands), *size), masked=True
        )
        ends = [
            np.percentile(band.compressed(), (2, 98)) if band.count() else (0.0, 1.0)
            for band in overview
        ]
        low, high = (np.array(each, float).reshape(shape) for each in zip(*ends, strict=True))
        return low, np.maximum(high, low + 1e-6)

    def _as_bytes(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        if self._ranges is not None:
            low, high = self._ranges
            scaled = (pixels.astype(np.float32) - low) * (255 / (high - low))
            return np.asarray(np.nan_to_num(np.clip(np.rint(scaled), 0, 255)), np.uint8)
        if pixels.dtype == np.uint16:
            # Rounded as OpenCV does for TIFFs, so that the way a picture is read does not show.
            return np.asarray((pixels.astype(np.uint32) * 255 + 32767) // 65535, np.uint8)
        return np.asarray(pixels, np.uint8)

    def _as_colours(self, grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(3, H, W) of a single band: grey, or its palette's colours."""
        try:
            palette: Mapping[int, tuple[int, ...]] = self._data.colormap(self.bands[0])
        except ValueError:
            return np.repeat(grey, 3, axis=0)
        table = np.zeros((256, 3), np.uint8)
        for value, colour in palette.items():
            if value < 256:
                table[value] = colour[:3]
        return np.asarray(table[grey[0]].transpose(2, 0, 1))


def _open(uri: str) -> Any:
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    logging.getLogger("rasterio").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    rasterio.Env(**_GDAL).__enter__()  # for the life of the process, which does nothing else
    try:
        if uris.is_local(uri):
            return rasterio.open(uris.to_path(uri), driver="GTiff")
        filesystem, path = filesystem_of(uri)
        return rasterio.open(path, driver="GTiff", opener=filesystem.open)
    except (RasterioError, UnicodeError, OSError) as error:
        raise DecodeError("corrupt", f"not readable as GeoTIFF: {error}") from error
