"""What a finished run leaves to look at: curves, error analysis, predictions beside the truth."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from d2det.data import files
from d2det.data.coco import CocoDataset
from d2det.evaluation import analyze, plots
from d2det.inference.predictor import Predictor
from d2det_platform.store import RunStore, local_copy
from d2det_platform.train.evaluation import PREDICTIONS
from d2det_platform.train.metrics import FILE as METRICS
from d2det_platform.train.options import TrainOptions

PAGE_PICTURES = 8
"""Validation pictures on the page of predictions, spread over the data set."""


def write_report(options: TrainOptions) -> list[str]:
    """Writes plots and pages into the run folder and returns where they are."""
    store = RunStore(options.run_url)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / METRICS).write_bytes(store.read(METRICS))
        plots.training_curves(root / METRICS, root / "out" / "training.png")
        if options.data.val_annotations is not None:
            _analyze(options, store, root)
            _predictions(options, store, root)
        written = sorted(path for path in (root / "out").rglob("*") if path.is_file())
        names = [f"report/{path.relative_to(root / 'out').as_posix()}" for path in written]
        for name, path in zip(names, written, strict=True):
            store.write(name, path.read_bytes())
    return [store.path(name) for name in names]


def _analyze(options: TrainOptions, store: RunStore, root: Path) -> None:
    """The error analysis of the best weights, as `d2det analyze` makes it."""
    (root / PREDICTIONS).write_bytes(store.read(PREDICTIONS))
    assert options.data.val_annotations is not None
    images = options.data.val_images or options.data.train_images
    with local_copy(options.data.val_annotations) as annotations:
        analyze.write_analysis(
            analyze.AnalyzeCommand(
                annotations=Path(annotations),
                results=root / PREDICTIONS,
                # Example pictures are cut out of local folders only.
                images=None if files.is_remote(images) else Path(images),
                masks=options.model.mask is not None,
                out=root / "out" / "analysis",
            )
        )


def _predictions(options: TrainOptions, store: RunStore, root: Path) -> None:
    """A page of validation pictures: ground truth left, what the best weights find right."""
    data = options.data
    assert data.val_annotations is not None
    (root / "best.safetensors").write_bytes(store.read("best.safetensors"))
    predictor = Predictor.load(root / "best.safetensors")
    dataset = CocoDataset(data.val_images or data.train_images, data.val_annotations)
    count = min(PAGE_PICTURES, len(dataset))
    samples = [dataset[int(i)] for i in np.linspace(0, len(dataset) - 1, count)]
    found = predictor.predict([sample.image for sample in samples])
    names = [category.name for category in predictor.categories]
    plots.prediction_page(
        list(zip(samples, found, strict=True)), names, root / "out" / "predictions.png"
    )
