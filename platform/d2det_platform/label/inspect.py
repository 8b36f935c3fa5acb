"""From items to manifest rows: headers are read, pixels never."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from d2det.inference.decode import check_header
from d2det.inference.headers import DecodeError, ImageHeader, read_header
from d2det_platform.label import uris
from d2det_platform.label.cost import CostModel
from d2det_platform.label.decoders import Decoders
from d2det_platform.label.files import FileState, file_state, read_file_header
from d2det_platform.label.options import LabelOptions
from d2det_platform.label.raster import RasterInfo, is_available
from d2det_platform.label.schema import MANIFEST, error_value
from d2det_platform.label.sources import Item
from d2det_platform.label.tables import TableRows

_REMOTE_THREADS = 32
"""Headers of remote files are waited for; those of local ones are not worth threads."""

SCENE_PIXELS = 32_000_000
"""TIFFs of more pixels are read by window; smaller ones are decoded once, which is faster."""

MAX_WINDOWS = 250_000
"""Of a scene: 90 gigapixels at a stride of 600. A sparse TIFF of some kilobytes may claim more."""
_MAX_SIDE = 2**31 - 1


class Inspector:
    """Reads headers, a batch of items at a time."""

    def __init__(self, options: LabelOptions, cost: CostModel) -> None:
        self._options = options
        self._cost = cost
        self._tables = TableRows(options.image_column)
        self._decoders = Decoders(raster=options.raster, timeout_s=options.work.decode_timeout_s)
        self._reads_rasters = is_available()

    def rows(self, items: Sequence[Item]) -> pa.Table:
        """Returns the manifest rows of items, without their units.

        Raises:
            StoreUnavailableError: a store does not answer.
        """
        if all(uris.is_local(item.uri) for item in items):
            rows = [self._row(item) for item in items]
        else:
            with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
                rows = list(pool.map(self._row, items))
        return pa.Table.from_pylist(rows, MANIFEST)

    def close(self) -> None:
        """Ends the decoder process that describes rasters."""
        self._decoders.close()

    def _row(self, item: Item) -> dict[str, Any]:
        row: dict[str, Any] = {
            "uri": item.uri,
            "name": item.name,
            "image_id": item.image_id,
            "cost": 0,
            "windows": 0,
            "first_unit": -1,
            "num_units": 0,
        }
        try:
            if item.refusal:
                raise DecodeError("io_error", item.refusal)
            row.update(self._looked_at(item.uri, row))
        except DecodeError as error:
            refused = error_value("header", error.reason, error.detail)
            row.update({key: refused[key] for key in ("stage", "reason", "detail")})
        return row

    def _looked_at(self, uri: str, row: dict[str, Any]) -> dict[str, Any]:
        header, state = self._header(uri)
        height, width = header.size
        # Told in error rows too.
        row.update(bytes=state.num_bytes, version=state.version, format=header.format)
        if max(width, height) <= _MAX_SIDE:
            row.update(width=width, height=height)
        info = self._raster_info(uri, header)
        # GeoTIFFs go through GDAL whatever their size: of 16-bit bands without a declared colour
        # space OpenCV reads the first alone. Of 8-bit RGB both read the same.
        by_gdal = info is not None and (info.crs is not None or self._needs_gdal(header, state))
        scene = by_gdal and self._is_scene(header, state)
        if not scene:
            self._check(header, state)
        windows = self._cost.windows(height, width)
        if windows > MAX_WINDOWS:
            raise DecodeError("too_many_pixels", f"{windows} windows, the limit is {MAX_WINDOWS}")
        return {
            "format": f"{header.format}{'+scene' if scene else '+raster' if by_gdal else ''}",
            "crs": info.crs if info else None,
            "transform": info.transform if info else None,
            "cost": self._cost.pixels(height, width),
            "windows": windows,
        }

    def _header(self, uri: str) -> tuple[ImageHeader, FileState]:
        base, table_row = uris.split_row(uri)
        if table_row is not None:
            data = self._tables.read(base, table_row, max_bytes=self._options.limits.max_bytes)
            return read_header(io.BytesIO(data)), FileState(len(data), "")
        state = file_state(uri)
        return read_file_header(uri, state.num_bytes), state

    def _raster_info(self, uri: str, header: ImageHeader) -> RasterInfo | None:
        if header.format != "tiff" or not self._reads_rasters or "#row=" in uri:
            return None
        try:
            info = self._decoders.describe(uri)
        except DecodeError:
            if not self._options.raster.is_default:
                raise
            return None  # the usual decoder may know better, or says what is wrong
        if (info.height, info.width) != (header.height, header.width):
            raise DecodeError("corrupt", "two readers disagree on the size of the picture")
        return info

    def _needs_gdal(self, header: ImageHeader, state: FileState) -> bool:
        return not self._options.raster.is_default or self._is_scene(header, state)

    def _is_scene(self, header: ImageHeader, state: FileState) -> bool:
        """Whether a raster is too large to be decoded whole, and may be cut."""
        return self._cost.is_tiled(*header.size) and (
            header.width * header.height > SCENE_PIXELS
            or state.num_bytes > self._options.limits.max_bytes
        )

    def _check(self, header: ImageHeader, state: FileState) -> None:
        limits = self._options.limits
        try:
            check_header(header, limits)
        except DecodeError as error:
            if error.reason == "too_many_pixels" and header.format == "tiff":
                hint = "; with --tile and rasterio installed, TIFFs of any size are read by window"
                raise DecodeError(error.reason, error.detail + hint) from None
            raise
        if state.num_bytes > limits.max_bytes:
            raise DecodeError("too_large", f"{state.num_bytes} bytes, over {limits.max_bytes}")


def state_of(row: dict[str, Any]) -> FileState | None:
    """Returns the state of the file of a manifest row; None for a row of a table."""
    if uris.split_row(row["uri"])[1] is not None:
        return None
    return FileState(row["bytes"], row["version"])


def inspect_all(
    options: LabelOptions, cost: CostModel, batches: Iterator[list[Item]]
) -> Iterator[pa.Table]:
    """Yields the manifest rows of batches of items, read in this process."""
    inspector = Inspector(options, cost)
    try:
        for items in batches:
            yield inspector.rows(items)
    finally:
        inspector.close()
