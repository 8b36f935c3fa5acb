"""The tables of labelling: manifest, labels, staged windows, errors; and detections as columns.

The labels are the product, and docs/labelling.md explains them column by column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from d2det.inference.seams import SeamAudit
from d2det.structures import Category, Detections, Rle

SCHEMA_VERSION = "1"
"""Of the label files; grows when a reader of the old one would misread the new one."""

_BBOX = pa.list_(pa.field("element", pa.float32(), nullable=False), 4)
_SIZE = pa.list_(pa.field("element", pa.int32(), nullable=False), 2)
MASK = pa.struct([pa.field("size", _SIZE), pa.field("counts", pa.string())])
DETECTION = pa.struct(
    [
        pa.field("bbox", _BBOX, nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("category_id", pa.int64(), nullable=False),
        pa.field("mask", MASK),
        pa.field("mask_score", pa.float32()),
    ]
)
DETECTIONS = pa.list_(pa.field("element", DETECTION, nullable=False))
ERROR = pa.struct(
    [
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("attempt", pa.int32()),
    ]
)
SEAMS = pa.struct([pa.field(f.name, pa.int64()) for f in fields(SeamAudit)])

MANIFEST = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("image_id", pa.int64()),
        pa.field("format", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("bytes", pa.int64()),
        pa.field("version", pa.string()),
        pa.field("crs", pa.string()),
        pa.field("transform", pa.list_(pa.float64(), 6)),
        pa.field("stage", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("cost", pa.int64(), nullable=False),
        pa.field("windows", pa.int32(), nullable=False),
        pa.field("first_unit", pa.int32(), nullable=False),
        pa.field("num_units", pa.int32(), nullable=False),
    ]
)
"""A row a picture. cost: pixels through the network. windows: 1 for a picture predicted whole.
first_unit, num_units: the units of its shard that it belongs to; none where it is refused."""

LABELS = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("image_id", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("windows", pa.int32(), nullable=False),
        pa.field("detections", DETECTIONS, nullable=False),
        pa.field("error", ERROR),
        pa.field("seams", SEAMS),
        pa.field("crs", pa.string()),
        pa.field("transform", pa.list_(pa.float64(), 6)),
    ]
)

FOUND = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("x", pa.int32(), nullable=False),
        pa.field("y", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("detections", DETECTIONS, nullable=False),
        pa.field("error", ERROR),
        pa.field("seams", SEAMS),
    ]
)
"""What a unit stages: a row for each picture, or for each window of a scene, in whose frame its
detections are. row: of the picture in its shard's manifest."""

ERRORS = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        *ERROR,
    ]
)


def detections_array(found: Sequence[Detections], categories: Sequence[Category]) -> pa.ListArray:
    """Returns the DETECTIONS column of several pictures.

    Raises:
        ValueError: a label that has no category.
    """
    lengths = [len(each) for each in found]
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    labels = _joined([each.labels.numpy() for each in found], np.int64)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(categories):
        raise ValueError(
            f"the model found label {labels.max()} and has {len(categories)} classes; "
            "name them with --classes"
        )
    boxes = _joined([each.boxes.numpy().reshape(-1) for each in found], np.float32)
    masks, mask_scores = _mask_columns(found)
    names = pa.array([category.name for category in categories], pa.string())
    ids = np.array([category.id for category in categories], np.int64)
    columns = [
        pa.FixedSizeListArray.from_arrays(pa.array(boxes), type=_BBOX),
        pa.array(_joined([each.scores.numpy() for each in found], np.float32)),
        names.take(pa.array(labels)),
        pa.array(ids[labels] if len(ids) else labels),
        masks,
        mask_scores,
    ]
    rows = pa.StructArray.from_arrays(columns, fields=list(DETECTION))
    return pa.ListArray.from_arrays(pa.array(offsets), rows, type=DETECTIONS)


def _mask_columns(found: Sequence[Detections]) -> tuple[pa.Array, pa.Array]:
    count = sum(len(each) for each in found)
    if not any(each.masks is not None for each in found):
        return pa.nulls(count, MASK), pa.nulls(count, pa.float32())
    masks: list[dict[str, Any] | None] = []
    scores: list[float | None] = []
    for each in found:
        if each.masks is None or each.mask_scores is None:
            masks += [None] * len(each)
            scores += [None] * len(each)
            continue
        masks += [{"size": mask["size"], "counts": mask["counts"].decode()} for mask in each.masks]
        scores += each.mask_scores.tolist()
    return pa.array(masks, MASK), pa.array(scores, pa.float32())


def read_detections(
    rows: pa.StructArray, size: tuple[int, int], labels: Mapping[int, int]
) -> Detections:
    """Returns the detections in one list of a DETECTIONS column: undoes `detections_array`.

    Args:
        rows: the flat values of the list.
        size: (height, width) of their frame.
        labels: the model's label of each category id.
    """
    boxes = _flat(rows.field("bbox")).to_numpy(zero_copy_only=False).reshape(-1, 4)
    mask_column = rows.field("mask")
    masks, mask_scores = None, None
    if len(rows) and mask_column.null_count == 0:
        counts = mask_column.field("counts").to_pylist()
        sizes = _flat(mask_column.field("size")).to_numpy(zero_copy_only=False).reshape(-1, 2)
        masks = tuple(
            Rle(size=(int(h), int(w)), counts=text.encode())
            for (h, w), text in zip(sizes, counts, strict=True)
        )
        mask_scores = _tensor(rows.field("mask_score"), torch.float32)
    ids = rows.field("category_id").to_numpy(zero_copy_only=False)
    return Detections(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        scores=_tensor(rows.field("score"), torch.float32),
        labels=torch.tensor([labels[i] for i in ids.tolist()], dtype=torch.int64),
        size=size,
        masks=masks,
        mask_scores=mask_scores,
    )


def _flat(column: pa.FixedSizeListArray) -> pa.Array:
    # Not .values, which ignores the slice of a sliced array.
    return column.flatten()


def _tensor(column: pa.Array, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False))).to(dtype)


def _joined(parts: Sequence[Any], dtype: Any) -> Any:
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype)


def empty_detections(size: tuple[int, int] = (0, 0)) -> Detections:
    """Returns no detections, in a frame of `size`."""
    return Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64), size)


def seams_row(audit: SeamAudit | None) -> dict[str, int] | None:
    """Returns an audit as a SEAMS value."""
    return None if audit is None else asdict(audit)


def error_value(stage: str, reason: str, detail: str, attempt: int = 1) -> dict[str, Any]:
    """Returns an ERROR value; the detail is one line of printable text."""
    line = " ".join(detail.split()).encode("ascii", "backslashreplace").decode()
    return {"stage": stage, "reason": reason, "detail": line[:500], "attempt": attempt}
