"""UAVDT (benchmark-M) as its authors distribute it: text files a sequence, ignore regions apart.

The protocol of the paper: cars, trucks and buses are one class, "vehicle", and ignore regions are
painted black. Two layouts are in circulation and both are read:

    UAV-benchmark-M/M0101/img000001.jpg          M0101/img1/img000001.jpg
    UAV-benchmark-MOTD_v1.0/GT/M0101_gt_whole.txt    M0101/gt/gt_whole.txt
    M_attr/train/M0101_attr.txt                  M_attr/train/M0101_attr.txt

The folder below M_attr says which split a sequence belongs to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2det.data.index import DatasetIndex, build_index
from d2det.data.samples import DetectionDataset
from d2det.inference.decode import read_header
from d2det.presets.categories import UAVDT

ATTRIBUTES = (
    "daylight",
    "night",
    "fog",
    "low altitude",
    "medium altitude",
    "high altitude",
    "front view",
    "side view",
    "bird view",
    "long term",
)
"""What the ten numbers of an attribute file stand for."""
_FRAMES_PER_SEQUENCE = 1_000_000
"""Frame 12 of M0101 is image 101000012: unique, and the same in any subset of the data."""
_SEQUENCE = re.compile(r"M\d{4}")


def open_uavdt(root: Path | str, split: str = "train") -> DetectionDataset:
    """Returns the pictures of one split, ignore regions black, vehicles as the only class."""
    return DetectionDataset(read_uavdt(root, split), root, blank_ignored=True)


def read_uavdt(root: Path | str, split: str = "train") -> DatasetIndex:
    """Returns the annotations of one split; ignore regions are its ignored objects.

    Args:
        root: the folder that holds the sequences, the ground truth and M_attr.
        split: "train" or "test".

    Raises:
        ValueError: something is missing or broken; the message names file and line.
    """
    root = Path(root)
    parts = [
        _read_sequence(root, name, attributes)
        for name, attributes in _attributes_of_sequences(root, split).items()
    ]
    first = np.cumsum([0, *(len(part.file_names) for part in parts)])
    owners = [part.owners + offset for part, offset in zip(parts, first[:-1], strict=True)]
    boxes = np.concatenate([part.boxes for part in parts])
    return build_index(
        UAVDT,
        file_names=[name for part in parts for name in part.file_names],
        image_ids=[image_id for part in parts for image_id in part.image_ids],
        image_sizes=[part.size for part in parts for _ in part.file_names],
        owners=np.concatenate(owners),
        labels=np.zeros(len(boxes), np.int64),
        boxes=boxes,
        is_ignored=np.concatenate([part.is_region for part in parts]),
        attributes=[part.attributes for part in parts for _ in part.file_names],
    )


@dataclass(frozen=True)
class _Sequence:
    """F frames and their A rows.

    owners: (A,) int64, place of the frame.  boxes: (A, 4) xyxy.  is_region: (A,) bool.
    """

    file_names: list[str]
    image_ids: list[int]
    size: tuple[int, int]
    attributes: frozenset[str]
    owners: NDArray[np.int64]
    boxes: NDArray[np.float64]
    is_region: NDArray[np.bool_]


def _read_sequence(root: Path, name: str, attributes: frozenset[str]) -> _Sequence:
    frames = _frames(root, name)
    objects, regions = (_read_rows(_find(root, name, kind)) for kind in ("whole", "ignore"))
    rows = np.concatenate((objects, regions))
    numbers = np.array(list(frames))
    owners = np.searchsorted(numbers, rows[:, 0])
    known = numbers[np.minimum(owners, len(numbers) - 1)] == rows[:, 0]
    if not known.all():
        frame = int(rows[~known][0, 0])
        raise ValueError(f"{root}: frame {frame} of {name} is annotated but there is no picture")
    with next(iter(frames.values())).open("rb") as stream:
        size = read_header(stream).size  # all pictures of a sequence have the same
    return _Sequence(
        file_names=[path.relative_to(root).as_posix() for path in frames.values()],
        image_ids=[int(name[1:]) * _FRAMES_PER_SEQUENCE + number for number in frames],
        size=size,
        attributes=attributes,
        owners=owners,
        boxes=np.concatenate((rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6]), 1),
        is_region=np.arange(len(rows)) >= len(objects),
    )


def _attributes_of_sequences(root: Path, split: str) -> dict[str, frozenset[str]]:
    """Attributes by sequence. One of the authors' file names has a stray blank in it."""
    sequences = {}
    for path in sorted((root / "M_attr" / split).glob("*_attr.txt")):
        match = _SEQUENCE.match(path.name)
        flags = re.findall(r"\d+", path.read_text())
        if match is None or len(flags) != len(ATTRIBUTES) or set(flags) - {"0", "1"}:
            raise ValueError(f"{path}: {len(ATTRIBUTES)} zeros or ones are expected, got {flags}")
        chosen = (word for word, flag in zip(ATTRIBUTES, flags, strict=True) if flag == "1")
        sequences[match.group()] = frozenset(chosen)
    if not sequences:
        raise ValueError(f"no attribute files M????_attr.txt in {root / 'M_attr' / split}")
    return sequences


def _frames(root: Path, sequence: str) -> dict[int, Path]:
    """Pictures by frame number, ascending."""
    for folder in (*sorted(root.glob(f"*/{sequence}")), root / sequence):
        for place in (folder, folder / "img1"):
            frames = {int(re.sub(r"\D", "", path.stem)): path for path in place.glob("*.jpg")}
            if frames:
                return dict(sorted(frames.items()))
    raise ValueError(f"no pictures of sequence {sequence} below {root}")


def _find(root: Path, sequence: str, kind: str) -> Path | None:
    """The ground truth ("whole") or the ignore regions ("ignore") of a sequence."""
    candidates = (
        *root.glob(f"*/GT/{sequence}_gt_{kind}.txt"),
        root / "GT" / f"{sequence}_gt_{kind}.txt",
        *root.glob(f"*/{sequence}/gt/gt_{kind}.txt"),
        root / sequence / "gt" / f"gt_{kind}.txt",
    )
    path = next((path for path in candidates if path.is_file()), None)
    if path is None and kind == "whole":
        raise ValueError(f"no {candidates[-1].name} of sequence {sequence} below {root}")
    return path


def _read_rows(path: Path | None) -> NDArray[np.float64]:
    """Rows (frame, target, left, top, width, height); none without a file."""
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text().splitlines() if path else (), start=1):
        if not line.strip():
            continue
        try:
            row = [float(field) for field in line.split(",")[:6]]
        except ValueError:
            row = []
        if len(row) != 6 or not np.isfinite(row).all() or min(row[4:]) < 0:
            raise ValueError(f"{path}, line {number}: {line!r:.80} is not a box of a frame")
        rows.append(row)
    return np.array(rows, np.float64).reshape(-1, 6)
