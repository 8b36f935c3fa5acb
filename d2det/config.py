"""Typed options of the detector: frozen, documented, unknown keys refused with the nearest name.

The same models feed YAML, the command line (`--train.lr 0.01`) and the dump in the run folder.
Values are those of the official R50 detection configuration; `presets` states the differences.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Side = Annotated[int, Field(ge=32)]
"""Pixels of a picture's side: the coarsest level of the pyramid has a cell for it."""


class Config(BaseModel):
    """Base of all option groups: immutable, and an unknown key names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _suggest_nearest_key(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for name in values.keys() - cls.model_fields.keys():
                near = difflib.get_close_matches(str(name), cls.model_fields, n=1, cutoff=0.0)
                raise ValueError(f"unknown option {name!r}; did you mean {near[0]!r}?")
        return values


class BackboneConfig(Config):
    """The trunk and the neck."""

    kind: Literal["resnet50", "resnet101", "mobilenet_v2"] = "resnet50"
    """Trunk; ResNets use the "pytorch" style (stride in the 3x3 convolution)."""
    deformable: bool = False
    """DCNv2 in the 3x3 convolutions of stages 2-4 (ResNet only)."""
    frozen_stages: int = Field(default=1, ge=0, le=4)
    """Stem and this many stages keep their weights in training."""
    fpn_channels: int = Field(default=256, ge=8)
    """Channels of every pyramid level P2-P6."""


class RpnConfig(Config):
    """Region proposals."""

    anchor_scale: Positive = 8.0
    """Anchor side in strides."""
    anchor_ratios: tuple[Positive, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    """Height over width."""
    positive_iou: Fraction = 0.7
    negative_iou: Fraction = 0.3
    """Anchors below it are background; those up to `positive_iou` do not train."""
    samples_per_image: Count = 256
    positive_fraction: Fraction = 0.5
    nms_iou: Fraction = 0.7
    train_top_n: Count = 2000
    """Candidates per level before NMS, proposals per level after it, and per picture in all."""
    test_pre_nms_top_n: Count = 1000
    """Candidates per level before NMS."""
    test_top_n: Count = 1000
    """Proposals per level after NMS and per picture in all; the second stage's cost follows it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou {self.negative_iou} may not be above positive_iou "
                f"{self.positive_iou}"
            )
        return self


class RoiSamplerConfig(Config):
    """Which proposals train the second stage."""

    iou: Fraction = 0.5
    samples_per_image: Count = 512
    positive_fraction: Fraction = 0.25


class RoiPoolingConfig(Config):
    """Discriminative RoI pooling of the classification branch (paper section 3.2)."""

    deformable: bool = True
    """Predict sampling offsets (else plain RoIAlign sampling): an ablation of Table 2."""
    adaptive_weighting: bool = True
    """Weighted average pooling (else plain average pooling): an ablation of Table 2."""
    samples_per_bin: Count = 2
    """Sampling points per bin side, "sample_per_part" of the official configurations."""
    offset_hidden: Count = 1024
    """Width of the two hidden layers of the offset predictor."""


class ClassificationConfig(Config):
    """The class head."""

    hidden: Count = 1024
    loss_weight: NonNegative = 2.0


class RegressionConfig(Config):
    """Localisation: dense local regression (paper section 3.1), or the usual box deltas."""

    kind: Literal["dense", "delta"] = "dense"
    overlap: bool = True
    """Binary overlap prediction selects the cells that vote (else all 49 vote): an ablation."""
    channels: Count = 576
    num_convs: Count = 8
    norm_groups: Count = 36
    hidden: Count = 1024
    """Width of the two layers that predict box deltas ("delta" only)."""
    initial_offset: NonNegative = 0.0
    """What all distances to the sides start at, in widths and heights of the proposal. Zero as
    released; from 0.5, half the proposal, short trainings get ahead ("dense" only)."""
    jitter: float = Field(default=0.15, ge=0, lt=1)
    """Positives are moved and scaled by at most this fraction before they train the regression."""
    max_samples_per_image: Count = 96
    """Positives per picture that train the regression (official: 192 per two pictures)."""
    cell_loss: Literal["per_cell", "released"] = "per_cell"
    """Which cells train: those in the overlap (the paper), or the released code's broadcast."""
    loss_weight: NonNegative = 2.0
    overlap_loss_weight: NonNegative = 1.0


