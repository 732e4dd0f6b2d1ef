"""`ServerState`: everything that the routes of one server share."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tauon.serve.batching import Batcher
from tauon.serve.limits import BodyBudget
from tauon.serve.metrics import Metrics
from tauon.serve.rollout import Rollout
from tauon.serve.settings import ServeSettings

if TYPE_CHECKING:
    from tauon.serve.language import ServedLanguage

__all__ = ["ServerState"]


@dataclass
class ServerState:
    """A server: one name, the versions behind it, and its limits. Either `predictors` or `language` is set."""

    settings: ServeSettings
    metrics: Metrics
    place: Path
    """Folder of the run or bundle that was given."""
    predictors: Rollout | None = None
    language: ServedLanguage | None = None
    batchers: dict[str, Batcher] = field(default_factory=dict)
    """By version."""
    readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="reader"))
    """Decode large bodies beside the event loop."""
    draining: bool = False
    swap_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    budget: BodyBudget = field(init=False)
    events: list[dict[str, Any]] = field(default_factory=list)
    """Swaps, canaries and rollbacks, newest last."""

    def __post_init__(self) -> None:
        self.budget = BodyBudget(self.settings.most_bytes)

    @property
    def name(self) -> str:
        """Name of the model, for clients."""
        if self.language is not None:
            return self.language.name
        assert self.predictors is not None
        return str(self.predictors.current.name)

    @property
    def version(self) -> str:
        """Version that answers."""
        if self.language is not None:
            return self.language.version
        assert self.predictors is not None
        return str(self.predictors.current.version)

    def batcher(self, served: Any) -> Batcher:
        """Return the queue of a version."""
        found = self.batchers.get(served.version)
        if found is None:
            self._forget_replaced()
            found = self.batchers[served.version] = Batcher(
                served.compute, latency_target=self.settings.latency_target, most_queued=self.settings.most_queued,
                most_wait=self.settings.answer_seconds / 2, on_batch=self._count,
            )  # fmt: skip
        return found

    def _forget_replaced(self) -> None:
        """Drop the queues of versions that answer no more, and with them their models. Requests that are still in one of them end there."""
        if self.predictors is not None:
            kept = {v.version for v in (self.predictors.current, self.predictors.canary) if v is not None}
            self.batchers = {version: batcher for version, batcher in self.batchers.items() if version in kept}

    def _count(self, rows: int, seconds: float) -> None:
        self.metrics.batch_rows.observe(rows)
        self.metrics.batch_seconds.observe(seconds)

    def close(self) -> None:
        """Stop the threads."""
        for batcher in self.batchers.values():
            batcher.close()
        self.readers.shutdown(wait=False)
        if self.language is not None:
            self.language.close()
