"""How much memory this process used at most, and how much there is."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_STATUS, _CLEAR, _MEMINFO = (
    Path("/proc/self/status"),
    Path("/proc/self/clear_refs"),
    Path("/proc/meminfo"),
)
_RESET_PEAK = "5"  # proc(5), clear_refs


class PeakMemory:
    """Peak of a GPU's allocated memory, or on CPUs of the process's resident memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset(self) -> None:
        """Begins a new peak at what is in use now."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif os.access(_CLEAR, os.W_OK):
            _CLEAR.write_text(_RESET_PEAK)

    def peak_bytes(self) -> int:
        """Returns the largest use since `reset`."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _field(_STATUS, "VmHWM:")

    def free_bytes(self, processes: int) -> int:
        """Returns how much more this process may use, as one of `processes` on its machine."""
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            cached = torch.cuda.memory_reserved(self._device)
            return free + cached - torch.cuda.memory_allocated(self._device)
        return _field(_MEMINFO, "MemAvailable:") // processes


def _field(file: Path, name: str) -> int:
    """The bytes of the line `name` of a /proc file in kB."""
    for line in file.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} has no line {name}")
