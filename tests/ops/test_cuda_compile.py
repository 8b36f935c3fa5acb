"""Every CUDA source compiles, for GPUs old and new."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

from tests.ops.emulator import ABI, CSRC


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("source", sorted(CSRC.glob("cuda/*.cu")), ids=lambda path: path.stem)
@pytest.mark.parametrize("arch", ["75", "90"])
def test_source_compiles(arch: str, source: Path, tmp_path: Path) -> None:
    command = ["nvcc", "-ptx", "-std=c++20", f"-arch=compute_{arch}"]
    command += [*ABI, *(f"-I{path}" for path in (CSRC, *include_paths("cpu")))]
    command += [str(source), "-o", str(tmp_path / "kernels.ptx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
