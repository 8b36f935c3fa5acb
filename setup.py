"""Builds the compiled ops; everything else is in pyproject.toml.

With torch and a C++ compiler at hand `_C.so` (schemas and CPU kernels) is built against torch's
stable ABI, so the one file serves torch 2.11 and every later one, and any Python. `_C_cuda.so` is
built where a GPU is present, or for every architecture when FORCE_CUDA=1. Otherwise the install is
pure Python: the ops then run as their PyTorch twins, and a loud line here says so.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
GENERATED = ROOT / "build" / "generated"
ALL_ARCHES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000ULL", "-DTORCH_STABLE_ONLY"]
# No contraction to fused multiply-add: results are then the same bits on every processor.
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", *STABLE_ABI]
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fmad=false",
    "--threads=2",
    "-Xfatbin=-compress-all",
    "-Xcompiler=-fvisibility=hidden",
    *STABLE_ABI,
]
PYTHON_TAG = {"bdist_wheel": {"py_limited_api": "cp311"}}


def main() -> None:
    """Runs setuptools with whatever can be compiled here."""
    reason = missing_tool()
    if reason is not None:
        loud(f"{reason}: the ops are not compiled and will run as their slower PyTorch twins")
        setup()
        return
    from torch.utils.cpp_extension import BuildExtension

    write_digest()
    build = BuildExtension.with_options(no_python_abi_suffix=True)
    setup(ext_modules=extensions(), cmdclass={"build_ext": build}, options=PYTHON_TAG)


def missing_tool() -> str | None:
    """Returns what keeps the ops from being compiled here, or None."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed in this environment (see `make setup`)"
    found = version("torch").split("+")[0]
    if tuple(int(part) for part in found.split(".")[:2]) < (2, 11):
        return f"torch {found} is older than 2.11, whose stable ABI the ops need"
    return compiler_fault(os.environ.get("CXX", "g++"))


def compiler_fault(compiler: str) -> str | None:
    """Returns why `compiler` is of no use, or None; one that is there need not be able to compile.

    Only a fault of the compiler itself may leave the ops out: one in our sources fails the build.
    """
    command = shlex.split(compiler)
    if not command or shutil.which(command[0]) is None:
        return f"no C++ compiler ({compiler})"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <concepts>\nstatic_assert(std::integral<int>);\n")
        command += ["-std=c++20", "-fPIC", "-shared", str(source), "-o", f"{source}.so"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    said = (done.stderr.strip().splitlines() or [f"it ends with {done.returncode}"])[0]
    return f"the C++ compiler ({compiler}) cannot build an empty C++20 library: {said}"


def extensions() -> list[Extension]:
    """Returns the libraries to build: the CPU one, and the CUDA one where it is wanted."""
    found = [library("_C", ["ops/csrc/*.cpp", "ops/csrc/cpu/*.cpp"], "torch_cpu")]
    if wants_cuda():
        found.append(
            library(
                "_C_cuda",
                ["ops/csrc/build_info.cpp", "ops/csrc/cuda/*.cu"],
                "torch_cuda",
                "torch_cpu",
            )
        )
    return [extension for extension in found if extension.sources]


def library(name: str, patterns: list[str], *libraries: str) -> Extension:
    """Returns one stable-ABI library: torch's headers, and of torch only `libraries` linked."""
    from torch.utils.cpp_extension import include_paths, library_paths

    sources = sorted(str(p.relative_to(ROOT)) for glob in patterns for p in ROOT.glob(glob))
    device = "cuda" if name == "_C_cuda" else "cpu"
    flags = {"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS}
    return Extension(
        f"d2det_ops.{name}",
        sources,
        language="c++",
        include_dirs=[str(GENERATED), str(ROOT / "ops" / "csrc"), *include_paths(device)],
        library_dirs=library_paths(device),
        # as-needed: nothing but these may end up in the file, or it would not load elsewhere.
        extra_link_args=["-Wl,--as-needed", *(f"-l{name}" for name in libraries), "-s"],
        libraries=["cudart_static", "rt", "dl", "pthread"] if device == "cuda" else [],
        extra_compile_args=flags,
        depends=[str(p) for p in (ROOT / "ops" / "csrc").rglob("*.[hc]*")],
        py_limited_api=True,
    )


def wants_cuda() -> bool:
    """Returns whether `_C_cuda.so` is to be built, setting the architectures when forced."""
    import torch
    from torch.utils import cpp_extension

    forced = os.environ.get("FORCE_CUDA") == "1"
    if not (forced or torch.cuda.is_available()):
        return False
    cpp_extension.CUDA_HOME = toolkit()
    if cpp_extension.CUDA_HOME is None:
        loud("a GPU is present or FORCE_CUDA=1, but no nvcc was found: CUDA kernels are left out")
        return False
    if torch.version.cuda is None:
        loud(f"FORCE_CUDA=1, but torch {torch.__version__} has no CUDA: CUDA kernels are left out")
        return False
    if forced:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", known_arches(cpp_extension.CUDA_HOME))
    return True


def known_arches(cuda_home: str) -> str:
    """Returns those of ALL_ARCHES that this nvcc compiles for, the newest as PTX too."""
    command = [str(Path(cuda_home, "bin", "nvcc")), "--list-gpu-arch"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    known = [arch for arch in ALL_ARCHES if f"compute_{arch.replace('.', '')}" in said]
    return ";".join(known) + "+PTX"


def toolkit() -> str | None:
    """Returns the CUDA toolkit's folder, asking nvcc itself, which may be a script far from it."""
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None or shutil.which(nvcc) is None:
        return None
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    found = re.search(r"^#\$ _HERE_=(.+)$", said, re.MULTILINE)
    return str(Path(found[1]).parent) if found else home


def write_digest() -> None:
    """Writes the digest of the sources into a header, only when it changed (spares rebuilds)."""
    spec = importlib.util.spec_from_file_location("_sources", ROOT / "ops/d2det_ops/_sources.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    header = GENERATED / "build_digest.h"
    text = f'#define D2DET_BUILD_DIGEST "{module.csrc_digest(ROOT / "ops" / "csrc")}"\n'
    if not header.exists() or header.read_text() != text:
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


def loud(message: str) -> None:
    """Prints a line that stands out in an installer's output."""
    print(f"\n*** d2det: {message} ***\n", file=sys.stderr, flush=True)


main()
