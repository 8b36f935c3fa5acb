"""Where a GeoTIFF lies on the earth, from its tags alone: no GDAL near what a stranger sends."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SCALE, _TIEPOINT, _MATRIX, _KEYS = 33550, 33922, 34264, 34735
_LAYOUTS = {3: "H", 4: "I", 12: "d", 16: "Q"}
_MAX_ENTRIES, _MAX_VALUES = 4096, 4096
_PROJECTED, _GEOGRAPHIC, _RASTER_TYPE = 3072, 2048, 1025
_PIXEL_IS_POINT = 2
_USER_DEFINED = 32767


@dataclass(frozen=True)
class Georeference:
    """A coordinate system, and the way from pixels (x right, y down, corners whole) to it.

    epsg: code of the system.
    transform: (a, b, c, d, e, f), X = a x + b y + c, Y = d x + e y + f.
    """

    epsg: int
    transform: tuple[float, float, float, float, float, float]

    def lon_lat(self, points: Sequence[Sequence[float]]) -> list[list[float]]:
        """Returns pixels as longitude and latitude (WGS 84).

        Raises:
            ValueError: The system is not known here, or the points lie outside it or nowhere.
        """
        from pyproj import Transformer
        from pyproj.exceptions import ProjError

        a, b, c, d, e, f = self.transform
        xs = [a * x + b * y + c for x, y in points]
        ys = [d * x + e * y + f for x, y in points]
        try:
            way = Transformer.from_crs(self.epsg, 4326, always_xy=True)
            lons, lats = way.transform(xs, ys, errcheck=True)
        except ProjError as error:
            raise ValueError(f"EPSG:{self.epsg} cannot be turned into WGS 84") from error
        if not all(map(math.isfinite, (*lons, *lats))):
            raise ValueError("the place is no number")
        return [[round(lon, 9), round(lat, 9)] for lon, lat in zip(lons, lats, strict=True)]


def read_georeference(data: bytes) -> Georeference | None:
    """Returns the georeference of a TIFF, or None where it has none that can be read."""
    try:
        tags = _read_tags(data)
    except (struct.error, IndexError, OverflowError):
        return None
    transform, epsg = _transform(tags), _epsg(tags)
    return None if transform is None or epsg is None else Georeference(epsg, transform)


def _transform(
    tags: dict[int, tuple[Any, ...]],
) -> tuple[float, float, float, float, float, float] | None:
    if len(matrix := tags.get(_MATRIX, ())) == 16:
        found = (matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7])
    else:
        scale, tie = tags.get(_SCALE, ()), tags.get(_TIEPOINT, ())
        if len(scale) < 2 or len(tie) != 6:
            return None
        x, y = tie[3] - tie[0] * scale[0], tie[4] + tie[1] * scale[1]
        found = (scale[0], 0.0, x, 0.0, -scale[1], y)
    a, b, c, d, e, f = found
    if _geo_keys(tags).get(_RASTER_TYPE) == _PIXEL_IS_POINT:  # whole numbers are centres there
        c, f = c - (a + b) / 2, f - (d + e) / 2
    return a, b, c, d, e, f


def _epsg(tags: dict[int, tuple[Any, ...]]) -> int | None:
    keys = _geo_keys(tags)
    for key in (_PROJECTED, _GEOGRAPHIC):
        if (code := keys.get(key, 0)) and code != _USER_DEFINED:
            return code
    return None


def _geo_keys(tags: dict[int, tuple[Any, ...]]) -> dict[int, int]:
    """Those keys whose value stands in the directory itself."""
    values = tags.get(_KEYS, ())
    return {values[i]: values[i + 3] for i in range(4, len(values) - 3, 4) if values[i + 1] == 0}


def _read_tags(data: bytes) -> dict[int, tuple[Any, ...]]:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return {}
    (version,) = struct.unpack_from(order + "H", data, 2)
    is_big = version == 43
    (place,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, place)
    place += 8 if is_big else 2
    size, layout = (20, "HHQ") if is_big else (12, "HHI")
    tags: dict[int, tuple[Any, ...]] = {}
    for i in range(min(count, _MAX_ENTRIES)):
        start = place + i * size
        tag, kind, values = struct.unpack_from(order + layout, data, start)
        is_wanted = tag in (_SCALE, _TIEPOINT, _MATRIX, _KEYS)
        if not is_wanted or kind not in _LAYOUTS or values > _MAX_VALUES:
            continue
        wanted = f"{order}{values}{_LAYOUTS[kind]}"
        at = start + (12 if is_big else 8)
        if struct.calcsize(wanted) > (8 if is_big else 4):
            (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, at)
        tags[tag] = struct.unpack_from(wanted, data, at)
    return tags
