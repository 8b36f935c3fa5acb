"""Reads ground truth and results from the JSON files people have, and writes COCO results.

Two result forms are accepted: the list of COCO results (`bbox` is x, y, width, height), and this
project's {"images": [{"file_name", "detections": [...]}]} (`bbox` is x1, y1, x2, y2). Whatever does
not fit the annotations is refused by name: a silent skip would only show as a low score.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2det.data.rows import Row, box_column, column, finite, objects, parse_json, texts
from d2det.evaluation.run_lengths import mask_boxes, read_masks
from d2det.evaluation.tables import DetectionTable, GroundTruth
from d2det.structures import Category, Detections, Rle

logger = logging.getLogger(__name__)

_SIDES = ("height", "width")


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file.

    Raises:
        ValueError: it cannot be read or is not JSON; the message names the file.
    """
    try:
        return parse_json(Path(path).read_bytes())
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_ground_truth(source: Path | Mapping[str, Any]) -> GroundTruth:
    """Returns the ground truth of a COCO annotation file, or of its parsed content.

    Raises:
        ValueError: a part is missing or an annotation refers to a picture or category that the
            file does not have; the message says which.
    """
    content = source if isinstance(source, Mapping) else read_json(source)
    if not isinstance(content, Mapping) or not {"images", "categories"} <= content.keys():
        raise ValueError("not a COCO annotation file: it needs images, categories, annotations")
    images, image_ids = _by_id(content["images"], "image")
    categories, category_ids = _by_id(content["categories"], "category")
    rows = objects(content.get("annotations", []), "annotation")
    boxes = box_column(rows, "annotation")
    box_areas = (boxes[:, 2] * boxes[:, 3]).tolist()
    areas = column(rows, "area", np.float64, "annotation", defaults=box_areas)
    sizes = np.stack(
        [column(images, side, np.int64, "image", defaults=repeat(0)) for side in _SIDES], 1
    )
    if len(negative := np.flatnonzero((sizes < 0).any(1))):
        raise ValueError(f"image id {image_ids[negative[0]]} has a negative height or width")
    flags = {
        name: column(rows, name, np.int64, "annotation", defaults=repeat(0)) != 0
        for name in ("iscrowd", "ignore", "difficult")
    }
    return GroundTruth(
        image_ids=image_ids,
        file_names=tuple(str(image.get("file_name", image["id"])) for image in images),
        sizes=sizes,
        attributes=tuple(map(_words, images)),
        categories=tuple(
            Category(id=number, name=name)
            for number, name in zip(
                category_ids.tolist(), texts(categories, "name", "category"), strict=True
            )
        ),
        supercategories=tuple(str(c.get("supercategory") or "") for c in categories),
        image=_positions(
            image_ids, column(rows, "image_id", np.int64, "annotation"), "annotation", "image id"
        ),
        label=_positions(
            category_ids,
            column(rows, "category_id", np.int64, "annotation"),
            "annotation",
            "category id",
        ),
        boxes=boxes,
        areas=finite(areas, "area", "annotation"),
        crowd=flags["iscrowd"],
        ignore=flags["ignore"] | flags["difficult"],
        segmentations=tuple(row.get("segmentation") for row in rows),
    )


def read_detections(
    source: Path | Mapping[str, Any] | Sequence[Mapping[str, Any]], ground_truth: GroundTruth
) -> DetectionTable:
    """Returns the detections of a result file in either accepted form, or of its parsed content.

    Raises:
        ValueError: neither form, a row without box and mask, an unknown picture or category, or a
            number that is not finite; the message says which.
    """
    content = read_json(source) if isinstance(source, Path) else source
    if isinstance(content, Mapping) and "images" in content:
        box_form = "xyxy"
        rows: Sequence[Row]
        rows, image = _project_rows(objects(content["images"], "picture"), ground_truth)
    elif isinstance(content, list | tuple):
        rows, box_form = objects(content, "detection"), "xywh"
        image = _positions(
            ground_truth.image_ids,
            column(rows, "image_id", np.int64, "detection"),
            "detection",
            "image id",
        )
    else:
        raise ValueError('results must be a list of COCO results or {"images": [...]}')
    category_ids = np.array([category.id for category in ground_truth.categories], np.int64)
    label = _positions(
        category_ids,
        column(rows, "category_id", np.int64, "detection"),
        "detection",
        "category id",
    )
    masks = _masks(rows, image, ground_truth)
    scores = finite(column(rows, "score", np.float64, "detection"), "score", "detection")
    return DetectionTable(
        image=image,
        label=label,
        boxes=_boxes(rows, box_form, masks),
        scores=scores,
        masks=masks,
        mask_scores=_mask_scores(rows, scores) if masks is not None else None,
    )


def table_of_predictions(
    predictions: Mapping[int, Detections],
    categories: Sequence[Category],
    ground_truth: GroundTruth,
) -> DetectionTable:
    """Returns what a detector found, image id to detections, as a table for evaluation.

    Args:
        predictions: detections in the frame of the original picture, by image id.
        categories: the detector's classes, label by label; matched to the annotations by id.
        ground_truth: the annotations they will be compared with.

    Raises:
        ValueError: a picture or category that the annotations do not have.
    """
    found = [predictions[image_id] for image_id in predictions]
    image_ids = np.repeat(np.array(list(predictions), np.int64), [len(one) for one in found])
    own_ids = np.array([category.id for category in categories], np.int64)
    labels = _joined([one.labels.numpy() for one in found], np.int64)
    boxes = _joined([one.boxes.double().numpy() for one in found], np.float64).reshape(-1, 4)
    with_masks = bool(found) and all(one.masks is not None for one in found)
    known = np.array([category.id for category in ground_truth.categories], np.int64)
    return DetectionTable(
        image=_positions(ground_truth.image_ids, image_ids, "detection", "image id"),
        label=_positions(known, own_ids[labels], "detection", "category id"),
        boxes=_xywh(boxes),
        scores=_joined([one.scores.double().numpy() for one in found], np.float64),
        masks=tuple(mask for one in found for mask in one.masks or ()) if with_masks else None,
        mask_scores=_joined(
            [one.mask_scores.double().numpy() for one in found if one.mask_scores is not None],
            np.float64,
        )
        if with_masks
        else None,
    )


