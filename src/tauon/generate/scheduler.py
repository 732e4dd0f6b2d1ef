"""Which tokens the model reads in the next step, and which blocks of the cache they get.

Every answer that is being written gets its next token in each step; parts of prompts fill the step up to `prefill_chunk` tokens (Sarathi,
arXiv:2308.16369). When no block is left, the answer that started last is set back: its blocks are released, and it is read again, tokens
written so far included, when there is space. It neither loses nor repeats a token.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from tauon.generate.blocks import BlockPool, chain_hashes
from tauon.generate.engine_config import EngineConfig
from tauon.generate.runner import ModelRunner
from tauon.generate.sequence import SequenceState

__all__ = ["Scheduler", "Work"]


@dataclass(frozen=True)
class Work:
    """Tokens of one answer in a step."""

    sequence: SequenceState
    tokens: int

    @property
    def completes(self) -> bool:
        """Whether the model has then read all tokens, so that the next one can be chosen."""
        return self.tokens == self.sequence.pending


class Scheduler:
    """Answers that wait and that run, and the blocks of those that run."""

    def __init__(self, runner: ModelRunner, pool: BlockPool, config: EngineConfig) -> None:
        self.runner, self.pool = runner, pool
        self.prefill_chunk, self.prefix_caching = config.prefill_chunk, config.prefix_caching
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        """In the order in which they started."""
        self.preemptions = 0
        self._rows = list(range(runner.tables.shape[0] - 1, -1, -1))

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.runner.cache.block_size

    def plan(self) -> list[Work]:
        """Return the work of the next step, with blocks for all of it."""
        work: list[Work] = []
        budget = self.prefill_chunk
        for s in list(self.running):
            if s.table < 0 or s.done:  # set back for one before it, or ended
                continue
            count = 1 if s.pending == 1 else min(s.pending, budget)
            if count == 0:
                continue
            if not self._make_space(s, count):
                continue
            budget -= count if s.pending > 1 else 0
            work.append(Work(s, count))
        while self.waiting and self._rows and budget > 0 and self._start(self.waiting[0]):
            s = self.waiting.popleft()
            count = min(s.pending, budget)
            budget -= count
            got = self._grow(s, count)
            assert got
            work.append(Work(s, count))
        return work

    def advance(self, work: list[Work]) -> None:
        """Record that the model has read the tokens of `work`."""
        size = self.block_size
        for w in work:
            s = w.sequence
            s.computed += w.tokens
            full = s.computed // size
            if self.prefix_caching and full > len(s.hashes):
                known = len(s.hashes)
                s.hashes = chain_hashes(s.tokens[: full * size], size, s.hashes)
                for i in range(known, full):
                    self.pool.register(s.blocks[i], s.hashes[i])

    def fork(self, s: SequenceState, twin: SequenceState) -> bool:
        """Start `twin`, whose prompt `s` has just read, on the same blocks; the last one is copied, where it is not full. False: without a free
        row or block it waits, and reads the prompt itself.
        """
        full, rest = divmod(s.computed, self.block_size)
        if not self._rows or (rest and self.pool.available == 0):
            self.waiting.appendleft(twin)
            return False
        for block in s.blocks[:full]:
            self.pool.share(block)
        twin.blocks, twin.hashes, twin.computed = s.blocks[:full], list(s.hashes), s.computed
        if rest:
            twin.blocks.append(self.pool.take())
            self.runner.cache.copy_block(s.blocks[full], twin.blocks[full])
        twin.table = self._rows.pop()
        if twin.blocks:
            self.runner.set_table(twin.table, 0, twin.blocks)
        self.running.append(twin)
        return True

    def leave(self, s: SequenceState) -> None:
        """Release all that an answer has in the cache, last block first: the start of a text is kept longest."""
        for block in reversed(s.blocks):
            self.pool.release(block)
        s.blocks, s.hashes, s.computed = [], [], 0
        if s.table >= 0:
            self._rows.append(s.table)
            s.table = -1
            self.running.remove(s)

    def set_back(self, s: SequenceState) -> None:
        """Take a running answer's blocks, and let it start again before those that wait."""
        self.leave(s)
        self.waiting.appendleft(s)
        self.preemptions += 1

    def _make_space(self, s: SequenceState, count: int) -> bool:
        """Give `s` the blocks for `count` more tokens, from those that started after it if need be. False: `s` itself was set back."""
        while not self._grow(s, count):
            last = self.running[-1]
            self.set_back(last)
            if last is s:
                return False
        return True

    def _grow(self, s: SequenceState, count: int) -> bool:
        have = len(s.blocks)
        need = -(-(s.computed + count) // self.block_size) - have
        if need > self.pool.available:
            return False
        if need > 0:
            s.blocks += [self.pool.take() for _ in range(need)]
            self.runner.set_table(s.table, have, s.blocks[have:])
        return True

    def _start(self, s: SequenceState) -> bool:
        """Let a waiting answer run, with the blocks of its start that the pool has. False: there is no space for all of its tokens yet."""
        found: list[int] = []
        hashes: list[bytes] = []
        if self.prefix_caching:  # all tokens but the last, whose logits are needed
            for digest in chain_hashes(s.tokens[:-1], self.block_size):
                block = self.pool.find(digest)
                if block is None:
                    break
                found.append(block)
                hashes.append(digest)
        if -(-len(s.tokens) // self.block_size) - len(found) > self.pool.available:
            for block in reversed(found):
                self.pool.release(block)
            return False
        s.blocks, s.hashes, s.computed = found, hashes, len(found) * self.block_size
        s.table = self._rows.pop()
        if found:
            self.runner.set_table(s.table, 0, found)
        if not s.draw.answer:
            s.stream.usage.cached_tokens = max(s.stream.usage.cached_tokens, s.computed)
        self.running.append(s)
        return True
