"""Scores weights on a cluster: the annotated pictures are labelled, then the labels are scored.

What is found is what `d2det evaluate --weights` finds in one process, spread over all workers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from d2det.evaluation import evaluate as scoring
from d2det.inference.options import PredictOptions
from d2det_platform import usage
from d2det_platform.label.command import OK, label
from d2det_platform.label.export_coco import RESULTS
from d2det_platform.label.options import LabelOptions, OutputOptions, WorkOptions
from d2det_platform.places import Place
from d2det_platform.store import RunStore


class EvaluateOnClusterOptions(PredictOptions):
    """Labels the pictures of COCO annotations with all workers and scores what they find.

    Example: python jobs/evaluate.py --annotations val.json --images val/ --weights w.safetensors
    """

    annotations: Place
    """COCO-format annotations."""
    images: Place
    """Folder or URL of the pictures."""
    weights: Place
    """Weights file (.safetensors)."""
    out: Place
    """Folder or URL of the labels; the same again goes on from there, or only scores."""
    score_masks: bool = False
    """Score masks too."""
    count_detections: int = Field(default=100, ge=1)
    """Best detections per picture and class that count; aerial pictures need 500 or so."""
    work: WorkOptions = WorkOptions()
    """How the work is spread."""
    json_path: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    """File for the numbers."""


def run(options: EvaluateOnClusterOptions) -> int:
    """Labels, scores, prints the tables, and returns the exit code."""
    predict = {name: getattr(options, name) for name in PredictOptions.model_fields}
    code = label(
        LabelOptions(
            **predict,
            inputs=(options.annotations,),
            image_root=options.images,
            weights=options.weights,
            out=options.out,
            work=options.work,
            output=OutputOptions(samples=0),
            max_bad_fraction=0.0,  # a picture that is missing would only show as a low score
        )
    )
    if code != OK:
        return code
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        results.write_bytes(RunStore(options.out).read(RESULTS))
        return scoring.run(
            scoring.EvaluateCommand(
                annotations=Path(options.annotations),
                results=results,
                masks=options.score_masks,
                max_detections=options.count_detections,
                json_path=options.json_path,
            )
        )


def main(args: Sequence[str] | None = None) -> int:
    """Carries out a command line and returns the exit code."""
    given = list(sys.argv[1:] if args is None else args)
    try:
        return run(usage.parse(EvaluateOnClusterOptions, given, prog="evaluate.py"))
    except ValueError as error:
        print(f"evaluate.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
