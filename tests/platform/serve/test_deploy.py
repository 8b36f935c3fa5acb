"""Serve files and the dashboard: what they name exists."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from d2det_platform.serve.local import serve_environment
from d2det_platform.serve.metrics import METRICS
from d2det_platform.serve.options import ServeOptions

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
FILES = sorted((DEPLOY / "serve").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_serve_files_fit_serves_schema_and_our_options(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load(path.read_text())
    schema = ServeDeploySchema.model_validate(values)
    # Serve takes unknown keys without a word.
    assert values.keys() <= ServeDeploySchema.model_fields.keys()
    (application,) = schema.applications
    given = values["applications"][0]
    assert given.keys() <= type(application).model_fields.keys()
    module, _, name = application.import_path.partition(":")
    assert (DEPLOY.parent / "platform" / (module.replace(".", "/") + ".py")).is_file()
    assert name == "build"
    options = ServeOptions.model_validate(application.args)
    assert options.keys is not None, "an endpoint that others can reach needs keys"


def test_an_unknown_option_is_named_with_its_neighbour() -> None:
    from d2det_platform.serve.deployments import build

    with pytest.raises(ValueError, match="did you mean 'weights'"):
        build({"weight": "w.safetensors"})


def test_the_environment_of_clusters_is_that_of_one_machine() -> None:
    text = (DEPLOY / "serve" / "environment.sh").read_text()
    exported = dict(re.findall(r"^export (RAY_SERVE_\w+)=(\S+)$", text, re.M))
    ours: dict[str, Any] = serve_environment(Path("/tmp/x"))
    assert exported
    assert exported.items() <= ours.items()


def test_the_dashboard_is_the_generated_one_and_shows_what_is_measured() -> None:
    path = DEPLOY / "dashboards" / "endpoint.json"
    made = runpy.run_path(str(DEPLOY / "serve" / "make_dashboard.py"))["dashboard"]()
    assert json.loads(path.read_text()) == made
    named = set(re.findall(r"ray_(d2det_\w+)", path.read_text()))
    plain = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named}
    assert plain == set(METRICS)


def test_serve_starts_with_our_metrics_kinds() -> None:
    assert {metric.kind for metric in METRICS.values()} == {"counter", "gauge", "histogram"}
    assert all(metric.buckets for metric in METRICS.values() if metric.kind == "histogram")
