"""What the endpoint measures, by name; recorded through Ray's metrics, or in memory for tests.

Ray's metrics rather than a Prometheus client of our own: replicas come and go on any machine, and
Ray's agent on each machine already exposes one address for all processes there, which Prometheus
finds by itself; a client of our own would need a port for each replica.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Metric:
    """A metric as Prometheus sees it, its name without the prefix `ray_`."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    tags: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)

METRICS: dict[str, Metric] = {
    "d2det_requests": Metric("counter", "requests answered", ("route", "status")),
    "d2det_request_ms": Metric("histogram", "milliseconds to the answer", ("route",), _MS),
    "d2det_rejects": Metric("counter", "requests and pictures refused", ("reason",)),
    "d2det_waiting": Metric("gauge", "pictures waiting in this process for a detector"),
    "d2det_buffered_bytes": Metric("gauge", "bytes of request bodies held by this process"),
    "d2det_detectors": Metric("gauge", "detector replicas that answered this process of late"),
    "d2det_retries": Metric("counter", "pictures sent again because a replica was lost"),
    "d2det_pictures": Metric("counter", "pictures predicted"),
    "d2det_pixels": Metric("counter", "pixels predicted"),
    "d2det_batch_pictures": Metric(
        "histogram", "pictures in a batch of the network", (), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    ),
    "d2det_queue_ms": Metric("histogram", "milliseconds between decoding and network", (), _MS),
    "d2det_decode_ms": Metric("histogram", "milliseconds of decoding a picture", (), _MS),
    "d2det_infer_ms": Metric("histogram", "milliseconds of a batch in the network", (), _MS),
    "d2det_post_ms": Metric("histogram", "milliseconds of making rows of a batch", (), _MS),
    "d2det_cold_start_s": Metric("gauge", "seconds from start to readiness of a detector"),
}


class Recorder(Protocol):
    """Where measurements go."""

    def add(self, name: str, value: float = 1, **tags: str) -> None:
        """Adds to a counter, observes in a histogram, or sets a gauge."""


class MemoryRecorder:
    """Keeps everything, for tests and for running without Ray."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)

    def add(self, name: str, value: float = 1, **tags: str) -> None:
        """Keeps the value."""
        assert set(tags) == set(METRICS[name].tags), f"tags of {name}"
        self.values[name, tuple(sorted(tags.items()))].append(value)

    def total(self, name: str, **tags: str) -> float:
        """Returns the sum of what was added under these tags, or under any where none are given."""
        wanted = set(tags.items())
        return sum(
            sum(values)
            for (key, given), values in self.values.items()
            if key == name and wanted <= set(given)
        )


class RayRecorder:
    """Records through `ray.serve.metrics`, which adds the deployment and replica as tags."""

    def __init__(self) -> None:
        from ray.serve import metrics

        kinds: dict[str, Any] = {"counter": metrics.Counter, "gauge": metrics.Gauge}
        self._made: dict[str, Any] = {}
        for name, metric in METRICS.items():
            if metric.kind == "histogram":
                self._made[name] = metrics.Histogram(
                    name,
                    description=metric.text,
                    boundaries=list(metric.buckets),
                    tag_keys=metric.tags,
                )
            else:
                self._made[name] = kinds[metric.kind](
                    name, description=metric.text, tag_keys=metric.tags
                )

    def add(self, name: str, value: float = 1, **tags: str) -> None:
        """Hands the value to Ray."""
        made = self._made[name]
        kind = METRICS[name].kind
        if kind == "counter":
            made.inc(value, tags=tags or None)
        elif kind == "gauge":
            made.set(value, tags=tags or None)
        else:
            made.observe(value, tags=tags or None)
