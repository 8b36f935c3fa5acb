"""What doctor says on healthy and broken installations."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2det_ops import _library, doctor
from d2det_ops._library import LoadedLibrary

PACKAGE = Path(doctor.__file__).parent


def test_report_names_every_op_on_every_device_and_survives_json() -> None:
    report = doctor.report()
    assert {(op.op, op.device) for op in report.ops} == {
        (op, device) for op in _library.OPS for device in ("cpu", "cuda")
    }
    read = json.loads(report.to_json())
    assert read["torch"] == torch.__version__
    assert read["healthy"] == report.healthy
    assert [op["backend"] for op in read["ops"]] == [op.backend for op in report.ops]


def test_every_compiled_op_passes_its_self_test() -> None:
    for op in doctor.report().ops:
        assert (op.check is not None) == (op.backend == "compiled"), op
        assert op.check in (None, "ok"), op


def test_text_lists_libraries_ops_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = LoadedLibrary(Path("/nowhere/_C.so"), "was not built")
    monkeypatch.setattr(_library, "CPU", missing)
    text = doctor.format_report(doctor.report())
    assert "/nowhere/_C.so" in text
    assert "was not built" in text
    assert "TO DO: the ops are not compiled" in text
    assert all(op in text for op in _library.OPS)


@pytest.mark.parametrize(
    ("cuda", "driver", "said"),
    [
        (None, "580.10", "install a CUDA torch"),
        ("13.0", "550.54.15", "too old for CUDA 13.0: it needs 580"),
        ("13.0", "580.10", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_driver_without_a_usable_gpu_is_explained(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, driver: str, said: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    (line,) = doctor._cuda_advice(driver, has_gpu=False)
    assert said in line
    assert driver in line


def test_a_gpu_without_kernels_and_mixed_builds_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path("_C_cuda.so")
    monkeypatch.setattr(_library, "CUDA", LoadedLibrary(path, "undefined symbol: x"))
    assert "undefined symbol: x" in doctor._cuda_advice("580.1", has_gpu=True)[0]
    monkeypatch.setattr(_library, "CPU", LoadedLibrary(path, None, "aaaa"))
    monkeypatch.setattr(_library, "CUDA", LoadedLibrary(path, None, "bbbb"))
    (line,) = doctor._cuda_advice("580.1", has_gpu=True)
    assert "different builds" in line


def test_a_failing_kernel_is_caught_by_its_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise RuntimeError(f"{name}: no kernel image is available\nlong trace")

    monkeypatch.setattr(_library, "_KERNELS", {"cpu": frozenset({"nms"})})
    monkeypatch.setattr(_library, "op", broken)
    report = doctor.report()
    (line,) = [line for line in report.advice if "self-test" in line]
    assert "no kernel image" in line
    assert "long trace" not in line


@pytest.mark.parametrize("fault", ["absent", "corrupt", "switched off"])
def test_without_a_loadable_library_ops_run_as_twins_and_say_so_once(
    tmp_path: Path, fault: str
) -> None:
    shutil.copytree(PACKAGE, tmp_path / "d2det_ops", ignore=shutil.ignore_patterns("*.so"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    if fault == "corrupt":
        (tmp_path / "d2det_ops" / "_C.so").write_bytes(b"not a library")
    if fault == "switched off":
        environment["D2DET_OPS"] = "pytorch"
    code = (
        "import torch, d2det_ops as ops; from d2det_ops.doctor import report;"
        "assert ops.__file__.startswith(" + repr(str(tmp_path)) + ");"
        "box = torch.tensor([[0., 0., 9., 9.]]).repeat(2, 1);"
        "assert ops.nms(box, torch.tensor([.1, .9]), .5).tolist() == [1];"
        "assert not report().healthy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("PyTorch twins") == 1, done.stderr
