"""Does units of work in one process: pixels in, a staged file out. Knows nothing of Ray.

`Worker.run` may be called by two threads: one decodes its unit while the other's is predicted.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from d2det.inference.headers import DecodeError
from d2det.inference.merge import merge_windows
from d2det.inference.seams import SeamAudit
from d2det.inference.windows import ArrayScene, Window, in_scene, predict_windows
from d2det.structures import Detections
from d2det_platform.label.decoders import Content, Decoders, Request
from d2det_platform.label.files import StoreUnavailableError
from d2det_platform.label.inspect import state_of
from d2det_platform.label.layout import Run
from d2det_platform.label.models import Model, Picture, cost_model, load_model
from d2det_platform.label.plan import read_manifest
from d2det_platform.label.schema import (
    FOUND,
    detections_array,
    empty_detections,
    error_value,
    seams_row,
)
from d2det_platform.label.suspects import Suspects
from d2det_platform.label.units import UnitRef, is_scene, rows_of_unit, windows_of_unit
from d2det_platform.store import RunStore

_HOPELESS = 4
"""A model that fails on every picture of a unit of so many is broken; the run stops."""


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit.

    is_new: whether it was predicted now; else its file was there.
    pictures, windows: in it.  errors: rows of its pictures, where it is new.
    megapixels: decoded now.  seconds: from the first byte to the staged file.
    """

    shard: int
    unit: int
    is_new: bool
    pictures: int
    windows: int
    errors: int = 0
    megapixels: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Frame:
    """Pixels to predict: a whole picture, or a window of a scene. row: in the manifest."""

    row: int
    picture: dict[str, Any]
    window: Window

    def request(self) -> Request:
        """Returns how its pixels are asked for."""
        window = self.window
        by_window = (window.x, window.y, window.width, window.height)
        is_plain = "+" not in self.picture["format"]
        return Request(self.picture["uri"], state_of(self.picture), None if is_plain else by_window)


@dataclass(frozen=True)
class _Answer:
    """What is staged of a frame."""

    frame: _Frame
    found: Detections
    error: dict[str, Any] | None = None
    audit: SeamAudit | None = None


