"""docs/training.md names only options and files that exist."""

import re

from d2det_platform.train.options import TrainOptions
from d2det_platform.usage import option_flags
from tests.shared import ROOT

TEXT = (ROOT / "docs" / "training.md").read_text()
OTHERS = {"--config", "--help", "--head", "--working-dir", "--runtime-env"}


def test_every_option_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", TEXT))
    assert len(named) > 15
    assert named - OTHERS <= set(option_flags(TrainOptions))


def test_every_file_exists() -> None:
    named = set(re.findall(r"(?:jobs|deploy|benchmarks|docs)/[\w.]+\w", TEXT))
    assert "deploy/runtime_env.yaml" in named
    assert [name for name in named if not (ROOT / name).exists()] == []
