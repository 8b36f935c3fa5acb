"""`d2det analyze`: where a result loses average precision, as plots and one page to read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.console import Console
from rich.table import Table

from d2det.config import Config
from d2det.evaluation.analysis_plots import analysis_figures, error_curves_figure
from d2det.evaluation.coco import percent
from d2det.evaluation.error_analysis import ErrorAnalysis, analyze_errors
from d2det.evaluation.error_curves import STAGES
from d2det.evaluation.error_types import ERROR_TYPES
from d2det.evaluation.examples import worst_errors
from d2det.evaluation.matching import AREA_NAMES
from d2det.evaluation.plot_style import png_bytes
from d2det.evaluation.report import html_report
from d2det.evaluation.results import read_detections, read_ground_truth
from d2det.inference.decode import DecodeError, read_image
from d2det.visualize import Picture

logger = logging.getLogger(__name__)


class AnalyzeCommand(Config):
    """Shows where a result loses average precision: error curves, kinds of mistakes, confusions.

    Example: d2det analyze --annotations val.json --results out.json --images photos --out analysis
    """

    annotations: Path
    """COCO-format annotations."""
    results: Path
    """Results to analyse: those of `d2det predict`, or a list of COCO results."""
    images: Path | None = None
    """Folder of the pictures; with it the page shows the worst mistakes."""
    out: Path = Path("analysis")
    """Folder for report.html, the plots as PNG, and analysis.json."""
    masks: bool = False
    """Analyse masks instead of boxes."""
    max_detections: int = Field(default=100, ge=1)
    """Best detections per picture and class that are considered; aerial scenes need more."""
    min_score: float | None = Field(default=None, ge=0, le=1)
    """Operating point of the confusion matrix; None: the score of the best F1."""
    examples: int = Field(default=8, ge=0)
    """Pictures shown of each kind of mistake."""
    class_plots: bool = True
    """Draw the error curves of every class too (some tenths of a second each)."""


def run(options: AnalyzeCommand) -> int:
    """Analyses, says where the report is, and returns the exit code; raises as `write_analysis`."""
    write_analysis(options)
    print(f"report: {options.out / 'report.html'}")
    return 0


def write_analysis(options: AnalyzeCommand) -> None:
    """Analyses, writes the folder, and prints the main numbers.

    Raises:
        ValueError: a file is missing or does not fit the others; the message says what and where.
    """
    ground_truth = read_ground_truth(options.annotations)
    detections = read_detections(options.results, ground_truth)
    if options.images is not None and not options.images.is_dir():
        raise ValueError(f"--images {options.images} is not a folder")
    analysis = analyze_errors(
        ground_truth,
        detections,
        kind="segm" if options.masks else "bbox",
        max_detections=options.max_detections,
        min_score=options.min_score,
    )
    figures = {name: png_bytes(figure) for name, figure in analysis_figures(analysis).items()}
    class_figures = _class_figures(analysis) if options.class_plots else {}
    examples = []
    if options.images is not None:
        examples = worst_errors(
            analysis.types, ground_truth, _reader(options.images), per_type=options.examples
        )
    page = html_report(
        analysis,
        title=f"Analysis of {options.results.name}",
        facts={
            "annotations": options.annotations.name,
            "pictures": f"{len(ground_truth.image_ids):,}",
            "objects": f"{len(ground_truth):,}",
            "detections": f"{len(detections):,}",
            "compared by": "masks" if options.masks else "boxes",
            "considered per picture and class": f"{options.max_detections:,}",
        },
        figures=figures,
        class_figures={name: png for name, (_, png) in class_figures.items()},
        examples=examples,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    files = {f"{name}.png": png for name, png in figures.items()}
    files |= {f"classes/{file}": png for file, png in class_figures.values()}
    for name, png in files.items():
        path = options.out / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png)
    (options.out / "report.html").write_text(page, encoding="utf-8")
    (options.out / "analysis.json").write_text(json.dumps(analysis_numbers(analysis), indent=1))
    _print(analysis)


def analysis_numbers(analysis: ErrorAnalysis) -> dict[str, Any]:
    """Returns the main numbers of an analysis as JSON holds them."""
    curves = {area: analysis.curves.mean(area) for area in AREA_NAMES}
    best = analysis.thresholds.best
    return {
        "kind": analysis.kind,
        "summary": analysis.scores.summary,
        "error_curves": {
            area: dict(zip(STAGES, mean.mean(1).tolist(), strict=True))
            for area, mean in curves.items()
            if mean is not None
        },
        "error_types": {
            name: {"count": count, "ap50_gain": gain}
            for name, count, gain in zip(
                ERROR_TYPES,
                analysis.types.counts.sum(1).tolist(),
                analysis.types.gains.tolist(),
                strict=True,
            )
        },
        "best_f1": None if best is None else vars(best),
        "calibration_error": analysis.thresholds.calibration.error,
        "confusion": {
            "classes": [category.name for category in analysis.confusion.categories],
            "iou": analysis.confusion.iou,
            "min_score": analysis.confusion.min_score,
            "matrix": analysis.confusion.matrix.tolist(),
        },
    }


def _class_figures(analysis: ErrorAnalysis) -> dict[str, tuple[str, bytes]]:
    """Class name to (file name, PNG), for classes that have objects."""
    figures = {}
    for label, category in enumerate(analysis.curves.categories):
        if analysis.curves.of_class(label) is not None:
            plain = "".join(c if c.isalnum() else "_" for c in category.name)
            png = png_bytes(error_curves_figure(analysis.curves, label))
            figures[category.name] = (f"{category.id}_{plain}.png", png)
    return figures


def _reader(folder: Path) -> Callable[[str], Picture]:
    def read(file_name: str) -> Picture:
        try:
            return read_image(folder / file_name)
        except DecodeError as error:
            raise ValueError(str(error)) from error

    return read


def _print(analysis: ErrorAnalysis) -> None:
    table = Table(title="Kinds of mistakes")
    for heading in ("kind", "AP50 points lost", "number"):
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    for name, gain, counts in zip(
        ERROR_TYPES, analysis.types.gains, analysis.types.counts, strict=True
    ):
        table.add_row(name, f"{100 * gain:.1f}", f"{counts.sum():,}")
    console = Console()
    numbers = "  ".join(f"{k} {percent(v)}" for k, v in analysis.scores.summary.items())
    console.print(numbers, highlight=False)
    console.print(table)
