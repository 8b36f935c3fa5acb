"""Options of bulk labelling; those of `d2det predict` hold here too."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

import tyro
from pydantic import Field, model_validator

from d2det.config import Config, Finite
from d2det.inference.limits import DecodeLimits
from d2det.inference.options import PredictOptions
from d2det_platform.label import uris
from d2det_platform.places import Place

PLAN_VERSION = 1
"""Grows when the same options would give other units or other rows."""

LIMITS = DecodeLimits(max_pixels=100_000_000)
"""Half of what one process alone takes: a picture at the limit costs a worker 300 MB of pixels and
its decoder as much again, which keeps both below 1.5 GB."""


class RasterOptions(Config):
    """How GeoTIFFs become RGB; without any of these a TIFF is decoded like all pictures."""

    bands: tuple[int, ...] = ()
    """Bands for red, green and blue, counted from 1 (one makes grey); none: the first three."""
    stretch: Literal["none", "percentile", "range"] = "none"
    """none: 8 bit as it is, 16 bit scaled to 8. percentile: 2 to 98 % of an overview of each
    band become 0 to 255. range: `low` to `high` do."""
    low: Finite = 0.0
    """Value that becomes 0 (range)."""
    high: Finite = 65535.0
    """Value that becomes 255 (range)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.bands) not in (0, 1, 3):
            raise ValueError(f"bands must be one or three numbers, got {len(self.bands)}")
        if any(band < 1 for band in self.bands):
            raise ValueError(f"bands are counted from 1, got {self.bands}")
        if self.stretch == "range" and self.high <= self.low:
            raise ValueError(f"high {self.high} must be above low {self.low}")
        return self

    @property
    def is_default(self) -> bool:
        """Whether nothing was asked for."""
        return self == RasterOptions()


class WorkOptions(Config):
    """How the work is cut and spread; none of these changes what is found."""

    workers: tuple[int, int] = (1, 0)
    """Fewest and most workers, one model each; 0: one a GPU, or as many as the CPUs hold."""
    cpus_per_worker: int = Field(default=0, ge=0)
    """CPUs a worker reserves; 0: 2 beside a GPU, else up to 2 of the machine's."""
    threads: int = Field(default=0, ge=0)
    """Threads of the network on CPUs; 0: the worker's CPUs. Other numbers may round the last bit
    of a score differently."""
    decoders: int = Field(default=2, ge=1)
    """Processes a worker decodes with. One that a picture kills costs that picture."""
    decode_timeout_s: float = Field(default=10.0, gt=0)
    """A picture that takes longer to decode is given up."""
    batch_pixels_on: tuple[str, ...] = ()
    """Batches on kinds of accelerators, as in "T4=2000000 A100=16000000" (names as Ray labels
    nodes); others use --batch-pixels."""
    lock_timeout_s: float = Field(default=60.0, gt=0)
    """Another labelling of the same folder that gave no sign for this long is taken for dead."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.workers
        if low < 1 or (high and high < low):
            raise ValueError(f"workers {low} {high}: at least 1, and the most not below the fewest")
        self.batches()
        return self

    def batches(self) -> dict[str, int]:
        """Returns the pixels of a batch for each kind of accelerator named."""
        named = {}
        for text in self.batch_pixels_on:
            kind, _, pixels = text.partition("=")
            if not pixels.isdigit() or int(pixels) < 1:
                raise ValueError(f"--work.batch-pixels-on {text!r}: write it as KIND=PIXELS")
            named[kind] = int(pixels)
        return named


class OutputOptions(Config):
    """What is written beside the Parquet labels; `d2det merge` writes it anew."""

    coco: bool = True
    """coco/results.json and coco/dataset.json."""
    geo: tuple[Literal["geojson", "geoparquet"], ...] = ()
    """Objects of georeferenced scenes as geo/labels.geojson, geo/labels.parquet."""
    geo_crs: str = "EPSG:4326"
    """Coordinates of geo/*; "scene" keeps those of the scenes, which must then share one."""
    label_studio: bool = False
    """tasks/label_studio.json, with predictions, to import."""
    cvat: bool = False
    """tasks/cvat.xml, "CVAT for images 1.1", to import."""
    min_score: float = Field(default=0.0, ge=0, le=1)
    """Detections below are left out of geo and tasks; labels and coco hold all."""
    samples: int = Field(default=12, ge=0)
    """Pictures shown in run_card.html."""


class SourceOptions(Config):
    """Which pictures."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Folders, files, quoted patterns ("lake/**/*.png"), list files (.txt), COCO annotations
    (.json, with --image-root), tables (.parquet); local or s3:// gs:// az:// http(s)://."""
    image_root: Place = ""
    """Folder of the pictures that COCO annotations or a list name relatively."""
    image_column: str = "image"
    """Column of a .parquet input: text is a path or URL, bytes are the picture."""
    follow_links: bool = False
    """Read links that leave the folder they were found in, and folders behind links."""


