"""A serving engine for language models: requests from any thread, answers as streams, one worker thread that runs the model.

Continuous batching (Orca, Yu et al. 2022) over a paged KV cache with prefix reuse. The tokens of a request with a seed, or with temperature 0, are
those that it gets alone, and their log-probabilities the same to the last bit: no operation of the forward pass mixes rows, and none depends on
their number (`exact_linear.py`, `paged_cache.py`). An answer ends with "length" where the model's longest sequence is full; it does not slide.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from tauon.data import Tokenizer
from tauon.distributed import release_openmp_threads
from tauon.errors import TauonError
from tauon.generate.choose import Draw
from tauon.generate.constrain import Constraint, GrammarCompiler
from tauon.generate.engine_config import EngineConfig, EngineStats, Meter
from tauon.generate.engine_core import EngineCore
from tauon.generate.paged_cache import bytes_per_token
from tauon.generate.request import QueueFull, Request, RequestError
from tauon.generate.runner import ModelRunner
from tauon.generate.sample import Sampling
from tauon.generate.sequence import SequenceState
from tauon.generate.stream import Stream
from tauon.generate.text_output import TextOutput, token_texts
from tauon.models import GPT

__all__ = ["Engine"]


class Engine:
    """Serves one language model.

    >>> from tauon.data.tokenizer import ByteTokenizer
    >>> from tauon.generate import SamplingParams
    >>> from tauon.models import GPTConfig, materialize
    >>> config = GPTConfig(layers=1, width=16, heads=2, vocab=257, seq_len=32)
    >>> with Engine(materialize(config, seed=0), ByteTokenizer()) as engine:
    ...     (answer,) = engine.submit(Request([1, 2, 3], SamplingParams(max_tokens=4, ignore_eos=True, seed=0))).result()
    >>> len(answer.ids), answer.finish_reason
    (4, 'length')
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer | None = None, config: EngineConfig | None = None) -> None:
        """`tokenizer`: gives the text and the end token; without one, events have ids only. The model is left as it is.

        Raises `RequestError` where `kv_cache_bytes` is too small for a single block.
        """
        self.tokenizer, self.config = tokenizer, (config := config or EngineConfig())
        self.vocab, self.seq_len = model.embed.num_embeddings, model.seq_len
        per_block = bytes_per_token(model) * config.block_size
        self.blocks = min(config.kv_cache_bytes // per_block, config.max_running * -(-model.seq_len // config.block_size))
        """Blocks of the cache."""
        if self.blocks < 1:
            raise RequestError("kv_cache_bytes", f"{config.kv_cache_bytes:,} bytes, and one block of the cache takes {per_block:,}")
        texts = token_texts(tokenizer) if tokenizer is not None else []
        self._grammars = GrammarCompiler(tokenizer) if tokenizer is not None else None
        self._core = EngineCore(self._runner(model), self.blocks, config, texts, self._ended)
        release_openmp_threads()  # of this thread, which packed the weights: the worker computes from here on
        self._meter = Meter()
        self._changed = threading.Condition()
        self._inbox: deque[SequenceState] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        """What the worker does between two steps."""
        self._alive = 0
        """Answers that have not ended."""
        self._is_closing = self._has_cancelled = False
        self._numbers = itertools.count()
        self._worker = threading.Thread(target=self._run, name="tauon-engine", daemon=True)
        self._worker.start()

    @property
    def exact(self) -> bool:
        """Whether the tokens of a request are the same whatever else runs. False where `EngineConfig.exact` is, or where a layer depends on
        the rest of its batch.
        """
        return self._core.scheduler.runner.exact

    def submit(self, request: Request) -> Stream:
        """Queue a request and return its stream at once.

        Raises:
            RequestError: ids outside the vocabulary, a prompt that leaves no token to write or more than the cache can ever hold, a
                constraint that does not compile.
            QueueFull: too many answers wait.
            TauonError: the engine is closed or draining.
        """
        limit, params = self._limit(request), request.params
        if not request.request_id:
            request = replace(request, request_id=str(next(self._numbers)))
        constraint = self._constraint(request)
        stream, seed = Stream(request, self._cancelled), params.seed if params.seed is not None else secrets.randbits(63)
        first, *others = (self._sequence(stream, i, limit, seed, constraint) for i in range(params.n))
        first.twins = others
        with self._changed:
            if self._is_closing:
                raise TauonError("the engine is closed and takes no more requests")
            waiting = self._waiting()
            if waiting + params.n > self.config.max_waiting:
                self._meter.refused += 1
                raise QueueFull(f"{waiting} answers wait already, and at most {self.config.max_waiting} may. Try again later.")
            self._inbox.append(first)
            self._alive += params.n
            self._meter.requests += 1
            self._changed.notify_all()
        return stream

    def swap(self, model: GPT) -> None:
        """Continue with another model between two steps, and return when it is in use. Running answers keep what they have written; the new
        model reads it again and continues. None is lost.

        Raises `RequestError` where vocabulary or longest sequence differ.
        """
        for name, new, old in (("vocabulary", model.embed.num_embeddings, self.vocab), ("longest sequence", model.seq_len, self.seq_len)):
            if new != old:
                raise RequestError("model", f"its {name} is {new}, and that of the model in use {old}. Start another engine for it.")
        runner = self._runner(model)  # weights are packed here, while the worker continues
        release_openmp_threads()
        self._between_steps(lambda: self._core.change_runner(runner))

    def stats(self) -> EngineStats:
        """Return figures of now."""
        with self._changed:
            scheduler, meter = self._core.scheduler, self._meter
            return EngineStats(
                running=len(scheduler.running), waiting=self._waiting(), blocks_used=scheduler.pool.used,
                blocks_cached=scheduler.pool.cached, blocks_total=scheduler.pool.total, requests=meter.requests, finished=meter.finished,
                refused=meter.refused, preemptions=scheduler.preemptions, prompt_tokens=meter.prompt_tokens,
                cached_tokens=meter.cached_tokens, generated_tokens=meter.generated_tokens, tokens_per_second=meter.tokens_per_second(),
                time_to_first_token=tuple(meter.first),
            )  # fmt: skip

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, and wait until all have ended. Returns whether they did within `timeout` seconds."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._alive == 0, timeout)

    def close(self) -> None:
        """Cancel what runs and stop the worker."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

        def cancel_all() -> None:
            for s in (*self._inbox, *self._core.all_sequences()):
                s.stream.cancel()

        self._between_steps(cancel_all)
        self._worker.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _limit(self, request: Request) -> int:
        """Return the most tokens of prompt and answer together; refuse what cannot be served."""
        params, length = request.params, len(request.prompt)
        if not length:
            raise RequestError("prompt", "has no token. Start with the tokenizer's beginning-of-text token.")
        for name, ids in (("prompt", request.prompt), ("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            odd = next((i for i in ids if not 0 <= i < self.vocab), None)
            if odd is not None:
                raise RequestError(name, f"token id {odd} is outside the model's 0 to {self.vocab - 1}")
        if length >= self.seq_len:
            raise RequestError("prompt", f"{length} tokens, and the model takes at most {self.seq_len}, of which at least one is written")
        if params.stop and self.tokenizer is None:
            raise RequestError("stop", "needs a tokenizer")
        holds = self.blocks * self.config.block_size
        wanted = length + 1 if params.max_tokens is None else min(self.seq_len, length + params.max_tokens)
        if wanted - 1 > holds:  # the last token is never read
            raise RequestError("max_tokens", f"prompt and answer have up to {wanted} tokens, and the whole KV cache holds {holds}")
        return min(self.seq_len, holds + 1) if params.max_tokens is None else wanted

    def _constraint(self, request: Request) -> Constraint | None:
        outputs = request.params.structured_outputs
        if outputs is None:
            return None
        if self._grammars is None:
            raise RequestError("structured_outputs", "needs a tokenizer")
        return self._grammars.compile(outputs)

    def _sequence(self, stream: Stream, index: int, limit: int, seed: int, constraint: Constraint | None) -> SequenceState:
        request, params = stream.request, stream.request.params
        ends = set(params.stop_token_ids)
        if self.tokenizer is not None and not params.ignore_eos:
            ends.add(self.tokenizer.eos)
        own = constraint.copy() if constraint is not None and index else constraint
        draw = Draw(params, Sampling(seed=seed).generator(index), tuple(map(int, request.prompt)), constraint=own)
        return SequenceState(stream, index, draw, limit, frozenset(ends), TextOutput(params.stop))

    def _runner(self, model: GPT) -> ModelRunner:
        config = self.config
        return ModelRunner(model, blocks=self.blocks, block_size=config.block_size, texts=config.max_running, exact=config.exact)

    def _waiting(self) -> int:
        return sum(1 + len(s.twins) for s in (*self._inbox, *tuple(self._core.scheduler.waiting)))

    def _cancelled(self, _: Stream) -> None:
        with self._changed:
            self._has_cancelled = True
            self._changed.notify_all()

    def _between_steps(self, job: Callable[[], None]) -> None:
        """Let the worker run `job`, and wait for it. Nothing happens if the worker has ended."""
        done = threading.Event()
        failed: list[Exception] = []

        def run() -> None:
            try:
                job()
            except Exception as err:
                failed.append(err)
            done.set()

        with self._changed:
            self._jobs.append(run)
            self._changed.notify_all()
        while not done.wait(0.2) and self._worker.is_alive():
            pass
        if failed:
            raise failed[0]

    def _ended(self, s: SequenceState) -> None:
        with self._changed:
            self._alive -= 1
            if s.stream.done:
                self._meter.finished += 1
                self._meter.prompt_tokens += s.stream.usage.prompt_tokens
                self._meter.cached_tokens += s.stream.usage.cached_tokens
                if s.stream.first_token_at:
                    self._meter.first.append(s.stream.first_token_at - s.stream.submitted)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._alive or self._jobs or self._is_closing)
                jobs = list(self._jobs)
                self._jobs.clear()
            for job in jobs:
                job()
            with self._changed:
                if self._is_closing and self._alive == 0:
                    return
                self._core.add(self._inbox)
                self._inbox.clear()
            try:
                if self._has_cancelled:
                    self._has_cancelled = False
                    self._core.end_cancelled()
                written = self._core.step()
                if written:
                    self._meter.add_tokens(written)
            except Exception as err:  # of the engine or the machine (memory): what runs ends, what waits is served
                self._core.fail_running(err)