class MaskConfig(Config):
    """Instance branch: two deconvolutions to 28x28 and mask scoring."""

    channels: Count = 256
    scoring_hidden: Count = 1024
    loss_weight: NonNegative = 1.0
    scoring_loss_weight: NonNegative = 0.5
    target_rounding: Literal["exact", "released"] = "exact"
    """Mask targets: read in the very box, set from one half on; or by the released code: a crop at
    whole pixels and 8-bit arithmetic, which move and thin masks by about half a pixel."""


class InferenceConfig(Config):
    """From class scores to detections."""

    score_threshold: Fraction = 0.03
    nms_iou: Fraction = 0.5
    """Class-wise NMS of the proposals, before regression."""
    max_regressed: Count = 125
    """Boxes that enter dense local regression."""
    soft_nms: bool = True
    """Class-wise linear soft-NMS of the regressed boxes."""
    soft_nms_iou: Fraction = 0.5
    soft_nms_min_score: Fraction = 1e-3
    max_detections: Count = 100
    masks: bool = True
    """Predict masks where the network has the branch."""


class ModelConfig(Config):
    """The whole network, without its input."""

    num_classes: Count = 80
    backbone: BackboneConfig = BackboneConfig()
    rpn: RpnConfig = RpnConfig()
    roi_sampler: RoiSamplerConfig = RoiSamplerConfig()
    roi_pooling: RoiPoolingConfig = RoiPoolingConfig()
    classification: ClassificationConfig = ClassificationConfig()
    regression: RegressionConfig = RegressionConfig()
    mask: MaskConfig | None = None
    inference: InferenceConfig = InferenceConfig()

    @model_validator(mode="after")
    def _masks_need_dense_regression(self) -> Self:
        if self.mask is not None and self.regression.kind != "dense":
            raise ValueError(
                "masks grow from the features of dense regression: "
                f"set regression.kind to 'dense', not {self.regression.kind!r}"
            )
        return self


class InputConfig(Config):
    """How a picture becomes network input."""

    short_side: Side = 800
    """Pixels of the shorter side after resizing."""
    long_side: Side = 1333
    """Pixels the longer side may not pass."""
    tta_factors: tuple[Positive, ...] = (0.75, 1.25)
    """Views that test-time augmentation adds to the plain one, as factors of both sides; all are
    mirrored too."""
    mean: tuple[Finite, Finite, Finite] = (123.675, 116.28, 103.53)
    """RGB, in 0..255."""
    std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)


class TrainConfig(Config):
    """Schedule, optimiser and augmentation."""

    epochs: Count = 24
    global_batch: Count = 16
    """Pictures per step over all workers; the learning rate belongs to it, not to the workers."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """AdamW steps each weight by its own scale. The gradients of the heads differ by a hundred, so
    short trainings get further with it; its learning rates are about 50 times smaller."""
    lr: Positive = 0.02
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: NonNegative = 1e-4
    schedule: Literal["step", "cosine"] = "step"
    lr_steps: tuple[Count, ...] = (20, 23)
    """Epochs after which the learning rate drops to a tenth."""
    warmup_steps: int = Field(default=1000, ge=0)
    warmup_start: Fraction = 1 / 80
    """Fraction of the learning rate that the first step uses."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Fraction = 0.0
    """Probability of a vertical flip (aerial pictures have no up)."""
    short_sides: tuple[Side, Side] | None = None
    """Range the shorter side is drawn from, for multi-scale training; None: the input's."""
    clip_grad_norm: Positive | None = None
    """Largest norm of the whole gradient; None: any."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of the averaged weights that are evaluated and saved; None: the last weights."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Of convolutions and matrix products. "auto" is the fastest that all devices of the run have:
    bf16, else fp16 with a scaled loss, and fp32 on CPUs."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    frozen: tuple[str, ...] = ()
    """Modules that keep their weights, by name or pattern (backbone, fpn, "regression.*")."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.short_sides is not None and self.short_sides[0] > self.short_sides[1]:
            raise ValueError(f"short_sides {self.short_sides} are the smallest and the largest")
        return self


class Preset(Config):
    """One row of the paper's tables (or a small relative): network, input and schedule."""

    name: str
    summary: str
    """One line for `d2det presets`."""
    paper: str = ""
    """The figure the paper or its code states for this row."""
    model: ModelConfig
    input: InputConfig = InputConfig()
    train: TrainConfig = TrainConfig()
    classes: tuple[str, ...] = ()
    """Names of the model's classes where the row fixes them; data sets bring their own."""