class LabelOptions(PredictOptions, SourceOptions):
    """Labels every picture once: Parquet, COCO, errors and a run card. Run it again to go on.

    Example: d2det label lake/ --weights w.safetensors --out labels/ --tile 800
    """

    out: Place
    """Folder or URL of the results."""
    weights: Place = ""
    """Weights file (.safetensors) from training or from `d2det convert`."""
    model: str = ""
    """Instead of weights: module:callable, a list of (H, W, 3) uint8 RGB arrays to Detections."""
    classes: tuple[str, ...] = ()
    """Names of the classes of --model."""
    unit_pixels: int = Field(default=32_000_000, ge=1)
    """Pixels through the network in a unit: the work that a killed worker does again."""
    decoded_mb: int = Field(default=128, ge=1)
    """Decoded pixels a unit may hold. A worker holds two units, or one larger picture: this bounds
    its memory, whatever the pictures."""
    shard_pictures: int = Field(default=8192, ge=1)
    """Pictures (and windows of scenes) in a Parquet file; 8192 of 100 masks are about 128 MB."""
    max_bad_fraction: float = Field(default=0.5, ge=0, le=1)
    """End with exit code 3 when more of the pictures than this could not be labelled."""
    limits: DecodeLimits = LIMITS
    """Pictures beyond these are refused before they are decoded, or read by window with --tile."""
    raster: RasterOptions = RasterOptions()
    """Bands and stretch of GeoTIFFs."""
    work: WorkOptions = WorkOptions()
    """How the work is spread."""
    output: OutputOptions = OutputOptions()
    """What is written beside the labels."""
    dry_run: bool = False
    """Only plan: show what would be done and how long it takes."""

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if not self.inputs:
            raise ValueError("give at least one folder, file, pattern, list or URL")
        if bool(self.weights) == bool(self.model):
            raise ValueError("give either --weights or --model")
        if self.model and ":" not in self.model:
            raise ValueError(f"--model {self.model!r}: write it as module:callable")
        return self

    def identity(self, model_digest: str) -> dict[str, Any]:
        """Returns all that decides which rows come out: two runs of one identity are one run."""
        # The digest of the weights counts, not where they lie.
        unimportant = {"out", "work", "output", "dry_run", "device", "max_bad_fraction", "weights"}
        values = self.model_dump(mode="json", exclude=unimportant)
        values["inputs"] = [uris.of_location(each) for each in self.inputs]
        if self.image_root:
            values["image_root"] = uris.of_location(self.image_root)
        return {"plan": PLAN_VERSION, "model_digest": model_digest, **values}


def run_key(identity: dict[str, Any]) -> str:
    """Returns the name of a run: ten hexadecimal digits of the sha256 of its identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class PlanOptions(LabelOptions):
    """Reads headers only and tells what labelling will take; `d2det label` then follows this plan.

    Example: d2det plan lake/ --weights w.safetensors --out labels/ --tile 800
    """

    dry_run: bool = True
    """Always so here."""


class _Continued(Config):
    out: tyro.conf.Positional[Place]
    """Folder or URL of the results."""


class MergeOptions(_Continued):
    """Commits what is complete and writes the outputs anew, without predicting anything.

    Example: d2det merge labels/ --output.geo geojson
    """

    output: OutputOptions = OutputOptions()
    """What is written beside the labels."""


class RetryOptions(_Continued):
    """Labels the pictures in the error table again; what succeeds takes the error's place.

    Example: d2det retry-failed labels/
    """

    reasons: tuple[str, ...] = ()
    """Only errors of these reasons; none: all."""
    weights: Annotated[str, tyro.conf.arg(name="weights")] = ""
    """Where the run's weights lie now, if they were moved."""
