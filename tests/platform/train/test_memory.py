import torch

from d2det_platform.train.memory import PeakMemory
from tests.platform.train.group import in_processes


def peaks(rank: int) -> list[int]:
    """The peaks after a start, after using 100 MB and after giving them back."""
    memory, found = PeakMemory(torch.device("cpu")), []
    memory.reset()
    found.append(memory.peak_bytes())
    torch.ones(100_000_000, dtype=torch.uint8)
    found.append(memory.peak_bytes())
    memory.reset()
    found.append(memory.peak_bytes())
    return found


def test_the_peak_sees_what_was_used_and_given_back() -> None:
    """In a process of its own: in this one, what earlier tests left may be freed meanwhile."""
    ((start, used, given_back),) = in_processes(1, peaks)
    assert used - start > 80_000_000
    assert given_back - start < 50_000_000


def test_free_memory_is_shared_by_the_processes_of_a_machine() -> None:
    memory = PeakMemory(torch.device("cpu"))
    assert memory.free_bytes(4) < memory.free_bytes(1) / 2
