"""A decoder process that pictures can harm: what is in their bytes decides how."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

from d2det_platform.label import decoder_process, uris


class RogueDecoder(decoder_process.Decoder):
    """Dies, hangs or prints where the file says so, as libraries with faults do."""

    def _decode(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the usual answer to usual pictures."""
        data = Path(uris.to_path(request["uri"])).read_bytes()
        if b"SEGFAULT" in data:
            ctypes.string_at(0)
        if b"HANG" in data:
            time.sleep(60)
        if b"PRINT" in data:
            print("libpng warning: something", flush=True)
        if b"BLOAT" in data:
            bytearray(1 << 40)
        return super()._decode(request)


if __name__ == "__main__":
    decoder_process.Decoder = RogueDecoder  # type: ignore[misc]
    decoder_process.main()