class Worker:
    """Holds a model and decoder processes, and does units one after the other.

    num_threads: of torch on the CPU; results are bit-equal for one number of threads.
    """

    def __init__(
        self,
        store: RunStore,
        run: Run,
        *,
        num_threads: int,
        batch_pixels: int | None = None,
        suspects: Suspects | None = None,
    ) -> None:
        torch.set_num_threads(num_threads)
        options = run.options
        self._store, self._run, self._suspects = store, run, suspects
        self._cost = cost_model(options, run.model)
        self._batch_pixels = batch_pixels or options.batch_pixels
        self._decoders = Decoders(
            options.work.decoders,
            limits=options.limits,
            raster=options.raster,
            timeout_s=options.work.decode_timeout_s,
            image_column=options.image_column,
        )
        self._decoders.launch()  # they start while the model is loaded
        self._model: Model = load_model(options, run.model, batch_pixels=self._batch_pixels)
        self._decoders.wait()
        self._budget = _Budget(2 * options.decoded_mb << 20)
        self._predicting = threading.Lock()
        self._manifest = lru_cache(maxsize=4)(self._read_manifest)

    def close(self) -> None:
        """Ends the decoder processes."""
        self._decoders.close()

    def run(self, ref: UnitRef, attempt: int = 1) -> UnitResult:
        """Does a unit, unless its file is there.

        Raises:
            StoreUnavailableError: not one of its pictures can be reached.
            RuntimeError: the model fails on all of them.
        """
        start = time.perf_counter()
        name = self._run.layout.staged(ref.shard, ref.unit, attempt)
        frames = self._frames(ref, attempt)
        pictures = len({f.row for f in frames if not is_scene(f.picture)})
        windows = sum(1 if is_scene(f.picture) else f.picture["windows"] for f in frames)
        if self._store.exists(name):
            return UnitResult(ref.shard, ref.unit, False, pictures, windows)
        is_careful = self._suspects is not None and self._suspects.take(ref)
        num_bytes = sum(3 * f.window.width * f.window.height for f in frames)
        with self._budget.taken(num_bytes):
            contents = self._decode(frames)
            megapixels = sum(c.size for c in contents if isinstance(c, np.ndarray)) / 3e6
            with self._predicting:
                answers = self._answers(frames, contents, attempt, ref if is_careful else None)
            del contents
        self._store.write(name, self._staged(answers))
        errors = sum(answer.error is not None for answer in answers)
        return UnitResult(
            shard=ref.shard,
            unit=ref.unit,
            is_new=True,
            pictures=pictures,
            windows=windows,
            errors=errors,
            megapixels=megapixels,
            seconds=time.perf_counter() - start,
        )

    def _read_manifest(self, shard: int, attempt: int) -> pa.Table:
        return read_manifest(self._store, self._run, shard, attempt)

    def _frames(self, ref: UnitRef, attempt: int) -> list[_Frame]:
        manifest = self._manifest(ref.shard, attempt)
        index = rows_of_unit(manifest, ref.unit)
        frames = []
        for row, picture in zip(index, manifest.take(index).to_pylist(), strict=True):
            if is_scene(picture):
                windows = windows_of_unit(picture, ref.unit, self._cost)
            else:
                windows = [Window(0, 0, picture["height"], picture["width"])]
            frames += [_Frame(row, picture, window) for window in windows]
        return frames

    def _decode(self, frames: Sequence[_Frame]) -> list[Content]:
        requests = [frame.request() for frame in frames]
        contents = list(self._decoders.read(requests))
        failures = [c for c in contents if isinstance(c, StoreUnavailableError)]
        if failures and len(failures) == len(contents):
            raise failures[0]  # it is the store, not the pictures
        return contents

    def _answers(
        self,
        frames: Sequence[_Frame],
        contents: Sequence[Content],
        attempt: int,
        careful: UnitRef | None,
    ) -> list[_Answer]:
        """An answer for each frame, in order; pictures without pixels have theirs at once.

        careful: the unit, where its pictures are taken one by one.
        """
        answers: dict[int, _Answer] = {}
        images: dict[int, Picture] = {}
        for place, (frame, content) in enumerate(zip(frames, contents, strict=True)):
            expected = (frame.window.height, frame.window.width)
            if isinstance(content, StoreUnavailableError):
                content = DecodeError("io_error", str(content))
            elif isinstance(content, np.ndarray) and content.shape[:2] != expected:
                content = DecodeError("io_error", "changed since it was planned")
            if isinstance(content, DecodeError):
                error = error_value("decode", content.reason, content.detail, attempt)
                answers[place] = _Answer(frame, empty_detections(expected), error)
            else:
                images[place] = content
        if careful is not None:
            answers.update(self._one_by_one(frames, images, attempt, careful))
        else:
            answers.update(self._predicted(frames, images, attempt))
        return [answers[place] for place in range(len(frames))]

    def _predicted(
        self, frames: Sequence[_Frame], images: dict[int, Picture], attempt: int
    ) -> Iterator[tuple[int, _Answer]]:
        whole = [p for p in images if is_scene(frames[p].picture) or not self._is_tiled(frames[p])]
        cut = [place for place in images if place not in set(whole)]
        try:
            found = self._predict_all([images[place] for place in whole])
            merged = [self._predict_cut(images[place]) for place in cut]
        except Exception:
            yield from self._one_by_one(frames, images, attempt)
            return
        for place, each in zip(whole, found, strict=True):
            yield place, _Answer(frames[place], each)
        for place, (each, audit) in zip(cut, merged, strict=True):
            yield place, _Answer(frames[place], each, audit=audit)

    def _one_by_one(
        self,
        frames: Sequence[_Frame],
        images: dict[int, Picture],
        attempt: int,
        watched: UnitRef | None = None,
    ) -> list[tuple[int, _Answer]]:
        """Answers where the model failed on all pictures together: only the guilty have errors.

        watched: the unit, where pictures may kill the process and are written down first.
        """
        answers, last = [], None
        for place, image in images.items():
            frame, audit = frames[place], None
            try:
                with self._watched(watched, place):
                    if is_scene(frame.picture) or not self._is_tiled(frame):
                        (found,) = self._predict_all([image])
                    else:
                        found, audit = self._predict_cut(image)
            except Exception as error:
                last = error
                told = error_value(
                    "predict", "crashed", f"{type(error).__name__}: {error}", attempt
                )
                answers.append((place, _Answer(frame, empty_detections(image.shape[:2]), told)))
            else:
                answers.append((place, _Answer(frame, found, audit=audit)))
        if last is not None and all(a.error for _, a in answers) and len(answers) >= _HOPELESS:
            raise RuntimeError(f"the model fails on every picture: {last}") from last
        return answers

    @contextmanager
    def _watched(self, ref: UnitRef | None, place: int) -> Iterator[None]:
        if ref is None or self._suspects is None:
            yield
            return
        if self._suspects.is_condemned(ref, place):
            raise RuntimeError("the process of the model died on it, more than once")
        with self._suspects.watched(ref, place):
            yield

    def _is_tiled(self, frame: _Frame) -> bool:
        return self._cost.is_tiled(frame.window.height, frame.window.width)

    def _predict_all(self, images: Sequence[Picture]) -> list[Detections]:
        return self._model.predict(images) if images else []

    def _predict_cut(self, image: Picture) -> tuple[Detections, SeamAudit]:
        windows = self._cost.cut(*image.shape[:2])
        height, width = self._cost.padded(windows[0].height, windows[0].width)
        batch = max(1, self._batch_pixels // (height * width))
        results = predict_windows(self._model.predict, ArrayScene(image), windows, batch=batch)
        merged = merge_windows(list(results), image.shape[:2])
        return merged.detections, merged.audit

    def _staged(self, answers: Sequence[_Answer]) -> bytes:
        """The file of a unit, FOUND rows."""
        found = [
            in_scene(a.found, a.frame.window, (a.frame.picture["height"], a.frame.picture["width"]))
            if is_scene(a.frame.picture)
            else a.found
            for a in answers
        ]
        columns: dict[str, Any] = {
            "row": [a.frame.row for a in answers],
            **{
                name: [getattr(a.frame.window, name) for a in answers]
                for name in ("x", "y", "width", "height")
            },
            "detections": detections_array(found, self._run.model.categories),
            "error": [a.error for a in answers],
            "seams": [seams_row(a.audit) for a in answers],
        }
        arrays = [
            columns[field.name]
            if isinstance(columns[field.name], pa.Array)
            else pa.array(columns[field.name], field.type)
            for field in FOUND
        ]
        sink = io.BytesIO()
        table = pa.Table.from_arrays(arrays, schema=FOUND)
        pq.write_table(table, sink, compression="zstd", write_statistics=False)
        return sink.getvalue()


class _Budget:
    """Lets work in while its bytes fit; what is larger than all waits until it is alone."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._changed = threading.Condition()

    def taken(self, count: int) -> _Taken:
        """Returns a context that holds `count` bytes of the budget."""
        return _Taken(self, count)

    def take(self, count: int) -> None:
        """Waits until `count` bytes are free, or all are."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + count <= self._total)
            self._used += count

    def give(self, count: int) -> None:
        """Gives `count` bytes back."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()


@dataclass(frozen=True)
class _Taken:
    budget: _Budget
    count: int

    def __enter__(self) -> None:
        self.budget.take(self.count)

    def __exit__(self, *_: object) -> None:
        self.budget.give(self.count)
