"""Loads the compiled libraries, keeps what went wrong, and decides which backend an op runs on.

`_C.so` holds every schema and the CPU kernels and loads under any torch >= 2.11. `_C_cuda.so` is
loaded after it where torch itself is a CUDA build. An op whose kernel is missing for a device runs
as its PyTorch twin there. `D2DET_OPS=pytorch` in the environment loads nothing, on purpose.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2det_ops._sources import csrc_digest

PACKAGE = Path(__file__).resolve().parent
OPS = ("deform_roi_pool", "adaptive_pool", "assign_targets", "masks_to_rle", "nms", "soft_nms")
CPU_SERVES = frozenset({"masks_to_rle", "nms", "soft_nms"})
"""Post-processing: little data, so without a CUDA kernel a trip to the CPU is the next best."""
REBUILD = "python setup.py build_ext --inplace"

logger = logging.getLogger("d2det_ops")


@dataclass(frozen=True)
class LoadedLibrary:
    """What became of one compiled library.

    path: where it was looked for.  error: why it is not loaded, or None when it is.
    digest: of the sources it was built from, or None when it is not loaded or does not say.
    """

    path: Path
    error: str | None
    digest: str | None = None


def _load(name: str) -> LoadedLibrary:
    path = PACKAGE / name
    if os.environ.get("D2DET_OPS") == "pytorch":
        return LoadedLibrary(path, "switched off by D2DET_OPS=pytorch")
    if not path.exists():
        return LoadedLibrary(path, f"{path} does not exist: it was not built")
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return LoadedLibrary(path, f"{type(error).__name__}: {error}")
    return LoadedLibrary(path, None, _digest_of(path))


def _digest_of(path: Path) -> str | None:
    try:
        read = ctypes.CDLL(str(path)).d2det_build_digest
    except AttributeError:
        return None
    read.restype = ctypes.c_char_p
    return str(read().decode())


def _load_cuda() -> LoadedLibrary:
    path = PACKAGE / "_C_cuda.so"
    if torch.version.cuda is None:
        return LoadedLibrary(path, f"torch {torch.__version__} is a build without CUDA")
    if CPU.error is not None:
        return LoadedLibrary(path, "the CPU library, which holds the schemas, is not loaded")
    return _load("_C_cuda.so")


def _has_kernel(op: str, key: str) -> bool:
    name = f"d2det_ops::{op}"
    return _is_defined(op) and bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def _is_defined(op: str) -> bool:
    """Whether the loaded library knows `op`; one built before the op existed stays usable."""
    return CPU.error is None and bool(torch._C._dispatch_has_kernel(f"d2det_ops::{op}"))


CPU = _load("_C.so")
CUDA = _load_cuda()
_KERNELS = {
    device: frozenset(op for op in OPS if _has_kernel(op, device.upper()))
    for device in ("cpu", "cuda")
}
_twins_forced = False


def has_kernel(op: str, device: str) -> bool:
    """Returns whether `op` runs compiled on a device type ("cpu", "cuda"), rather than as twin."""
    return not _twins_forced and op in _KERNELS.get(device, ())


def compiled(op: str, tensor: Tensor) -> bool:
    """Returns whether `op` runs compiled for `tensor`."""
    return has_kernel(op, tensor.device.type)


def placement(op: str, tensor: Tensor) -> torch.device | None:
    """Returns where `op` runs compiled for `tensor`: there, for some ops else the CPU, or None.

    The twins of the CPU_SERVES ops would wait for a GPU at every step.
    """
    if has_kernel(op, tensor.device.type):
        return tensor.device
    return torch.device("cpu") if op in CPU_SERVES and has_kernel(op, "cpu") else None


@contextlib.contextmanager
def twins_only() -> Iterator[None]:
    """Runs every op as its PyTorch twin inside the block (tests, benchmarks); not thread-safe."""
    global _twins_forced
    before, _twins_forced = _twins_forced, True
    try:
        yield
    finally:
        _twins_forced = before


def op(name: str) -> Any:
    """Returns the compiled operator `name`; call only where `has_kernel` is true."""
    return getattr(torch.ops.d2det_ops, name).default


def register_fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Returns a decorator that makes a function the shape rule of `name`, if it is compiled."""
    if not _is_defined(name):
        return lambda function: function
    register: Callable[..., Any] = torch.library.register_fake(f"d2det_ops::{name}")
    return register


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Gives the compiled op `name` its gradient, if it is compiled."""
    if _is_defined(name):
        torch.library.register_autograd(f"d2det_ops::{name}", backward, setup_context=setup_context)


def stale_advice() -> str | None:
    """Returns what to do when the loaded library was built from other sources, else None."""
    csrc = PACKAGE.parent / "csrc"
    if CPU.error is not None or not csrc.exists() or CPU.digest == csrc_digest(csrc):
        return None
    return f"{CPU.path} was built from other sources than {csrc}; run `{REBUILD}`"


def summary() -> str:
    """Returns one line: what was loaded, and which ops run where."""
    if CPU.error is not None:
        return f"all ops run as their slower PyTorch twins: {CPU.error}"
    cuda = f"not on CUDA ({CUDA.error})" if CUDA.error else f"CUDA {sorted(_KERNELS['cuda'])}"
    twins = sorted(set(OPS) - _KERNELS["cpu"])
    rest = f"; as PyTorch twins {twins}" if twins else ""
    return f"build {CPU.digest}: compiled on CPU {sorted(_KERNELS['cpu'])}, {cuda}{rest}"


def _log_once() -> None:
    level = logging.INFO if CPU.error is None else logging.WARNING
    logger.log(level, "d2det_ops %s", summary())
    if (advice := stale_advice()) is not None:
        logger.warning("d2det_ops %s", advice)


_log_once()
