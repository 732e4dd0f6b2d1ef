"""Bookkeeping of the paged cache: no block is lost, none is written by two, and a block is found by exactly the tokens that it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from generate.serving import prompt, small
from tauon.generate.blocks import BlockPool, chain_hashes
from tauon.generate.choose import Draw
from tauon.generate.engine_config import EngineConfig
from tauon.generate.engine_core import EngineCore
from tauon.generate.request import Request, SamplingParams
from tauon.generate.runner import ModelRunner
from tauon.generate.sequence import SequenceState
from tauon.generate.stream import Stream
from tauon.generate.text_output import TextOutput

MODEL = small(layers=1)
SIZE, BLOCKS = 4, 14


class Serving(RuleBasedStateMachine):
    """Requests arrive, steps run, answers are cancelled and models swapped, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.config = EngineConfig(1, SIZE, 4, 100, 9, True)
        self.ended: list[SequenceState] = []
        self.core = EngineCore(self.runner(), BLOCKS, self.config, [], self.ended.append)
        self.added = 0

    def runner(self) -> ModelRunner:
        return ModelRunner(MODEL, blocks=BLOCKS, block_size=SIZE, texts=4, exact=False)

    @rule(shared=st.integers(0, 20), extra=st.integers(1, 6), new=st.integers(1, 20), n=st.sampled_from([1, 1, 1, 3]))
    def add(self, shared: int, extra: int, new: int, n: int) -> None:
        tokens = prompt(20, 0)[:shared] + prompt(extra, self.added)
        params = SamplingParams(seed=self.added, n=n, max_tokens=new)
        stream = Stream(Request(tokens, params))
        states = [
            SequenceState(
                stream, i, Draw(params, torch.Generator().manual_seed(i), tuple(tokens)), len(tokens) + new, frozenset(), TextOutput()
            )
            for i in range(n)
        ]
        states[0].twins = states[1:]
        self.core.add(states[:1])
        self.added += n

    @rule(steps=st.integers(1, 8))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.core.step()

    @precondition(lambda self: self.core.all_sequences())
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        data.draw(st.sampled_from(self.core.all_sequences())).stream.cancel()
        self.core.end_cancelled()

    @precondition(lambda self: self.added > 3)
    @rule()
    def swap(self) -> None:
        self.core.change_runner(self.runner())

    @invariant()
    def every_block_is_where_it_should_be(self) -> None:
        pool, running = self.core.scheduler.pool, self.core.scheduler.running
        held = [block for s in running for block in s.blocks]
        assert 0 not in held
        for block in range(1, BLOCKS + 1):
            assert pool.references(block) == held.count(block)
        assert pool.used + pool.available == BLOCKS and pool.used == len(set(held))
        for s in running:
            writable = s.blocks[s.computed // SIZE :]
            assert all(held.count(block) == 1 for block in writable)  # what is still written belongs to one answer
            assert len(s.blocks) * SIZE >= s.computed and s.computed <= len(s.tokens)
            places = self.core.scheduler.runner.tables[s.table, : s.computed].tolist()
            assert places == [s.blocks[i // SIZE] * SIZE + i % SIZE for i in range(s.computed)]
            assert s.hashes == chain_hashes(s.tokens[: len(s.hashes) * SIZE], SIZE)
        assert len({s.table for s in running}) == len(running) <= 4
        assert len(self.ended) + len(self.core.all_sequences()) == self.added

    def teardown(self) -> None:
        for _ in range(2000):
            if not self.core.all_sequences():
                break
            self.core.step()
        assert len(self.ended) == self.added and all(s.done for s in self.ended)
        assert self.core.scheduler.pool.used == 0 and not self.core.scheduler.running


TestServing = Serving.TestCase
TestServing.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_block_is_found_by_its_tokens_and_all_before_them() -> None:
    a, b = chain_hashes([1, 2, 3, 4, 5], 2), chain_hashes([9, 2, 3, 4], 2)
    assert len(a) == 2 and len({*a, *b}) == 4
    assert chain_hashes([1, 2, 3, 4, 5, 6], 2, a)[:2] == a == chain_hashes([1, 2, 3, 4], 2)


def test_the_least_recently_used_block_is_taken_first() -> None:
    pool = BlockPool(3)
    blocks = [pool.take() for _ in range(3)]
    for block, digest in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.register(block, digest)
        pool.release(block)
    assert pool.find(b"a") == blocks[0]
    pool.release(blocks[0])  # used again: now the most recent
    assert pool.take() == blocks[1]
    assert pool.find(b"b") is None and pool.find(b"c") == blocks[2]
    assert pool.take() == blocks[0]
    with pytest.raises(IndexError, match="no block"):
        pool.take()
