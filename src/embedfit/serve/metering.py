"""Figures about a server, in the format of Prometheus. No text, id or person is among them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from embedfit.errors import require

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Meters:
    """The figures of one process; with several workers, ``text`` has their sums."""

    def __init__(self) -> None:
        client = require("prometheus_client", extra="serve")
        self.together = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._registry: CollectorRegistry = client.CollectorRegistry()
        here = None if self.together else self._registry
        self.requests = client.Counter("embedfit_requests", "Requests answered.", ("method", "route", "status"), registry=here)
        self.seconds = client.Histogram(
            "embedfit_request_seconds",
            "Time of a request.",
            ("route",),
            registry=here,
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
        )
        self.batch_items = client.Histogram(
            "embedfit_batch_items", "Items of a batch.", ("lane",), registry=here, buckets=(1, 2, 4, 8, 16, 32, 64, 128)
        )
        self.batch_seconds = client.Counter("embedfit_batch_seconds", "Time spent on batches.", ("lane",), registry=here)
        self.waiting = client.Gauge("embedfit_waiting_items", "Items that wait.", registry=here, multiprocess_mode="livesum")
        self.searches = client.Counter("embedfit_searches", "Searches answered.", ("abstained",), registry=here)
        self.picks = client.Counter("embedfit_picks", "Picks stored.", ("place",), registry=here)
        self.untraced = client.Counter("embedfit_dropped_traces", "Traces that were not delivered.", registry=here)
        self.unrecorded = client.Counter("embedfit_unrecorded_searches", "Searches that could not be stored.", registry=here)

    def text(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        if self.together:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self._registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests.labels(method if method in _METHODS else "other", route, status).inc()
        self.seconds.labels(route).observe(seconds)

    def batch(self, lane: str, items: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_items.labels(lane).observe(items)
        self.batch_seconds.labels(lane).inc(seconds)


_METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"}
