"""`d2det evaluate`: scores results, or a detector's predictions, by the rules of a benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro
from pydantic import Field, model_validator
from rich import box
from rich.console import Console
from rich.table import Table

from d2det.data.uavdt import read_uavdt
from d2det.evaluation.coco import CocoMetrics, Engine, coco_metrics_table, evaluate_coco, percent
from d2det.evaluation.precision import NO_OBJECTS
from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.evaluation.stitched import TilesAndScenes, evaluate_tiles_and_scenes
from d2det.evaluation.tables import DetectionTable, GroundTruth, IouKind
from d2det.evaluation.uavdt import UavdtMetrics, evaluate_uavdt
from d2det.evaluation.voc import VocMetrics, evaluate_voc
from d2det.inference.options import PredictOptions

Rows = list[tuple[str, ...]]
"""A table as text, header first."""
_FILE_WIDTH = 120
"""Characters of a line where the output is no terminal, whose width would be taken for 80."""


class EvaluateCommand(PredictOptions):
    """Scores results against annotations: COCO box and mask AP, VOC AP at any IoU, or UAVDT.

    Example: d2det evaluate --annotations val.json --results out.json --masks
    """

    annotations: Path
    """COCO-format annotations; for uavdt also the folder of the data set (its test split)."""
    results: Path | None = None
    """Results to score: those of `d2det predict`, or a list of COCO results."""
    weights: Path | None = None
    """Instead of results: weights to predict with first; the other options are of `predict`."""
    images: Path | None = None
    """Folder of the pictures, for --weights."""
    metric: Literal["coco", "voc", "uavdt"] = "coco"
    """Whose rules: coco averages IoU 0.5 to 0.95; voc and uavdt use one IoU."""
    masks: bool = False
    """Score masks too (coco)."""
    max_detections: int = Field(default=100, ge=1)
    """Best detections per picture and class that count (coco); aerial pictures need 500 or so."""
    iou: float | None = Field(default=None, gt=0, le=1)
    """Least overlap (voc: 0.5 if not given, uavdt: 0.7)."""
    eleven_points: bool = False
    """The average precision of VOC 2007 instead of the area under the curve (voc, uavdt)."""
    scene_annotations: Path | None = None
    """Annotations of whole scenes: then the above are of tiles, and both are scored (coco)."""
    scene_results: Path | None = None
    """Results in whole scenes, merged across tiles."""
    scene_max_detections: int = Field(default=10_000, ge=1)
    """Best detections per scene and class that count."""
    engine: Engine = "fast"
    """Of coco: fast, or pycocotools to compare with."""
    json_path: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """File for the numbers."""

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        if (self.results is None) == (self.weights is None):
            raise ValueError("give either --results or --weights")
        if self.weights is not None and self.images is None:
            raise ValueError("--weights needs --images, the folder of the pictures")
        if (self.scene_annotations is None) != (self.scene_results is None):
            raise ValueError("--scene-annotations and --scene-results come together")
        if self.metric != "coco" and (self.masks or self.scene_results):
            raise ValueError(f"--metric {self.metric} scores boxes of one set of pictures only")
        if self.metric == "coco" and (self.iou is not None or self.eleven_points):
            raise ValueError("--metric coco has its own thresholds: choose --metric voc")
        return self


def run(options: EvaluateCommand) -> int:
    """Scores, prints the tables, writes the JSON if asked for, and returns the exit code.

    Raises:
        ValueError: a file is missing or does not fit the others; the message says what and where.
    """
    if options.metric == "uavdt" and options.annotations.is_dir():
        ground_truth = GroundTruth.from_index(read_uavdt(options.annotations, "test"))
    else:
        ground_truth = read_ground_truth(options.annotations)
    if options.results is not None:
        detections = read_detections(options.results, ground_truth)
    else:
        assert options.weights is not None
        assert options.images is not None
        # Here, because only this branch needs the network and its ops.
        from d2det.evaluation.predictions import predict_pictures

        detections = predict_pictures(options.weights, options, ground_truth, options.images)
    score = {"coco": _coco, "voc": _voc, "uavdt": _uavdt}[options.metric]
    numbers, tables = score(options, ground_truth, detections)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    for title, rows in tables.items():
        console.print(_as_table(title, rows))
    if options.json_path is not None:
        options.json_path.parent.mkdir(parents=True, exist_ok=True)
        options.json_path.write_text(json.dumps(numbers, indent=1))
    return 0


def _coco(
    options: EvaluateCommand, ground_truth: GroundTruth, detections: DetectionTable
) -> tuple[dict[str, Any], dict[str, Rows]]:
    kinds: tuple[IouKind, ...] = ("bbox", "segm") if options.masks else ("bbox",)
    if options.scene_annotations is not None and options.scene_results is not None:
        scenes = read_ground_truth(options.scene_annotations)
        both = evaluate_tiles_and_scenes(
            (ground_truth, detections),
            (scenes, read_detections(options.scene_results, scenes)),
            kinds=kinds,
            max_detections_per_tile=options.max_detections,
            max_detections_per_scene=options.scene_max_detections,
        )
        return _side_by_side(both)
    metrics = evaluate_coco(
        ground_truth,
        detections,
        kinds=kinds,
        max_detections=options.max_detections,
        engine=options.engine,
    )
    tables: dict[str, Rows] = {}
    for scores in metrics.scores:
        name = "boxes" if scores.kind == "bbox" else "masks"
        tables[f"{name} by class"] = coco_metrics_table(scores)
    tables["COCO"] = _summary_rows(metrics)
    per_class = {
        f"{scores.kind}/{row.category.name}": row.ap
        for scores in metrics.scores
        for row in scores.per_class
    }
    return {"metrics": metrics.as_dict(), "per_class_ap": per_class}, tables


def _summary_rows(metrics: CocoMetrics) -> Rows:
    columns = [[percent(value) for value in scores.summary.values()] for scores in metrics.scores]
    names = metrics.scores[0].summary
    header = ("", *("boxes" if scores.kind == "bbox" else "masks" for scores in metrics.scores))
    return [header, *zip(names, *columns, strict=True)]


def _side_by_side(both: TilesAndScenes) -> tuple[dict[str, Any], dict[str, Rows]]:
    rows: Rows = [("", "tiles", "scenes", "difference")]
    for name, tiles, scenes in both.rows():
        measured = NO_OBJECTS not in (tiles, scenes)
        change = f"{100 * (scenes - tiles):+.1f}" if measured else "-"
        rows.append((name, percent(tiles), percent(scenes), change))
    numbers = {"tiles": both.tiles.as_dict(), "scenes": both.scenes.as_dict()}
    return numbers, {"tiles and stitched scenes": rows}


def _voc(
    options: EvaluateCommand, ground_truth: GroundTruth, detections: DetectionTable
) -> tuple[dict[str, Any], dict[str, Rows]]:
    metrics = evaluate_voc(
        ground_truth,
        detections,
        iou=0.5 if options.iou is None else options.iou,
        eleven_points=options.eleven_points,
    )
    rows: Rows = [("class", "objects", "detections", metrics.name)]
    for one in sorted(metrics.per_class, key=lambda one: -(one.ap or 0)):
        counts = f"{one.num_objects:,}", f"{one.num_detections:,}"
        rows.append((one.category.name, *counts, _points(one.ap)))
    rows.append(("mean", "", "", _points(metrics.mean_ap)))
    return _voc_numbers(metrics), {"PASCAL VOC": rows}


def _voc_numbers(metrics: VocMetrics) -> dict[str, Any]:
    return {
        "iou": metrics.iou,
        "eleven_points": metrics.eleven_points,
        "mean_ap": metrics.mean_ap,
        "per_class_ap": {one.category.name: one.ap for one in metrics.per_class},
    }


def _uavdt(
    options: EvaluateCommand, ground_truth: GroundTruth, detections: DetectionTable
) -> tuple[dict[str, Any], dict[str, Rows]]:
    metrics = evaluate_uavdt(
        ground_truth,
        detections,
        iou=0.7 if options.iou is None else options.iou,
        eleven_points=options.eleven_points,
    )
    rows: Rows = [("pictures", "number", "objects", metrics.overall.name)]
    for one in metrics.per_attribute:
        rows.append((one.attribute, f"{one.num_images:,}", f"{one.num_objects:,}", _points(one.ap)))
    objects = metrics.overall.per_class[0].num_objects
    images = len(ground_truth.image_ids)
    rows.append(("all", f"{images:,}", f"{objects:,}", _points(metrics.ap)))
    return _uavdt_numbers(metrics), {"UAVDT, vehicles": rows}


def _uavdt_numbers(metrics: UavdtMetrics) -> dict[str, Any]:
    return {
        "iou": metrics.overall.iou,
        "eleven_points": metrics.overall.eleven_points,
        "ap": metrics.ap,
        "per_attribute_ap": {one.attribute: one.ap for one in metrics.per_attribute},
        "detections_in_ignore_regions": metrics.num_ignored_detections,
        "objects_in_ignore_regions": metrics.num_ignored_objects,
    }


def _points(value: float | None) -> str:
    return percent(NO_OBJECTS if value is None else value)


def _as_table(title: str, rows: Rows) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table
