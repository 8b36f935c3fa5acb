"""Examples in the documentation run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.d2det.evaluation.made import made_annotations, made_results

ROOT = Path(__file__).resolve().parents[2]


def test_the_evaluation_example_runs(tmp_path, monkeypatch, capsys) -> None:
    annotations = made_annotations(0)
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    (tmp_path / "out.json").write_text(json.dumps(made_results(annotations, 0)))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), re.S)
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    ap75, ap = map(float, capsys.readouterr().out.split())
    assert 0 < ap75 < 1
    assert 0 < ap < 1
