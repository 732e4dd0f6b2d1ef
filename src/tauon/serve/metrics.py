"""Prometheus metrics of a server. Each server has a registry of its own."""

from __future__ import annotations

from typing import Any

from tauon.errors import MissingExtra

__all__ = ["Metrics"]

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
        self.requests = Counter("tauon_requests_total", "Requests by route and status.", ["route", "status"], **on)
        self.seconds = Histogram("tauon_request_seconds", "Seconds until the answer was complete.", ["route"], buckets=SECONDS, **on)
        self.running = Gauge("tauon_requests_running", "Requests that are being answered.", **on)
        self.batch_rows = Histogram("tauon_batch_rows", "Rows of each call of the model.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), **on)
        self.batch_seconds = Histogram("tauon_batch_seconds", "Seconds of each call of the model.", buckets=SECONDS, **on)
        self.queued = Gauge("tauon_rows_queued", "Rows that wait for the model.", **on)
        self.predictions = Counter("tauon_predictions_total", "Rows that were predicted, by version of the model.", ["version"], **on)
        self.answers = Gauge("tauon_answers", "Answers of each class since the start.", ["answer"], **on)
        self.drift = Gauge(
            "tauon_drift_psi", "Population stability index of the inputs against training data; above 0.25: moved.", ["column"], **on
        )
        self.swaps = Counter("tauon_swaps_total", "Changes of the served version: swap, rollout, rollback.", ["kind"], **on)
        self.tokens = Counter("tauon_tokens_total", "Tokens of language models: prompt, generated.", ["kind"], **on)
        self.engine = Gauge("tauon_engine", "State of the engine of a language model.", ["state"], **on)
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
        from prometheus_client import generate_latest

        return bytes(generate_latest(self.registry))
