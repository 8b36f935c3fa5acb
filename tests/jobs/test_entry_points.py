"""What is typed after a job's file reaches the verb behind it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

JOBS = sorted((Path(__file__).resolve().parents[2] / "jobs").glob("*.py"))


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_a_job_reads_its_command_line(job: Path) -> None:
    command = [sys.executable, str(job), "--no-such-option", "1"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 2
    assert "--no-such-option" in finished.stderr
