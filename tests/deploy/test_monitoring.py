"""Rules and dashboards parse, and ask for metrics that are really there."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import ray
import yaml

from d2det_platform.serve.metrics import METRICS
from tests.deploy.manifests import ROOT

DASHBOARDS = sorted((ROOT / "deploy" / "dashboards").glob("*.json"))
RULES = yaml.safe_load((ROOT / "deploy" / "monitoring" / "rules.yaml").read_text())
RECORDED = {rule["record"] for g in RULES["groups"] for rule in g["rules"] if "record" in rule}
_SUFFIX = re.compile(r"_(total|bucket|sum|count)$")


def expressions() -> dict[str, str]:
    """Every PromQL expression by where it stands."""
    found = {}
    for group in RULES["groups"]:
        for rule in group["rules"]:
            found[rule.get("alert") or rule["record"]] = rule["expr"]
    for path in DASHBOARDS:
        for panel in panels(json.loads(path.read_text())):
            for target in panel.get("targets", []):
                place = f"{path.name}: {panel['title']} {target['refId']}"
                found[place] = re.sub(r"\$__(rate_)?interval", "1m", target["expr"])
    return found


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [inner for panel in dashboard["panels"] for inner in (panel, *panel.get("panels", []))]


@pytest.fixture(scope="module")
def sources() -> str:
    """Everything in Ray that names a metric, as one text."""
    root = Path(ray.__file__).parent
    folders = ("_private", "data/_internal", "train/v2/_internal", "serve/_private", "dashboard")
    texts = [p.read_text() for folder in folders for p in (root / folder).rglob("*.py")]
    return "\n".join(texts) + (root / "_raylet.so").read_bytes().decode("latin-1")


@pytest.mark.parametrize(("place", "query"), expressions().items(), ids=lambda v: str(v)[:40])
def test_an_expression_parses_and_its_metrics_exist(place: str, query: str, sources: str) -> None:
    tree = promql_parser.parse(re.sub(r"\[\$\w+\]", "[1m]", query).replace("$cluster", "x"))
    asked = set(metrics(tree)) - RECORDED
    assert asked or RECORDED & set(metrics(tree))
    for name in asked:
        assert is_measured(name, sources), name


def metrics(tree: Any) -> Iterator[str]:
    """The names of the metrics in a parsed expression."""
    if isinstance(tree, promql_parser.VectorSelector):
        yield tree.name
    elif isinstance(tree, promql_parser.MatrixSelector):
        yield tree.vector_selector.name
    elif isinstance(tree, promql_parser.BinaryExpr):
        yield from metrics(tree.lhs)
        yield from metrics(tree.rhs)
    elif isinstance(tree, promql_parser.Call):
        for argument in tree.args:
            yield from metrics(argument)
    elif hasattr(tree, "expr"):
        yield from metrics(tree.expr)


def is_measured(name: str, sources: str) -> bool:
    """Whether Ray, or our endpoint through Ray, measures what Prometheus knows by this name."""
    assert name.startswith("ray_")
    known = (name.removeprefix("ray_"), _SUFFIX.sub("", name.removeprefix("ray_")))
    return any(each in METRICS or re.search(rf"\b{each}\b", sources) for each in known)


def test_a_metric_that_is_not_there_would_be_noticed(sources: str) -> None:
    assert is_measured("ray_node_gpus_utilization", sources)
    assert is_measured("ray_d2det_request_ms_bucket", sources)
    assert not is_measured("ray_node_gpus_utilisation", sources)
    assert not is_measured("ray_d2det_request_s_bucket", sources)


def test_alerts_say_what_to_do() -> None:
    alerts = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) >= 6
    for alert in alerts:
        assert alert["labels"]["severity"] in ("info", "warning", "critical")
        assert len(alert["annotations"]["description"]) > 20
        assert alert["annotations"]["summary"]


def test_there_is_a_dashboard_for_each_job() -> None:
    assert {path.stem for path in DASHBOARDS} >= {"training", "labelling"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_that_grafana_imports(path: Path) -> None:
    content = json.loads(path.read_text())
    assert content["title"]
    assert content["uid"]
    ids = [panel["id"] for panel in panels(content)]
    assert len(ids) == len(set(ids))
    for panel in panels(content):
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["targets"]


def test_dashboards_are_those_that_the_script_writes() -> None:
    path = ROOT / "deploy" / "dashboards" / "make_dashboards.py"
    spec = importlib.util.spec_from_file_location("make_dashboards", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules["make_dashboards"] = script
    spec.loader.exec_module(script)
    for file, text in script.files().items():
        assert file.read_text() == text, f"run {path.relative_to(ROOT)}"
