"""`d2det predict`: many files through one Predictor, decoded ahead while the network runs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from d2det.inference.decode import DecodeError
from d2det.inference.options import PredictCommand
from d2det.inference.predictor import Predictor
from d2det.inference.results import ImageRow, ResultWriter, error_row, image_row
from d2det.inference.sources import ReadPicture, Source, find_pictures, read_ahead
from d2det.progress import image_progress
from d2det.structures import Detections
from d2det.visualize import draw_detections

_JPEG_QUALITY = 92


def run(options: PredictCommand) -> int:
    """Predicts all pictures and returns the exit code: 1 when none could be read, else 0.

    Raises:
        ValueError: No pictures, no such weights, no such device.
    """
    sources = find_pictures(options.paths, jpeg2000=options.limits.jpeg2000)
    if not sources:
        raise ValueError(f"no pictures in {', '.join(map(str, options.paths))}")
    predictor = Predictor.load(options.weights, options)
    if options.save_dir is not None:
        options.save_dir.mkdir(parents=True, exist_ok=True)
    start, read, found = time.monotonic(), 0, 0
    with ExitStack() as stack:
        outputs = _Outputs(options, predictor, stack)
        progress = stack.enter_context(image_progress())
        task = progress.add_task("predict", total=len(sources))
        pictures = read_ahead(sources, options.limits, threads=options.read_threads)
        for picture, detections in _predict(pictures, predictor):
            outputs.add(picture, detections)
            progress.advance(task)
            if detections is not None:
                read, found = read + 1, found + len(detections)
    seconds = time.monotonic() - start
    print(
        f"{read} of {len(sources)} pictures, {found} detections in {seconds:.1f} s "
        f"({read / seconds:.2f} images/s)",
        file=sys.stderr,
    )
    return 0 if read else 1


def _predict(
    pictures: Iterable[ReadPicture], predictor: Predictor
) -> Iterator[tuple[ReadPicture, Detections | None]]:
    """Yields every picture with its detections, in order; None where it could not be read."""
    for group in _grouped(pictures, predictor):
        images = [p.content for p in group if not isinstance(p.content, DecodeError)]
        found = iter(predictor.predict(images))
        for picture in group:
            is_bad = isinstance(picture.content, DecodeError)
            yield picture, None if is_bad else next(found)


def _grouped(pictures: Iterable[ReadPicture], predictor: Predictor) -> Iterator[list[ReadPicture]]:
    """Yields runs of pictures that fill the predictor's budget of pixels."""
    group: list[ReadPicture] = []
    filled = 0
    for picture in pictures:
        group.append(picture)
        if not isinstance(picture.content, DecodeError):
            filled += predictor.cost(*picture.content.shape[:2])
        if filled >= predictor.options.batch_pixels:
            yield group
            group, filled = [], 0
    if group:
        yield group


class _Outputs:
    """Where results go: a JSON file, drawn pictures, or lines on stdout where neither is asked."""

    def __init__(self, options: PredictCommand, predictor: Predictor, stack: ExitStack) -> None:
        self._options = options
        self._categories = predictor.categories
        self._names = [category.name for category in predictor.categories]
        self._writer: ResultWriter | None = None
        if options.json_path is not None:
            self._writer = stack.enter_context(ResultWriter(options.json_path))

    def add(self, picture: ReadPicture, found: Detections | None) -> None:
        """Writes what was found in a picture, or why it could not be read."""
        name, content = picture.source.name, picture.content
        if isinstance(content, DecodeError):
            print(f"{name}: {content.reason}: {content.detail}", file=sys.stderr)
            self._write(error_row(name, content.reason, content.detail))
            return
        assert found is not None
        self._write(image_row(name, found, self._categories))
        if self._options.save_dir is not None:
            self._draw(picture.source, content, found)
        if self._writer is None and self._options.save_dir is None:
            print(f"{name}: {self._summary(found)}")

    def _write(self, row: ImageRow) -> None:
        if self._writer is not None:
            self._writer.write(row)

    def _draw(self, source: Source, image: NDArray[np.uint8], found: Detections) -> None:
        drawn = draw_detections(image, found, self._names, min_score=self._options.draw_threshold)
        assert self._options.save_dir is not None
        path = self._options.save_dir / _as_jpeg(source.place)
        path.parent.mkdir(parents=True, exist_ok=True)
        parameters = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        path.write_bytes(cv2.imencode(".jpg", drawn[..., ::-1], parameters)[1].tobytes())

    def _summary(self, found: Detections) -> str:
        labels = found.labels[found.scores >= self._options.draw_threshold].tolist()
        counts = Counter(self._names[label] for label in labels).most_common()
        return ", ".join(f"{count} {name}" for name, count in counts) or "nothing"


def _as_jpeg(place: Path) -> Path:
    """The path with a JPEG suffix; one of another format keeps its own before it."""
    return place if place.suffix.lower() in (".jpg", ".jpeg") else Path(f"{place}.jpg")
