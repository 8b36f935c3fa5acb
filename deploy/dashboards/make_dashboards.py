"""Writes the Grafana dashboards of training and labelling: a row of this file is a panel there.

    python deploy/dashboards/make_dashboards.py

They show what Ray itself measures; import them, and choose the Prometheus that scrapes Ray.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 3
_MINE = 'SessionName=~"$cluster"'


@dataclass(frozen=True)
class Panel:
    """A time series. queries: PromQL to legend.  unit: as Grafana names it."""

    title: str
    text: str
    queries: dict[str, str]
    unit: str = "short"
    is_stacked: bool = False


_MACHINES = (
    Panel(
        "GPUs in use",
        "Of each machine. A GPU that idles beside busy ones is a straggler's victim, or starved.",
        {f"sum by (instance, GpuIndex) (ray_node_gpus_utilization{{{_MINE}}})": "{{instance}}"},
        "percent",
    ),
    Panel(
        "GPU memory",
        "Used on each machine.",
        {f"sum by (instance) (ray_node_gram_used{{{_MINE}}}) * 1024 * 1024": "{{instance}}"},
        "bytes",
    ),
    Panel(
        "CPUs in use",
        "Of each machine.",
        {f"sum by (instance) (ray_node_cpu_utilization{{{_MINE}}})": "{{instance}}"},
        "percent",
    ),
    Panel(
        "Memory",
        "Share of each machine's memory that is taken; Ray kills tasks at 95 %.",
        {
            f"sum by (instance) (ray_node_mem_used{{{_MINE}}})"
            f" / sum by (instance) (ray_node_mem_total{{{_MINE}}})": "{{instance}}"
        },
        "percentunit",
    ),
    Panel(
        "Object store",
        "Bytes in shared memory. Both jobs are bounded: steady growth is a leak.",
        {f"sum by (instance) (ray_object_store_memory{{{_MINE}}})": "{{instance}}"},
        "bytes",
    ),
    Panel(
        "Machines",
        "By type, and those that could not be had.",
        {
            f"sum by (NodeType) (ray_cluster_active_nodes{{{_MINE}}})": "{{NodeType}}",
            f"sum by (NodeType) (ray_cluster_failed_nodes{{{_MINE}}})": "{{NodeType}} failed",
        },
        is_stacked=True,
    ),
)

TRAINING = (
    Panel(
        "State",
        "Of each training: which state of Ray Train's controller is 1.",
        {
            "sum by (ray_train_run_name, ray_train_controller_state)"
            f" (ray_train_controller_state{{{_MINE}}})": "{{ray_train_run_name}}"
            " {{ray_train_controller_state}}"
        },
        is_stacked=True,
    ),
    Panel(
        "Starting workers",
        "Seconds spent on starting groups of workers: each step up is a restart.",
        {
            "sum by (ray_train_run_name)"
            f" (ray_train_worker_group_start_total_time_s{{{_MINE}}})": "{{ray_train_run_name}}"
        },
        "s",
    ),
    Panel(
        "Waiting for reports",
        "Seconds that workers stood still at Ray's report, once an epoch.",
        {
            "sum by (ray_train_run_name)"
            f" (ray_train_report_total_blocked_time_s{{{_MINE}}})": "{{ray_train_run_name}}"
        },
        "s",
    ),
    Panel(
        "Network",
        "Bytes a second that each machine sends: gradients.",
        {f"sum by (instance) (ray_node_network_send_speed{{{_MINE}}})": "{{instance}}"},
        "Bps",
    ),
    *_MACHINES,
)

LABELLING = (
    Panel(
        "Units",
        "Units of work finished a second, by stage of the pipeline.",
        {f"sum by (dataset, operator) (rate(ray_data_output_rows{{{_MINE}}}[1m]))": "{{operator}}"},
    ),
    Panel(
        "In flight",
        "Bytes between the stages. Bounded by the memory that is allowed to a unit.",
        {f"sum by (dataset) (ray_data_current_bytes{{{_MINE}}})": "{{dataset}}"},
        "bytes",
    ),
    Panel(
        "Spilled",
        "Bytes written to disk because the object store was full: should stay at nothing.",
        {f"sum by (dataset) (ray_data_spilled_bytes{{{_MINE}}})": "{{dataset}}"},
        "bytes",
    ),
    Panel(
        "Tasks",
        "By state. Work is pulled: running tasks should fill the cluster until the end.",
        {f"sum by (State) (ray_tasks{{{_MINE}}})": "{{State}}"},
        is_stacked=True,
    ),
    Panel(
        "Actors",
        "By state: one for each worker with a model. DEAD ones beyond the start are crashes.",
        {f"sum by (State) (ray_actors{{{_MINE}}})": "{{State}}"},
        is_stacked=True,
    ),
    Panel(
        "Reading",
        "Bytes a second that each machine receives: pictures from the lake.",
        {f"sum by (instance) (ray_node_network_receive_speed{{{_MINE}}})": "{{instance}}"},
        "Bps",
    ),
    *_MACHINES,
)


def dashboard(title: str, uid: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """Returns a dashboard as Grafana imports it."""
    return {
        "title": title,
        "uid": uid,
        "tags": ["d2det", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource(), _cluster()]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def files() -> dict[Path, str]:
    """Returns what this script writes."""
    made = {
        "training.json": dashboard("D2Det training", "d2det-training", TRAINING),
        "labelling.json": dashboard("D2Det labelling", "d2det-labelling", LABELLING),
    }
    return {FOLDER / name: json.dumps(content, indent=1) + "\n" for name, content in made.items()}


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.text,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {
            "x": number % _COLUMNS * _WIDTH,
            "y": number // _COLUMNS * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        },
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {
                    "fillOpacity": 40 if panel.is_stacked else 8,
                    "stacking": {"mode": "normal" if panel.is_stacked else "none"},
                },
            },
            "overrides": [],
        },
        "targets": [
            {"refId": "ABCDEF"[place], "expr": query, "legendFormat": legend}
            for place, (query, legend) in enumerate(panel.queries.items())
        ],
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "label": "Prometheus",
    }


def _cluster() -> dict[str, Any]:
    return {
        "name": "cluster",
        "type": "query",
        "label": "Ray session",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": "label_values(ray_node_cpu_count, SessionName)",
        "includeAll": True,
        "multi": True,
        "refresh": 2,
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
