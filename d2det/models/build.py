"""Builds the network that a configuration describes."""

from __future__ import annotations

from d2det.config import BackboneConfig, ModelConfig, RegressionConfig
from d2det.models.box_regression import DeltaRegression
from d2det.models.classification import ClassificationBranch
from d2det.models.dense_regression import DenseRegression
from d2det.models.detector import D2Det
from d2det.models.fpn import STRIDES, FeaturePyramid
from d2det.models.masks import MaskBranch
from d2det.models.mobilenet import MobileNetV2
from d2det.models.resnet import ResNet
from d2det.models.rpn import RegionProposalNetwork


def build_detector(config: ModelConfig) -> D2Det:
    """Returns the network with the random initialisation of the official code."""
    channels = config.backbone.fpn_channels
    backbone = _build_backbone(config.backbone)
    return D2Det(
        backbone=backbone,
        fpn=FeaturePyramid(backbone.out_channels, channels),
        rpn=RegionProposalNetwork(channels, STRIDES, config.rpn),
        classification=ClassificationBranch(
            channels,
            config.num_classes,
            pooling=config.roi_pooling,
            config=config.classification,
        ),
        regression=_build_regression(channels, config.regression),
        mask=(
            MaskBranch(config.regression.channels, config.num_classes, config.mask)
            if config.mask is not None
            else None
        ),
        config=config,
    )


def _build_backbone(config: BackboneConfig) -> ResNet | MobileNetV2:
    if config.kind == "mobilenet_v2":
        return MobileNetV2(frozen_stages=config.frozen_stages)
    depth = {"resnet50": 50, "resnet101": 101}[config.kind]
    return ResNet(depth, deformable=config.deformable, frozen_stages=config.frozen_stages)


def _build_regression(channels: int, config: RegressionConfig) -> DenseRegression | DeltaRegression:
    if config.kind == "dense":
        return DenseRegression(channels, config)
    return DeltaRegression(channels, config)
