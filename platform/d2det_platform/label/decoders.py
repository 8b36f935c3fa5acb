"""Decoding in processes of its own: a picture that kills or hangs one costs that picture."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from d2det.inference.decode import DecodeError, DecodeLimits
from d2det.inference.limits import DEFAULT_LIMITS
from d2det_platform.label import uris
from d2det_platform.label.files import FileState, StoreUnavailableError, read_file
from d2det_platform.label.options import RasterOptions
from d2det_platform.label.raster import RasterInfo
from d2det_platform.label.tables import TableRows

START_TIMEOUT_S = 120.0
"""For a decoder process to import what it needs, on a machine with other things to do."""
_MODULE = "d2det_platform.label.decoder_process"

Content = NDArray[np.uint8] | DecodeError | StoreUnavailableError
"""Pixels (H, W, 3) RGB, or why there are none."""


@dataclass(frozen=True)
class Request:
    """Pixels that are wanted.

    uri: of the picture.  state: of its file when the work was planned.
    window: (x, y, width, height) of a raster; None: the whole picture, by the usual decoder.
    """

    uri: str
    state: FileState | None = None
    window: tuple[int, int, int, int] | None = None


class Decoders:
    """A few decoder processes that answer in the order of the requests."""

    def __init__(
        self,
        count: int = 1,
        *,
        limits: DecodeLimits = DEFAULT_LIMITS,
        raster: RasterOptions | None = None,
        timeout_s: float = 10.0,
        image_column: str = "image",
    ) -> None:
        self._limits = limits
        self._raster = (raster or RasterOptions()).model_dump(mode="json")
        self._timeout_s = timeout_s
        self._tables = TableRows(image_column)
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._processes = [_Process() for _ in range(count)]
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def launch(self) -> None:
        """Starts the processes, which otherwise start when first needed, and waits for none."""
        for process in self._processes:
            process.launch()

    def wait(self) -> None:
        """Returns when all processes have started.

        Raises:
            RuntimeError: one does not.
        """
        for process in self._processes:
            process.wait()

    def read(self, requests: Sequence[Request]) -> Iterator[Content]:
        """Yields the pixels of each request, or why there are none."""
        futures: list[Future[Content]] = [
            self._threads.submit(self._read, request) for request in requests
        ]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def describe(self, uri: str) -> RasterInfo:
        """Returns what a GeoTIFF says of itself.

        Raises:
            DecodeError: it cannot be opened.
        """
        process = self._idle.get()
        try:
            asked = {"kind": "describe", "uri": uri, "raster": self._raster}
            answer = process.ask(asked, self._timeout_s)
        finally:
            self._idle.put(process)
        transform = answer["transform"] and tuple(answer["transform"])
        return RasterInfo(answer["width"], answer["height"], answer["crs"], transform)

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            process.end()

    def _read(self, request: Request) -> Content:
        try:
            data = self._bytes(request)
        except (DecodeError, StoreUnavailableError) as error:
            return error
        process = self._idle.get()
        try:
            answer = process.ask(self._message(request), self._timeout_s, data)
            return process.pixels(answer["size"])
        except DecodeError as error:
            return error
        finally:
            self._idle.put(process)

    def _bytes(self, request: Request) -> bytes | None:
        """The picture's bytes where the decoder process cannot read them itself."""
        uri, row = uris.split_row(request.uri)
        if row is not None:
            return self._tables.read(uri, row, max_bytes=self._limits.max_bytes)
        if request.window is not None or uris.is_local(uri):
            return None
        return read_file(uri, state=request.state, max_bytes=self._limits.max_bytes)

    def _message(self, request: Request) -> dict[str, Any]:
        message: dict[str, Any] = {"uri": request.uri}
        if request.state is not None:
            message["state"] = list(asdict(request.state).values())
        if request.window is not None:
            return {**message, "kind": "window", "window": request.window, "raster": self._raster}
        return {**message, "kind": "decode", "limits": self._limits.model_dump(mode="json")}


class _Process:
    """One decoder process, started when it is needed and again after its death."""

    def __init__(self) -> None:
        self._pixels = os.memfd_create("d2det-pixels", os.MFD_CLOEXEC)
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = b""
        self._is_ready = False

    def launch(self) -> None:
        """Starts the process; it says later that it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE, str(self._pixels)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self._pixels],
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the driver
        )

    def wait(self) -> None:
        """Returns when the process is ready, started now if need be."""
        self._started()

    def ask(
        self, message: dict[str, Any], timeout_s: float, data: bytes | None = None
    ) -> dict[str, Any]:
        """Returns the answer of the process.

        Raises:
            DecodeError: that of the answer, or timeout, or crashed.
        """
        process = self._started()
        if data is not None:
            self._put(data)
            message = {**message, "data_bytes": len(data)}
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        answer = self._answer(timeout_s)
        if (error := answer.get("error")) is not None:
            raise DecodeError(*error)
        return answer

    def pixels(self, size: Sequence[int]) -> NDArray[np.uint8]:
        """Returns the picture of `size` (height, width) that the process left."""
        image = np.empty((*size, 3), np.uint8)
        view, done = memoryview(image.data).cast("B"), 0
        while done < len(view):
            done += os.preadv(self._pixels, [view[done:]], done)
        return image

    def end(self) -> None:
        """Ends the process; not to be used any more."""
        self._kill()
        os.close(self._pixels)

    def _put(self, data: bytes) -> None:
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.pwrite(self._pixels, view[done:], done)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._kill()
            self.launch()
        assert self._process is not None
        if not self._is_ready:
            try:
                self._answer(START_TIMEOUT_S)
            except DecodeError as error:
                raise RuntimeError(f"a decoder process does not start: {error}") from error
            self._is_ready = True
        return self._process

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        answers = self._process.stdout.fileno()
        while b"\n" not in self._answers:
            ready, _, _ = select.select([answers], [], [], timeout_s)
            if not ready:
                self._kill()
                raise DecodeError("timeout", f"not decoded within {timeout_s:g} s")
            part = os.read(answers, 65536)
            if not part:
                raise self._death()
            self._answers += part
        line, _, self._answers = self._answers.partition(b"\n")
        return dict(json.loads(line))

    def _death(self) -> DecodeError:
        assert self._process is not None
        code = self._process.wait()
        self._kill()
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return DecodeError("crashed", f"the decoder died ({reason})")

    def _kill(self) -> None:
        self._answers, self._is_ready = b"", False
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None


def _environment() -> dict[str, str]:
    """That of this process: the decoders' limits are set by d2det before OpenCV is imported.

    One thread each: the processes are the parallelism.
    """
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
