"""D2Det (CVPR 2020): dense local regression and discriminative RoI pooling in modern PyTorch."""

import os
from typing import Any

# OpenCV reads these once, when it is imported. They stand behind `d2det.inference.decode`, which
# refuses by the header: a 5 kB file may claim pixels that cost gigabytes.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "500000000")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_WIDTH", "100000")
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_HEIGHT", "100000")
# Damaged pictures are reported by their reason, not by OpenCV's lines on stderr.
os.environ.setdefault("OPENCV_LOG_LEVEL", "OFF")
# Maps of 70 MB, as in the first stage of a trunk, are mapped afresh for every layer. In pages of
# 2 MB instead of 4 KB, where the system leaves the choice to the program, a 1x1 convolution from 64
# to 256 channels takes 33 ms instead of 57; trunk and pyramid at 800 x 1333 take 3 % less. PyTorch
# reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Returns `load_detector`, imported on first use: `import d2det` alone does not need torch."""
    if name == "load_detector":
        from d2det.checkpoints.weights import load_detector

        return load_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
