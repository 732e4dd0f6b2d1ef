"""The tokens of a request, and their log-probabilities to the last bit, are those that it gets alone, whatever else is in the batch."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generate.serving import LAYOUTS, Engine, EngineConfig, Request, SamplingParams, answers, prompt, small
from tauon.generate import Sampling, generate

requests_of = st.builds(
    lambda start, extra, seed, params: Request([*prompt(start, 0), *prompt(extra, seed)], params),
    st.sampled_from([0, 5, 16, 40]),
    st.integers(1, 30),
    st.integers(1, 3),
    st.builds(
        SamplingParams, temperature=st.sampled_from([0.0, 0.7, 1.5]), top_k=st.sampled_from([None, 5]), top_p=st.sampled_from([1.0, 0.9]),
        min_p=st.sampled_from([0.0, 0.05]), repetition_penalty=st.sampled_from([1.0, 1.3]), presence_penalty=st.sampled_from([0.0, 0.5]),
        seed=st.integers(0, 5), max_tokens=st.integers(1, 25), logprobs=st.just(3), n=st.sampled_from([1, 1, 3]),
    ),
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=6, deadline=None)
@given(
    requests=st.lists(requests_of, min_size=1, max_size=8),
    blocks=st.sampled_from([12, 40, 400]),
    block_size=st.sampled_from([8, 16]),
    chunk=st.sampled_from([7, 16, 64]),
    running=st.sampled_from([2, 9]),
    caching=st.booleans(),
    pauses=st.lists(st.sampled_from([0.0, 0.0, 0.003]), min_size=8, max_size=8),
)
def test_any_mix_in_any_order_gives_what_each_request_gets_alone(
    layout: str, requests: list[Request], blocks: int, block_size: int, chunk: int, running: int, caching: bool, pauses: list[float]
) -> None:
    model = small(layout)
    per_block = bytes_of_block(model, block_size)
    config = EngineConfig(blocks * per_block, block_size, running, 100, chunk, caching)
    alone: list[Any] = [answers(model, [r], EngineConfig(prefix_caching=False))[0][0] for r in requests]
    with Engine(model, None, config) as engine:
        assert engine.exact
        streams = []
        for r, pause in zip(requests, pauses, strict=False):
            streams.append(engine.submit(r))
            time.sleep(pause)
        together = [[(c.ids, c.logprobs, c.top_logprobs, c.finish_reason) for c in s.result(60)] for s in streams]
        stats = engine.stats()
    assert together == alone
    assert stats.blocks_used == stats.running == stats.waiting == 0 and stats.blocks_total <= blocks


def bytes_of_block(model: Any, block_size: int) -> int:
    attention = model.layers[0].attention
    return 2 * 4 * len(model.layers) * attention.kv_heads * attention.head_size * block_size


def test_preemption_and_prefix_hits_really_occur_and_change_nothing() -> None:
    model = small()
    requests = [Request(prompt(30, 0) + prompt(3, i), SamplingParams(seed=i, max_tokens=40, logprobs=2)) for i in range(8)]
    alone = [answers(model, [r], EngineConfig(prefix_caching=False))[0][0] for r in requests]
    together, stats = answers(model, requests, EngineConfig(12 * bytes_of_block(model, 8), 8, 6, 100, 16))
    assert together == alone
    assert stats.preemptions > 0 and stats.cached_tokens > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_text_equals_generate(layout: str) -> None:
    model = small(layout)
    requests = [Request(prompt(n, n), SamplingParams(temperature=0, max_tokens=30)) for n in (1, 2, 17, 60)]
    for r, found in zip(requests, answers(model, requests)[0], strict=True):
        (expected,) = generate(model, r.prompt, max_tokens=30, sampling=Sampling(temperature=0))
        assert found[0][0] == expected


def test_sampled_text_equals_generate_with_the_same_seed() -> None:
    model = small("llama")
    params = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, seed=3, n=4, max_tokens=30)
    ((*four,), *_), _ = answers(model, [Request(prompt(9, 1), params)])
    expected = generate(model, prompt(9, 1), max_tokens=30, samples=4, sampling=Sampling(0.8, 20, 0.9, 3))
    assert [one[0] for one in four] == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_are_those_of_the_whole_sequence_at_once(layout: str) -> None:
    model, start = small(layout), prompt(11, 2)
    ((ids, logprobs, top, _),) = answers(model, [Request(start, SamplingParams(seed=0, max_tokens=40, logprobs=5))])[0][0]
    with torch.no_grad():
        expected = model.logits(model(torch.tensor([start + ids])))[0].log_softmax(-1)[len(start) - 1 : -1]
    torch.testing.assert_close(torch.tensor(logprobs), expected.gather(1, torch.tensor(ids)[:, None])[:, 0], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor([[p for _, p in t] for t in top]), expected.topk(5).values, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("exact", [True, False])
def test_the_model_is_left_as_it_was_and_is_served_in_evaluation_mode(exact: bool) -> None:
    model = small(dropout=0.5)
    request = Request([1, 2], SamplingParams(temperature=0, max_tokens=12))
    (expected,) = generate(model, [1, 2], max_tokens=12, sampling=Sampling(temperature=0))
    model.train()
    model.embed.weight.requires_grad_(False)
    before = {k: (v.clone(), v.requires_grad) for k, v in model.named_parameters()}
    modules = [type(m) for m in model.modules()]
    assert answers(model, [request], EngineConfig(exact=exact))[0][0][0][0] == expected
    assert model.training and modules == [type(m) for m in model.modules()]
    assert all(torch.equal(v, before[k][0]) and v.requires_grad == before[k][1] for k, v in model.named_parameters())
