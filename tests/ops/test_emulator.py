"""The emulator notices faults, alone and with sanitizers; and the kernels pass the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.ops import emulator
from tests.shared import ROOT

RUNS_FINE = (0, 9)
SOURCES = [emulator.HOST / "faulty.cu", emulator.HOST / "emulator.cpp"]


@cache
def faulty() -> object:
    if shutil.which(emulator.compiler()) is None:
        pytest.skip(f"needs the C++ compiler {emulator.compiler()}")
    torch.ops.load_library(emulator.build("faulty", SOURCES))
    return torch.ops.d2det_emulated.faulty


def run(fault: int) -> float:
    return float(faulty()(torch.arange(68.0), fault))


@pytest.mark.parametrize("order", ["0", "1", "5"])
def test_sound_kernels_give_their_sum_in_every_order(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2DET_EMULATOR_ORDER", order)
    assert run(0) == 63 * 32
    assert run(9) == 4


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (1, "wait at a barrier"),
        (4, "different intrinsics"),
        (6, "names only some lanes"),
        (10, "would refuse"),
        (11, "would refuse"),
    ],
)
def test_faults_of_threads_and_launches_are_errors(fault: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(fault)
    assert run(0) == 63 * 32  # and the next launch is sound again


def test_a_missing_barrier_shows_in_the_result() -> None:
    assert run(2) != 63 * 32  # NaN, of shared memory nobody has written


def under(sanitizer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with a sanitizer's library loaded before everything else."""
    found = [
        subprocess.run(
            [emulator.compiler(), f"-print-file-name=lib{name}.so"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for name in {"address": ("asan", "ubsan"), "thread": ("tsan",)}[sanitizer]
    ]
    if not all(Path(path).is_absolute() for path in found):
        pytest.skip(f"the compiler has no {sanitizer} sanitizer")
    environment = os.environ | {
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "TSAN_OPTIONS": "halt_on_error=1",
        "D2DET_EMULATOR_SANITIZER": sanitizer,
        "OMP_NUM_THREADS": "1",
    }
    # Without address randomisation: the race detector's memory layout allows little of it.
    fixed = [shutil.which("setarch") or "env"] + (["-R"] if shutil.which("setarch") else [])
    command = [*fixed, sys.executable, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )


CALL = """
import sys, torch
torch.ops.load_library(sys.argv[1])
torch.ops.d2det_emulated.faulty(torch.arange(68.0), int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizer", "fault", "message"),
    [
        ("address", 3, "use-after-poison"),
        ("address", 7, "misaligned address"),
        ("thread", 2, "data race"),
        ("thread", 5, "data race"),
        ("thread", 8, "data race"),
        *((sanitizer, sound, None) for sanitizer in ("address", "thread") for sound in RUNS_FINE),
    ],
)
def test_sanitizers_see_through_the_emulator(
    sanitizer: str, fault: int, message: str | None
) -> None:
    library = emulator.build("faulty", SOURCES, sanitizer)
    done = under(sanitizer, "-c", CALL, str(library), str(fault))
    if message is None:
        assert done.returncode == 0, done.stderr[-2000:]
    else:
        assert message in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_kernels_pass_the_sanitizer(sanitizer: str) -> None:
    tests = "tests/ops/test_cuda_kernels.py"
    chosen = "emulated and not every_order and not bits_again"
    if sanitizer == "thread":  # making its threads is slow: the smallest cases of each kernel
        chosen += " and not 1200 and not 600 and not 40 and not float16"
    done = under(
        sanitizer, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests, "-k", chosen
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
