"""The compiled libraries load under torch versions they were not built with."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2det_ops import _library

CHECK = Path(__file__).resolve().parents[2] / "ops" / "check_abi.py"


def run_check(library: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, CHECK, library], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(_library.CPU.error is not None, reason=str(_library.CPU.error))
def test_the_cpu_library_leans_on_the_stable_abi_alone() -> None:
    done = run_check(_library.CPU.path)
    assert done.returncode == 0, done.stderr


def test_the_check_finds_torch_symbols_where_there_are_some() -> None:
    done = run_check(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
    assert done.returncode == 1
    assert "depends on libc10.so" in done.stderr
    assert len(done.stderr.splitlines()) <= 20
