"""What is loaded, from where, which op runs how, and what to do if something is wrong."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass

import torch

from d2det_ops import _library
from d2det_ops.digest import installed_version
from d2det_ops.selftest import selftest

MIN_TORCH = (2, 11)  # the stable-ABI target of setup.py
MIN_DRIVER = {12: 525, 13: 580}  # oldest driver of each CUDA major version


@dataclass(frozen=True)
class LibraryReport:
    """One compiled library: where it is looked for, its build digest, and why it is not loaded."""

    path: str
    digest: str | None
    error: str | None


@dataclass(frozen=True)
class OpReport:
    """How one op runs on one kind of device, and whether a small call agreed with its twin.

    backend: "compiled", "compiled, on the CPU", "PyTorch twin" or "no device".
    check: "ok", what went wrong, or None where nothing compiled was there to check.
    """

    op: str
    device: str
    backend: str
    check: str | None


@dataclass(frozen=True)
class DoctorReport:
    """State of the installation on this machine.

    cuda: version torch was built for, or None.  driver: installed driver, or None.
    gpus: names with compute capability.  advice: what to do, one line each; empty when all is well.
    """

    host: str
    version: str
    python: str
    torch: str
    cuda: str | None
    driver: str | None
    gpus: tuple[str, ...]
    libraries: tuple[LibraryReport, ...]
    ops: tuple[OpReport, ...]
    advice: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing needs doing."""
        return not self.advice

    def to_json(self) -> str:
        """Returns the report as indented JSON."""
        return json.dumps({**asdict(self), "healthy": self.healthy}, indent=2)


def report() -> DoctorReport:
    """Returns the state of this process's ops, having called each compiled one once."""
    driver, gpus = _driver_version(), _gpus()
    ops = tuple(_op_reports(has_gpu=bool(gpus)))
    return DoctorReport(
        host=platform.node(),
        version=installed_version(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        driver=driver,
        gpus=gpus,
        libraries=(_library_report(_library.CPU), _library_report(_library.CUDA)),
        ops=ops,
        advice=tuple(_cpu_advice() + _cuda_advice(driver, has_gpu=bool(gpus)) + _check_advice(ops)),
    )


def format_report(report: DoctorReport) -> str:
    """Returns the report as text for a terminal."""
    cuda = f"CUDA {report.cuda}" if report.cuda else "without CUDA"
    lines = [
        f"d2det {report.version} on {report.host}, Python {report.python}",
        f"torch {report.torch} ({cuda}), driver {report.driver or 'none'}, "
        f"GPUs: {', '.join(report.gpus) or 'none'}",
    ]
    for library in report.libraries:
        state = (
            f"build {library.digest}" if library.error is None else f"NOT LOADED: {library.error}"
        )
        lines.append(f"{library.path}\n    {state}")
    for name in dict.fromkeys(op.op for op in report.ops):
        states = [f"{op.device}: {_state(op)}" for op in report.ops if op.op == name]
        lines.append(f"  {name:<16} {'   '.join(states)}")
    lines += [f"TO DO: {line}" for line in report.advice] or ["all is well"]
    return "\n".join(lines)


def _state(op: OpReport) -> str:
    return op.backend if op.check is None else f"{op.backend}, self-test {op.check}"


def _library_report(library: _library.LoadedLibrary) -> LibraryReport:
    return LibraryReport(str(library.path), library.digest, library.error)


def _op_reports(*, has_gpu: bool) -> list[OpReport]:
    reports = []
    for device in ("cpu", "cuda"):
        usable = device == "cpu" or has_gpu
        checks = selftest(device) if usable else {}
        for op in _library.OPS:
            backend = _backend(op, device) if usable else "no device"
            reports.append(OpReport(op, device, backend, checks.get(op)))
    return reports


def _backend(op: str, device: str) -> str:
    if _library.has_kernel(op, device):
        return "compiled"
    elsewhere = op in _library.CPU_SERVES and _library.has_kernel(op, "cpu")
    return "compiled, on the CPU" if elsewhere else "PyTorch twin"


def _cpu_advice() -> list[str]:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < MIN_TORCH:
        return [f"torch {torch.__version__} is older than 2.11, which the ops need: upgrade it"]
    if _library.CPU.error is None:
        stale = _library.stale_advice()
        return [] if stale is None else [stale]
    if os.environ.get("D2DET_OPS") == "pytorch":
        return ["the compiled ops are switched off: unset D2DET_OPS to have their speed back"]
    if _library.CPU.path.exists():
        return [f"the ops library does not load ({_library.CPU.error}); build it again"]
    missing = "" if shutil.which("g++") else "install g++, then "
    return [
        f"the ops are not compiled, so they run several times slower: {missing}run "
        "`pip install --no-build-isolation -e .` in the repository, or install its wheel"
    ]


def _cuda_advice(driver: str | None, *, has_gpu: bool) -> list[str]:
    if not has_gpu:
        return _hidden_gpu_advice(driver)
    if _library.CUDA.error is None:
        cpu, cuda = _library.CPU.digest, _library.CUDA.digest
        same = f"_C_cuda.so ({cuda}) and _C.so ({cpu}) come from different builds; build both again"
        return [] if cpu == cuda else [same]
    return [
        f"a GPU is here but the CUDA kernels are not ({_library.CUDA.error}): build with nvcc "
        "on the PATH, or install a wheel made by `make wheel`"
    ]


def _hidden_gpu_advice(driver: str | None) -> list[str]:
    """Says why torch sees no GPU on a machine that has a driver."""
    if driver is None:
        return []
    if torch.version.cuda is None:
        return [
            f"driver {driver} is installed but torch is built without CUDA: install a CUDA torch"
        ]
    needed = MIN_DRIVER.get(int(torch.version.cuda.split(".")[0]))
    if needed is not None and int(driver.split(".")[0]) < needed:
        return [f"driver {driver} is too old for CUDA {torch.version.cuda}: it needs {needed}"]
    return [f"driver {driver} is installed but torch sees no GPU: look at CUDA_VISIBLE_DEVICES"]


def _check_advice(ops: tuple[OpReport, ...]) -> list[str]:
    return [
        f"{op.op} on {op.device} fails its self-test ({op.check}); D2DET_OPS=pytorch avoids the "
        "compiled ops meanwhile"
        for op in ops
        if op.check not in (None, "ok")
    ]


def _driver_version() -> str | None:
    """Returns the installed NVIDIA driver's version, or None."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.splitlines()[0].strip() if said.stdout.strip() else None


def _gpus() -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ()
    capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    return tuple(
        f"{torch.cuda.get_device_name(i)} (sm_{major}{minor})"
        for i, (major, minor) in enumerate(capabilities)
    )
