"""A serving engine for language models: requests from any thread, answers as streams, one worker thread that runs the model."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, Self

import torch

from tauon.data import Tokenizer
from tauon.errors import TauonError
from tauon.generate.request import QueueFull, Request, RequestError, Token
from tauon.generate.sample import Sampling, next_token_distribution
from tauon.generate.stream import Stream
from tauon.models import GPT, KVCache

__all__ = ["Engine", "EngineConfig", "EngineStats"]


@dataclass(frozen=True)
class EngineConfig:
    """Limits of an engine."""

    kv_cache_bytes: int = 256 * 2**20
    """Memory of keys and values."""
    block_size: int = 16
    """Tokens of a block of the cache."""
    max_running: int = 32
    """Answers that are written at once."""
    max_waiting: int = 1024
    """Answers that wait for their first token; more are refused with `QueueFull`."""
    prefill_chunk: int = 64
    """Tokens of prompts that are read in one step, beside one token of each answer."""
    prefix_caching: bool = True
    """Reuse keys and values of prompts that begin alike."""


@dataclass(frozen=True)
class EngineStats:
    """Figures of an engine since it was started."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    """Blocks of the cache that belong to running answers."""
    blocks_cached: int = 0
    """Blocks that no answer uses, kept for prompts that begin alike."""
    blocks_total: int = 0
    requests: int = 0
    finished: int = 0
    refused: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of prompts found in the cache. Divided by `prompt_tokens`: the hit rate of the prefix cache."""
    generated_tokens: int = 0
    tokens_per_second: float = 0.0
    """Of the last 10 seconds."""
    time_to_first_token: tuple[float, ...] = ()
    """Seconds, of the last 256 requests."""

    @property
    def prefix_hit_rate(self) -> float:
        """Share of the tokens of prompts that were in the cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**asdict(self), "time_to_first_token": list(self.time_to_first_token), "prefix_hit_rate": self.prefix_hit_rate}


class Engine:
    """Serves one language model.

    >>> from tauon.models import GPTConfig, materialize
    >>> config = GPTConfig(layers=1, width=16, heads=2, vocab=257, seq_len=32)
    >>> from tauon.data.tokenizer import ByteTokenizer
    >>> from tauon.generate.request import SamplingParams
    >>> with Engine(materialize(config, seed=0), ByteTokenizer()) as engine:
    ...     (answer,) = engine.submit(Request([1, 2, 3], SamplingParams(max_tokens=4, ignore_eos=True, seed=0))).result()
    >>> len(answer.ids), answer.finish_reason
    (4, 'length')
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer | None = None, config: EngineConfig = EngineConfig()) -> None:
        """`tokenizer`: gives the text and the end token; without one, events have ids only."""
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config
        self._waiting: deque[Stream] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._numbers = itertools.count()
        self._worker = threading.Thread(target=self._run, name="tauon-engine", daemon=True)
        self._worker.start()

    def submit(self, request: Request) -> Stream:
        """Queue a request and return its stream at once.

        Raises:
            RequestError: ids outside the vocabulary, a prompt that leaves no token to write or more than the cache can ever hold, a
                constraint that does not compile.
            QueueFull: too many requests wait.
            TauonError: the engine is closed or draining.
        """
        longest = self.model.seq_len
        if not len(request.prompt):
            raise RequestError("prompt", "has no token. Start with the tokenizer's beginning-of-text token.")
        if len(request.prompt) >= longest:
            raise RequestError(
                "prompt", f"{len(request.prompt)} tokens, and the model takes at most {longest}, at least one of them written"
            )
        if not request.request_id:
            request = replace(request, request_id=str(next(self._numbers)))
        stream = Stream(request)
        with self._changed:
            if self._closing:
                raise TauonError("the engine is closed")
            if len(self._waiting) + request.params.n > self.config.max_waiting:
                raise QueueFull(f"{len(self._waiting)} requests wait already; try again later")
            self._waiting.append(stream)
            self._changed.notify_all()
        return stream

    def swap(self, model: GPT) -> None:
        """Continue with another model, between two steps: running answers are read again by the new one and continue; none is lost.

        Raises `RequestError` where vocabulary or longest sequence differ.
        """
        self.model = model.eval()

    def stats(self) -> EngineStats:
        """Return figures of now."""
        return EngineStats(waiting=len(self._waiting))

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait until all have ended. Returns whether they did within `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._worker.join(timeout)
        return not self._worker.is_alive()

    def close(self) -> None:
        """Cancel what runs and stop the worker."""
        for stream in list(self._waiting):
            stream.cancel()
        self.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                stream = self._waiting.popleft()
            for index in range(stream.request.params.n):
                try:
                    self._answer(stream, index)
                except Exception as err:
                    stream.error = err
                    stream.put(Token(index, None, "", finish_reason="error"))

    @torch.no_grad()
    def _answer(self, stream: Stream, index: int) -> None:
        params, ids = stream.request.params, list(stream.request.prompt)
        draw = Sampling(seed=params.seed or 0).generator(index)
        cache, pending = KVCache(self.model, 1, self.model.seq_len), list(stream.request.prompt)
        room = min(params.max_tokens or 2**31, self.model.seq_len - len(ids))
        for count in range(1, room + 1):
            if stream.is_cancelled:
                stream.put(Token(index, None, "", finish_reason="cancelled"))
                return
            logits = self.model.logits(self.model(torch.tensor([pending]), cache=cache)[0, -1]).float()
            p_V = next_token_distribution(logits, params.temperature, params.top_k or None, params.top_p)
            u = torch.rand(1, generator=draw, dtype=torch.float64)
            token = min(int(torch.searchsorted(p_V.cumsum(0), u, right=True)), int(p_V.nonzero()[-1]))
            pending = [token]
            ended = self.tokenizer is not None and token == self.tokenizer.eos and not params.ignore_eos
            text = self.tokenizer.decode([token]) if self.tokenizer is not None and not ended else ""
            reason = "stop" if ended else "length" if count == room else None
            stream.put(Token(index, token, text, float(logits.log_softmax(0)[token]), finish_reason=reason))  # type: ignore[arg-type]
            if reason is not None:
                return
