"""Pictures that lie as bytes in the rows of a Parquet file."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from d2det.inference.headers import DecodeError
from d2det_platform.label.files import filesystem_of


class TableRows:
    """Reads bytes of single rows; the row group read last is kept, rows come in order."""

    def __init__(self, column: str) -> None:
        self._column = column
        self._lock = threading.Lock()
        self._uri = ""
        self._file: Any = None
        self._starts = np.zeros(1, np.int64)
        self._group = -1
        self._values: pa.ChunkedArray | None = None

    def read(self, uri: str, row: int, *, max_bytes: int) -> bytes:
        """Returns the bytes in `row` of the table at `uri`.

        Raises:
            DecodeError: there is no such row, no picture in it, or it is too_large.
        """
        with self._lock:
            value = self._value(uri, row)
        if isinstance(value, dict):  # {"bytes": ..., "path": ...}, as data sets on hubs have them
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise DecodeError("empty", "the row holds no bytes")
        if len(value) > max_bytes:
            raise DecodeError("too_large", f"{len(value)} bytes, the limit is {max_bytes}")
        return value

    def _value(self, uri: str, row: int) -> Any:
        try:
            if uri != self._uri:
                filesystem, path = filesystem_of(uri)
                self._file = pq.ParquetFile(filesystem.open(path, "rb"))
                meta = self._file.metadata
                counts = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
                self._starts = np.concatenate(([0], np.cumsum(counts)))
                self._uri, self._group = uri, -1
            if not 0 <= row < self._starts[-1]:
                raise DecodeError("io_error", f"no row {row}")
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            if group != self._group:
                table = self._file.read_row_group(group, columns=[self._column])
                self._values, self._group = table.column(0), group
        except (OSError, pa.ArrowException) as error:
            self._uri = ""
            raise DecodeError("io_error", str(error)) from error
        assert self._values is not None
        return self._values[row - int(self._starts[self._group])].as_py()
