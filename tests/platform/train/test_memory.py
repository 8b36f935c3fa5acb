import torch

from d2det_platform.train.memory import PeakMemory


def test_the_peak_sees_what_was_used_and_given_back() -> None:
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    before = memory.peak_bytes()
    torch.ones(100_000_000, dtype=torch.uint8)
    assert memory.peak_bytes() - before > 80_000_000
    memory.reset()
    assert memory.peak_bytes() - before < 50_000_000


def test_free_memory_is_shared_by_the_processes_of_a_machine() -> None:
    memory = PeakMemory(torch.device("cpu"))
    assert memory.free_bytes(4) < memory.free_bytes(1) / 2
