"""Which build of the ops a process runs, and the check that a worker runs the driver's."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch

from d2det_ops import _library
from d2det_ops._sources import python_digest


@dataclass(frozen=True)
class BuildInfo:
    """The ops of one process, small enough to send to every worker.

    host: name of the machine.  version: of the installed package, "source tree" where it is not
    installed.  torch: its version.  python: digest of the ops' Python sources.
    library: digest of the compiled sources, or "none" where ops run as their PyTorch twins.
    """

    host: str
    version: str
    torch: str
    python: str
    library: str

    def __str__(self) -> str:
        return (
            f"{self.host} (d2det {self.version}, ops library {self.library}, "
            f"ops sources {self.python}, torch {self.torch})"
        )


def build_info() -> BuildInfo:
    """Returns the build of this process."""
    return BuildInfo(
        host=platform.node(),
        version=installed_version(),
        torch=str(torch.__version__),
        python=python_digest(_library.PACKAGE),
        library=_library.CPU.digest or "none",
    )


def installed_version() -> str:
    """Returns the version of the installed package, or "source tree"."""
    try:
        return importlib.metadata.version("d2det")
    except importlib.metadata.PackageNotFoundError:
        return "source tree"


def check_same_build(driver: BuildInfo) -> None:
    """Returns only if this process runs the same ops as `driver`; torch itself may differ.

    Raises:
        RuntimeError: with one line that names both hosts, their versions and what to do.
    """
    worker = build_info()
    if (worker.library, worker.python) == (driver.library, driver.python):
        return
    raise RuntimeError(
        f"worker {worker} runs other ops than driver {driver}: install the driver's wheel there "
        "(`make wheel`), by image or runtime_env"
    )
