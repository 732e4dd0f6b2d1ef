"""Limits of the serving engine, and its figures."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from tauon.generate.request import RequestError

__all__ = ["EngineConfig", "EngineStats", "Meter"]


@dataclass(frozen=True)
class EngineConfig:
    """Limits of an engine."""

    kv_cache_bytes: int = 256 * 2**20
    """Memory of keys and values; no more than `max_running` of the longest sequences need is taken."""
    block_size: int = 16
    """Tokens of a block of the cache."""
    max_running: int = 32
    """Answers that are written at once."""
    max_waiting: int = 1024
    """Answers that wait until they can start; more are refused with `QueueFull`."""
    prefill_chunk: int = 64
    """Tokens of prompts that are read in one step, beside one token of each answer."""
    prefix_caching: bool = True
    """Reuse keys and values of texts that begin alike."""
    exact: bool = True
    """Linear layers whose rows do not depend on the batch, so that a seed repeats whatever else runs."""

    def __post_init__(self) -> None:
        for name in ("kv_cache_bytes", "block_size", "max_running", "max_waiting", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise RequestError(name, f"{getattr(self, name)} is less than 1")


@dataclass(frozen=True)
class EngineStats:
    """Figures of an engine since it was started."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    """Blocks of the cache that belong to running answers."""
    blocks_cached: int = 0
    """Blocks that no answer uses, kept for texts that begin alike."""
    blocks_total: int = 0
    requests: int = 0
    finished: int = 0
    refused: int = 0
    """Requests that met a full queue."""
    preemptions: int = 0
    """Times that a running answer lost its blocks to one before it, and was read again later."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of prompts found in the cache. Divided by `prompt_tokens`: the hit rate of the prefix cache."""
    generated_tokens: int = 0
    tokens_per_second: float = 0.0
    """Written in the last 10 seconds."""
    time_to_first_token: tuple[float, ...] = ()
    """Seconds, of the last 256 requests."""

    @property
    def prefix_hit_rate(self) -> float:
        """Share of the tokens of prompts that were in the cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**asdict(self), "time_to_first_token": list(self.time_to_first_token), "prefix_hit_rate": self.prefix_hit_rate}


class Meter:
    """Counts for `EngineStats`."""

    def __init__(self) -> None:
        self.requests = self.finished = self.refused = self.prompt_tokens = self.cached_tokens = self.generated_tokens = 0
        self.first: deque[float] = deque(maxlen=256)
        self._recent: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()

    def add_tokens(self, count: int) -> None:
        """Count the tokens of a step."""
        self.generated_tokens += count
        self._recent.append((time.monotonic(), count))
        self._forget()

    def tokens_per_second(self) -> float:
        """Return the rate over the last 10 seconds."""
        self._forget()
        return sum(n for _, n in tuple(self._recent)) / max(0.1, min(_RECENT, time.monotonic() - self._started))

    def _forget(self) -> None:
        old = time.monotonic() - _RECENT
        while self._recent and self._recent[0][0] < old:
            self._recent.popleft()


_RECENT = 10.0
