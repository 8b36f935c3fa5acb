"""Builds the CUDA kernels for the processor; cuda_host/ stands in for CUDA's header and a device.

Kernels, launches and the code around them are compiled as they are; only what `cuda_runtime.h` and
libtorch_cuda would give comes from elsewhere. The operators become those of `d2det_emulated`, with
CPU tensors as device memory.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

from tests.shared import ROOT

HOST = ROOT / "tests" / "ops" / "cuda_host"
CSRC = ROOT / "ops" / "csrc"
SANITIZERS = {"address": "-fsanitize=address,undefined", "thread": "-fsanitize=thread"}
ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", "-DTORCH_STABLE_ONLY"]
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"),
    *("-Wall", "-Werror", "-Wno-unknown-pragmas", "-fno-sanitize-recover=all"),
    *ABI,
]


def load() -> Any:
    """Returns the namespace of the emulated operators, built and loaded, or skips the test.

    $D2DET_EMULATOR_SANITIZER (address, thread) instruments the kernels; the sanitizer's library
    must then be preloaded.
    """
    if shutil.which(compiler()) is None:
        pytest.skip(f"needs the C++ compiler {compiler()}")
    torch.ops.load_library(library(os.environ.get("D2DET_EMULATOR_SANITIZER")))
    return torch.ops.d2det_emulated


def compiler() -> str:
    """Returns the C++ compiler's command."""
    return os.environ.get("CXX", "g++")


def library(sanitizer: str | None = None) -> Path:
    """Returns the built library, compiling what has not been built from the same sources before."""
    sources = sorted(CSRC.glob("*.cpp")) + sorted((CSRC / "cuda").glob("*.cu"))
    sources = [source for source in sources if source.stem != "build_info"]
    return build("kernels", [*sources, HOST / "emulator.cpp"], sanitizer)


def build(name: str, sources: list[Path], sanitizer: str | None = None) -> Path:
    """Returns a library of `sources`, any of them kernels."""
    folder = ROOT / "build" / "emulator" / _digest(sources, sanitizer)
    target = folder / f"{name}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    flags = [SANITIZERS[sanitizer]] if sanitizer else []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = [Path(scratch) / f"{i}-{source.stem}.o" for i, source in enumerate(sources)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(
                    lambda pair: _compile(*pair, sanitizer), zip(sources, objects, strict=True)
                )
            )
        linked = Path(scratch) / target.name
        where = [f"-L{path}" for path in library_paths("cpu")]
        _run([compiler(), "-shared", *flags, *map(str, objects), *where, "-Wl,--as-needed",
              "-ltorch_cpu", "-o", str(linked)])  # fmt: skip
        linked.replace(target)
    return target


def _compile(source: Path, target: Path, sanitizer: str | None) -> None:
    flags = [f"-I{path}" for path in (HOST, CSRC, *include_paths("cpu"))]
    if source.name == "emulator.cpp":
        flags += [f"-DSANITIZE_{sanitizer.upper()}"] if sanitizer else []
    else:
        flags += ["-include", str(HOST / "prefix.h"), "-x", "c++"]
        flags += [SANITIZERS[sanitizer]] if sanitizer else []
    _run([compiler(), *FLAGS, *flags, "-c", str(source), "-o", str(target)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def _digest(sources: list[Path], sanitizer: str | None) -> str:
    state = hashlib.sha256(f"{torch.__version__} {sanitizer} {FLAGS}".encode())
    headers = [*HOST.glob("*.h"), *CSRC.glob("*.h"), *(CSRC / "cuda").glob("*.cuh")]
    for file in (*sources, *sorted(headers)):
        state.update(file.name.encode() + file.read_bytes())
    return state.hexdigest()[:16]
