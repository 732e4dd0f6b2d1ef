"""`ServedLanguage`: a language model on a server: its engine, its prompts, its name and version."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from tauon.data import Message
from tauon.generate import Engine, EngineConfig, RequestError
from tauon.generate.text_output import token_texts
from tauon.serve.metrics import Metrics
from tauon.serve.settings import ServeSettings
from tauon.stages.generate import TextGenerator

__all__ = ["ServedLanguage"]


class ServedLanguage:
    """A language model, ready for many clients."""

    def __init__(self, writer: TextGenerator, settings: ServeSettings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.loaded = int(time.time())
        self.name, self.writer, self.version = writer.name, writer, writer.version
        config = EngineConfig(kv_cache_bytes=settings.kv_cache, max_waiting=settings.most_queued)
        self.engine = Engine(writer.model, writer.tokenizer, config)
        self._longest_token = max(map(len, token_texts(writer.tokenizer)), default=1)

    @property
    def chats(self) -> bool:
        """Whether the model answers conversations; otherwise it continues texts."""
        return self.writer.answers(plain=False)

    def prompt(self, text: str) -> list[int]:
        """Return the tokens of a text to continue, begin-of-document first."""
        self._check_length(text, "prompt")
        return self.writer.begin(text, plain=True)[0]

    def chat(self, messages: Sequence[Message]) -> tuple[list[int], tuple[int, ...]]:
        """Return (tokens of a conversation, tokens that end the answer)."""
        self._check_length("".join(m.content for m in messages), "messages")
        ids, stops = self.writer.begin_chat(messages)
        return ids, tuple(sorted(stops))

    def _check_length(self, text: str, what: str) -> None:
        """Refuse a text that cannot fit however well it is compressed into tokens: encoding it would take long."""
        most = self.writer.model.seq_len * max(1, self._longest_token)
        if len(text) > most:
            raise RequestError(what, f"{len(text):,} characters, and the model takes at most {self.writer.model.seq_len:,} tokens")

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end a continued text."""
        return tuple(sorted({self.writer.tokenizer.bos, self.writer.tokenizer.eos}))

    def swap(self, writer: TextGenerator) -> None:
        """Continue with another model of the same tokenizer. Running answers continue."""
        self.engine.swap(writer.model)
        self.writer, self.version = writer, writer.version
        self.metrics.swaps.labels("swap").inc()

    def info(self) -> dict[str, Any]:
        """Return what a client must know."""
        return {
            "name": self.name,
            "version": self.version,
            "reads": "chat" if self.chats else "prompt",
            "longest": self.writer.model.seq_len,
            "vocabulary": self.writer.model.embed.num_embeddings,
            "exact": self.engine.exact,
            "engine": self.engine.stats().to_json(),
        }

    def refresh(self, metrics: Metrics) -> None:
        """Set the gauges of the engine."""
        stats = self.engine.stats()
        for name in ("running", "waiting", "blocks_used", "blocks_total", "tokens_per_second", "prefix_hit_rate", "preemptions"):
            metrics.engine.labels(name).set(getattr(stats, name))
        first = sorted(stats.time_to_first_token)
        if first:
            metrics.engine.labels("median_seconds_to_first_token").set(first[len(first) // 2])

    def close(self) -> None:
        """Let running answers end, for as long as a request may take, then stop."""
        self.engine.drain(timeout=min(30.0, self.settings.answer_seconds))
        self.engine.close()
