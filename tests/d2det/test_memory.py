"""Large tensors come in huge pages where the system leaves the choice to the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Prints the page faults of filling 96 MB.
_SCRIPT = """
import resource
import torch
from d2det.memory import prefer_huge_pages

torch.set_num_threads(1)
prefer_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
kept = torch.ones(24 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**variables: str) -> int:
    """Returns the page faults of filling 96 MB after the call, with these variables set before."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not _CHOICE.exists() or "[madvise]" not in _CHOICE.read_text(),
    reason="the system does not leave huge pages to the program",
)
def test_memory_is_faulted_in_by_large_pages_unless_switched_off() -> None:
    usual = faults(THP_MEM_ALLOC_ENABLE="0")
    assert usual > 20_000
    # The system may be out of huge pages for a part of it.
    assert faults() < usual / 2
