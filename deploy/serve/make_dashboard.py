"""Writes the Grafana dashboard of the endpoint from what it measures.

python deploy/serve/make_dashboard.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parents[1] / "dashboards" / "endpoint.json"
_REPLICA = 'deployment=~"ingress|detector"'


def rate(name: str, by: str) -> str:
    """Returns the query of a counter's rate."""
    return f"sum by ({by}) (rate(ray_{name}_total{{{_REPLICA}}}[1m]))"


def quantiles(name: str) -> dict[str, str]:
    """Returns the queries of a histogram's median and tail."""
    inner = f"sum by (le) (rate(ray_{name}_bucket{{{_REPLICA}}}[1m]))"
    return {f"p{q}": f"histogram_quantile({q / 100}, {inner})" for q in (50, 95, 99)}


def mean(name: str) -> str:
    """Returns the query of a histogram's mean."""
    parts = (f"sum(rate(ray_{name}_{part}{{{_REPLICA}}}[1m]))" for part in ("sum", "count"))
    return " / ".join(parts)


PANELS: list[tuple[str, str, str, dict[str, str]]] = [
    ("Requests", "By status.", "reqps", {"{{status}}": rate("d2det_requests", "status")}),
    ("Time to the answer", "Of all requests.", "ms", quantiles("d2det_request_ms")),
    ("Refused", "By reason.", "reqps", {"{{reason}}": rate("d2det_rejects", "reason")}),
    ("Pictures", "Predicted a second.", "short", {"pictures": rate("d2det_pictures", "job")}),
    ("Pixels", "Predicted a second.", "short", {"pixels": rate("d2det_pixels", "job")}),
    (
        "Batch fill",
        "Pictures in a batch of the network; one while nobody else waits.",
        "short",
        {"mean": mean("d2det_batch_pictures"), **quantiles("d2det_batch_pictures")},
    ),
    (
        "Waiting",
        "Pictures that wait for a detector, by process.",
        "short",
        {"{{replica}}": f"ray_d2det_waiting{{{_REPLICA}}}"},
    ),
    ("Between decoding and network", "Waiting at a detector.", "ms", quantiles("d2det_queue_ms")),
    ("Decoding", "Of a picture.", "ms", quantiles("d2det_decode_ms")),
    ("Network", "Of a batch.", "ms", quantiles("d2det_infer_ms")),
    ("Rows", "Of a batch.", "ms", quantiles("d2det_post_ms")),
    (
        "Detectors",
        "Replicas that answered of late, as each HTTP process sees them.",
        "short",
        {"{{replica}}": f"ray_d2det_detectors{{{_REPLICA}}}"},
    ),
    (
        "Cold start",
        "Seconds from start to readiness of each detector.",
        "s",
        {"{{replica}}": f"ray_d2det_cold_start_s{{{_REPLICA}}}"},
    ),
    (
        "Sent again",
        "Pictures that were with a replica that was lost.",
        "short",
        {"pictures": rate("d2det_retries", "job")},
    ),
    (
        "Bodies held",
        "Bytes of request bodies, by process.",
        "bytes",
        {"{{replica}}": f"ray_d2det_buffered_bytes{{{_REPLICA}}}"},
    ),
]


def dashboard() -> dict[str, Any]:
    """Returns the dashboard."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    panels = []
    for number, (title, text, unit, queries) in enumerate(PANELS):
        place = {"x": number % 3 * 8, "y": number // 3 * 8, "w": 8, "h": 8}
        targets = [
            {"refId": chr(65 + i), "expr": query, "legendFormat": legend}
            for i, (legend, query) in enumerate(queries.items())
        ]
        panels.append(
            {
                "id": number + 1,
                "type": "timeseries",
                "title": title,
                "description": text,
                "datasource": source,
                "gridPos": place,
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": targets,
            }
        )
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "title": "D2Det endpoint",
        "uid": "d2det-endpoint",
        "tags": ["d2det", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": panels,
    }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(dashboard(), indent=1) + "\n")
