"""`ServeSettings`: how a model is served. Every limit has a default that protects the machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["ServeSettings"]


@dataclass(frozen=True)
class ServeSettings:
    """How a model is served."""

    latency_target: float = 0.05
    """Seconds within which nearly every request should be answered: the batch size follows from it and from the measured speed of the model."""
    most_queued: int = 1024
    """Rows, or prompts, that may wait. More are refused with status 429, except rows that the model answers within `latency_target`."""
    most_body: int = 32 * 2**20
    """Largest body of a request in bytes; larger ones are refused with status 413."""
    most_bytes: int = 256 * 2**20
    """Bytes of all bodies in memory together; more are refused with status 429."""
    read_seconds: float = 20.0
    """Longest time in which a client may send a body; then status 408."""
    answer_seconds: float = 60.0
    """Longest time for an answer; then status 504. Streams of text have no such limit between their tokens."""
    rate: float = 0.0
    """Requests a second for each API key, or for each address where there are no keys. 0: no limit."""
    burst: int = 20
    """Requests that may come at once within `rate`."""
    keys: tuple[str, ...] = ()
    """API keys, one of which every request must carry. Empty: none is asked for."""
    admin_keys: tuple[str, ...] = ()
    """Keys for `/admin`. Empty: there is no `/admin`."""
    explain: bool = False
    """Answer `explain=true` with explanations; they take seconds."""
    most_tokens: int = 4096
    """Most tokens that one request may generate."""
    kv_cache: int = 512 * 2**20
    """Bytes of the key-value cache of a language model."""
    watch: float = 0.0
    """Look for newer weights of the served run every so many seconds, and swap to them. 0: never."""
    hosts: tuple[str, ...] = ()
    """Names that a request may give as `Host`. Empty: any. A server on 127.0.0.1 answers to localhost only, besides these: otherwise a web page
    could reach it under a name of its own (DNS rebinding)."""
    drift: bool = True
    """Compare the inputs with the training data, in `/metrics`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> ServeSettings:
        known = {f.name for f in fields(cls)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in known}
        return cls(**given)
