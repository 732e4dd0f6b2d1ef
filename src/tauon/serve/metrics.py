"""Prometheus metrics of a server. Each server has a registry of its own; several workers of one server share figures through files in a folder
(prometheus_client's multiprocess mode), so that any of them answers for all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tauon.errors import MissingExtra

__all__ = ["SHARED", "Metrics"]

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder of the shared figures. prometheus_client reads it when it is imported."""
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as err:
            raise MissingExtra("serving", "serve") from err
        self.registry = CollectorRegistry()
        on: dict[str, Any] = {"registry": self.registry}
        total, each = {"multiprocess_mode": "livesum"}, {"multiprocess_mode": "liveall"}
        self.requests = Counter("tauon_requests_total", "Requests by route and status.", ["route", "status"], **on)
        self.seconds = Histogram("tauon_request_seconds", "Seconds until the answer was complete.", ["route"], buckets=SECONDS, **on)
        self.running = Gauge("tauon_requests_running", "Requests that are being answered.", **total, **on)
        self.batch_rows = Histogram("tauon_batch_rows", "Rows of each call of the model.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), **on)
        self.batch_seconds = Histogram("tauon_batch_seconds", "Seconds of each call of the model.", buckets=SECONDS, **on)
        self.queued = Gauge("tauon_rows_queued", "Rows that wait for the model.", **total, **on)
        self.predictions = Counter("tauon_predictions_total", "Rows that were predicted, by version of the model.", ["version"], **on)
        self.answers = Gauge("tauon_answers", "Answers of each class since the start.", ["answer"], **total, **on)
        self.drift = Gauge(
            "tauon_drift_psi",
            "Population stability index of the inputs against training data; above 0.25: moved.",
            ["column"],
            **each,
            **on,
        )
        self.swaps = Counter("tauon_swaps_total", "Changes of the served version: swap, rollout, rollback.", ["kind"], **on)
        self.tokens = Counter("tauon_tokens_total", "Tokens of language models: prompt, generated.", ["kind"], **on)
        self.engine = Gauge("tauon_engine", "State of the engine of a language model.", ["state"], **each, **on)
        self._known: dict[tuple[str, int], tuple[Any, Any]] = {}
        self._versions: dict[str, Any] = {}

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        known = self._known.get((route, status))
        if known is None:
            known = self._known[route, status] = (self.requests.labels(route, str(status)), self.seconds.labels(route))
        known[0].inc()
        known[1].observe(seconds)

    def predicted(self, version: str, rows: int) -> None:
        """Count predicted rows."""
        known = self._versions.get(version)
        if known is None:
            known = self._versions[version] = self.predictions.labels(version)
        known.inc(rows)

    def text(self) -> bytes:
        """Return the text that Prometheus reads."""
        from prometheus_client import CollectorRegistry, generate_latest

        folder = os.environ.get(SHARED)
        if folder is None:
            return bytes(generate_latest(self.registry))
        from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

        for pid in {int(p.stem.rpartition("_")[2]) for p in Path(folder).glob("gauge_live*.db")}:
            if not _lives(pid):
                mark_process_dead(pid)  # what a dead worker was doing is not counted
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return bytes(generate_latest(registry))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