def coco_results(detections: DetectionTable, ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """Returns `detections` as a list of COCO results, ready for `json.dump`.

    Rows carry `bbox` and `score`, and where there are masks `segmentation` and `mask_score`.
    """
    image_ids = ground_truth.image_ids[detections.image].tolist()
    category_ids = [ground_truth.categories[k].id for k in detections.label]
    rows: list[dict[str, Any]] = [
        {"image_id": i, "category_id": c, "bbox": b, "score": s}
        for i, c, b, s in zip(
            image_ids,
            category_ids,
            detections.boxes.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]
    if detections.masks is not None:
        scores = detections.ranking("segm").tolist()
        for row, mask, score in zip(rows, detections.masks, scores, strict=True):
            row["segmentation"] = {"size": list(mask["size"]), "counts": mask["counts"].decode()}
            row["mask_score"] = score
    return rows


def _project_rows(
    images: Sequence[Row], ground_truth: GroundTruth
) -> tuple[list[Row], NDArray[np.int64]]:
    """Detections of the project's form, and the (D,) picture index of each."""
    find = _picture_finder(ground_truth)
    pictures = [find(str(image.get("file_name"))) for image in images]
    seen: set[int] = set()
    for picture in pictures:
        if picture in seen:
            name = ground_truth.file_names[picture]
            raise ValueError(f"the results hold picture {name!r} more than once")
        seen.add(picture)
    if missing := len(ground_truth.image_ids) - len(pictures):
        logger.warning("%d annotated pictures are not in the results: scored as empty", missing)
    found = [objects(image.get("detections"), "detection") for image in images]
    rows = [row for each in found for row in each]
    return rows, np.repeat(np.array(pictures, np.int64), [len(each) for each in found])


def _picture_finder(ground_truth: GroundTruth) -> Callable[[str], int]:
    """A function from a file name to its picture: equal name first, else equal last part."""
    whole = {name: index for index, name in enumerate(ground_truth.file_names)}
    last: dict[str, list[int]] = {}
    for index, name in enumerate(ground_truth.file_names):
        last.setdefault(PurePath(name).name, []).append(index)

    def find(name: str) -> int:
        found = [whole[name]] if name in whole else last.get(PurePath(name).name, [])
        if len(found) != 1:
            problem = "fits several annotated pictures" if found else "is not in the annotations"
            raise ValueError(f"picture {name!r} of the results {problem}")
        return found[0]

    return find


def _by_id(value: Any, what: str) -> tuple[list[Row], NDArray[np.int64]]:
    """Objects in the order of their ids, and those."""
    rows = objects(value, what)
    ids = column(rows, "id", np.int64, what)
    order = ids.argsort(kind="stable")
    ids = ids[order]
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise ValueError(f"{what} id {repeated[0]} appears more than once")
    return [rows[place] for place in order.tolist()], ids


def _words(image: Row) -> frozenset[str]:
    words = image.get("attributes") or []
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"image id {image['id']}: attributes are {words!r:.40}, not words")
    return frozenset(words)


def _positions(
    known: NDArray[np.int64], wanted: NDArray[np.int64], what: str, kind: str
) -> NDArray[np.int64]:
    """Index in `known` of each of `wanted`."""
    order = np.argsort(known)
    place = np.searchsorted(known, wanted, sorter=order)
    # A number above all known ones is compared with the largest, and differs.
    position = order[np.minimum(place, len(known) - 1)] if len(known) else place
    unknown = known[position] != wanted if len(known) else np.ones(len(wanted), bool)
    if unknown.any():
        first = np.flatnonzero(unknown)[0]
        raise ValueError(
            f"{what} {first} has {kind} {wanted[first]}, which the annotations do not have "
            f"({np.count_nonzero(unknown)} such rows)"
        )
    return position


def _boxes(rows: Sequence[Row], form: str, masks: tuple[Rle, ...] | None) -> NDArray[np.float64]:
    """(D, 4) boxes of detections; where only masks are given, those around the masks."""
    if masks is not None and "bbox" not in rows[0]:
        return mask_boxes(masks)
    boxes = box_column(rows, "detection")
    if form == "xyxy":
        boxes = _xywh(boxes)
    inverted = np.flatnonzero((boxes[:, 2:] < 0).any(1))
    if len(inverted):
        raise ValueError(f"detection {inverted[0]} has a box of negative size")
    return boxes


def _xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), 1)


def _masks(
    rows: Sequence[Row], image: NDArray[np.int64], ground_truth: GroundTruth
) -> tuple[Rle, ...] | None:
    key = next((k for k in ("segmentation", "mask") if rows and rows[0].get(k)), None)
    if key is None:
        return None
    sizes = ground_truth.sizes.tolist()
    return read_masks(
        [row.get(key) for row in rows],
        [sizes[picture] for picture in image.tolist()],
        what="detection",
    )


def _mask_scores(rows: Sequence[Row], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D,) scores of masks; where a row has none, that of its box."""
    own = column(rows, "mask_score", np.float64, "detection", defaults=scores.tolist())
    return finite(own, "mask_score", "detection")


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
