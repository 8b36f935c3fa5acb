"""D2Det (CVPR 2020): dense local regression and discriminative RoI pooling in modern PyTorch."""

__version__ = "0.1.0"
