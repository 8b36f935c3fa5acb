"""The process that decodes pictures of unknown origin, so that nothing worse than itself dies.

    python -m d2det_platform.label.decoder_process PIXELS_FD

A request is a line of JSON on stdin, the answer one on stdout; pixels, and the bytes of pictures
that are no local files, go through the memory behind PIXELS_FD. It ends with its stdin.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2det.inference.decode import DecodeError, DecodeLimits, decode_image, read_image
from d2det_platform.label import uris
from d2det_platform.label.files import FileState, check_unchanged, file_state
from d2det_platform.label.options import RasterOptions
from d2det_platform.label.raster import Raster

MEMORY_BYTES = 4 << 30
"""Address space: a decoder that runs away gets no memory instead of taking the machine's."""
_KEPT_BYTES = 64 << 20
"""Memory behind the descriptor that is kept for the next picture."""


class Decoder:
    """Answers requests; pixels go to the file descriptor `pixels`."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._raster: Raster | None = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the answer to a request: what it is about, or the error."""
        kinds: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "decode": self._decode,
            "window": self._window,
            "describe": self._describe,
        }
        try:
            return kinds[request["kind"]](request)
        except DecodeError as error:
            return {"error": [error.reason, error.detail]}
        except MemoryError:
            return {"error": ["too_many_pixels", "decoding needs more memory than a decoder may"]}

    def _decode(self, request: dict[str, Any]) -> dict[str, Any]:
        limits = DecodeLimits.model_validate(request["limits"])
        if (count := request.get("data_bytes")) is not None:
            return self._give(decode_image(os.pread(self._pixels, count, 0), limits))
        self._check_state(request)
        return self._give(read_image(uris.to_path(request["uri"]), limits))

    def _window(self, request: dict[str, Any]) -> dict[str, Any]:
        raster = self._opened(request)
        return self._give(raster.read(*request["window"]))

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        return vars(self._opened(request).info())

    def _opened(self, request: dict[str, Any]) -> Raster:
        """The raster of a request; the last one stays open, windows come in rows."""
        options = RasterOptions.model_validate(request["raster"])
        uri = request["uri"]
        self._check_state(request)
        if self._raster is not None:
            if (self._raster.uri, self._raster.options) == (uri, options):
                return self._raster
            self._raster.close()
            self._raster = None
        self._raster = Raster(uri, options)
        return self._raster

    def _check_state(self, request: dict[str, Any]) -> None:
        if (state := request.get("state")) is not None:
            check_unchanged(FileState(*state), file_state(request["uri"]))

    def _give(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        if os.fstat(self._pixels).st_size > max(_KEPT_BYTES, image.nbytes):
            os.ftruncate(self._pixels, 0)
        view, done = memoryview(image.data).cast("B"), 0
        while done < len(view):
            done += os.pwrite(self._pixels, view[done:], done)
        return {"size": image.shape[:2]}


def main() -> None:
    """Answers requests until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decoder = Decoder(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(decoder.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
