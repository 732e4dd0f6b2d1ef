"""The engine as its clients see it: streams, limits, faults, cancellation, another model in mid-stream."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from generate.serving import LAYOUTS, SEQ, VOCAB, Engine, EngineConfig, Request, SamplingParams, answers, prompt, small, tokenizers
from tauon.data.tokenizer import ByteTokenizer
from tauon.errors import CheckpointError, TauonError
from tauon.generate import QueueFull, RequestError, StructuredOutputs, generate
from tauon.generate.engine_core import EngineCore
from tauon.generate.sample import Sampling

BYTES = {"vocab": 257}


def test_200_requests_at_once_all_finish() -> None:
    model = small(layers=1)
    with Engine(model, None, EngineConfig(2**18, max_running=16)) as engine:
        streams = [engine.submit(Request(prompt(1 + i % 40, i), SamplingParams(seed=i, max_tokens=1 + i % 20))) for i in range(200)]
        for i, s in enumerate(streams):
            (answer,) = s.result(60)
            assert len(answer.ids) == 1 + i % 20 and answer.finish_reason == "length"
        deadline = time.monotonic() + 60
        while engine.stats().generated_tokens < 2100 and time.monotonic() < deadline:  # a step is counted after its answers were given out
            time.sleep(0.01)
        stats = engine.stats()
    assert (stats.finished, stats.running, stats.waiting, stats.blocks_used) == (200, 0, 0, 0)
    assert stats.generated_tokens == sum(1 + i % 20 for i in range(200)) and len(stats.time_to_first_token) == 200
    assert stats.to_json()["prefix_hit_rate"] == stats.cached_tokens / stats.prompt_tokens


def test_an_answer_ends_where_the_longest_sequence_is_full() -> None:
    ((answer,),) = answers(small(), [Request(prompt(90, 0), SamplingParams(temperature=0))])[0]
    assert len(answer[0]) == SEQ - 90 and answer[3] == "length"


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (lambda: Request([]), "no token"),
        (lambda: Request([1, VOCAB]), f"token id {VOCAB} is outside the model's 0 to {VOCAB - 1}"),
        (lambda: Request([1] * SEQ), f"{SEQ} tokens, and the model takes at most {SEQ}"),
        (lambda: Request([1] * 50, SamplingParams(max_tokens=40)), "up to 90 tokens, and the whole KV cache holds 64"),
        (lambda: Request([1], SamplingParams(logit_bias={99: 1.0})), "logit_bias: token id 99"),
        (lambda: Request([1], SamplingParams(stop=("a",))), "stop: needs a tokenizer"),
        (lambda: Request([1], SamplingParams(temperature=float("nan"))), "temperature: nan"),
        (lambda: Request([1], SamplingParams(top_p=0)), "top_p: 0 is not above 0"),
        (lambda: Request([1], SamplingParams(n=0)), "n: 0 is outside"),
        (lambda: Request([1], SamplingParams(stop=("",))), "empty text"),
        (lambda: Request([1], SamplingParams(structured_outputs=StructuredOutputs(regex="a", choice=("b",)))), "exactly one"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_figure(request_: Any, says: str) -> None:
    with Engine(small(), None, EngineConfig(kv_cache_bytes=64 * 2 * 2 * 32 * 4)) as engine, pytest.raises(RequestError, match=says):
        engine.submit(request_())


def test_a_cache_without_space_for_a_block_is_refused() -> None:
    with pytest.raises(RequestError, match="one block of the cache takes 8,192"):
        Engine(small(), None, EngineConfig(kv_cache_bytes=8191))


def test_a_full_queue_refuses_and_queues_nothing() -> None:
    with Engine(small(), None, EngineConfig(max_running=1, max_waiting=3)) as engine:
        hold = threading.Event()
        engine._jobs.append(lambda: hold.wait(20))
        first = engine.submit(Request([1], SamplingParams(max_tokens=2)))
        time.sleep(0.05)  # the worker waits, in the job
        streams = [first, *(engine.submit(Request([1], SamplingParams(max_tokens=2))) for _ in range(2))]
        with pytest.raises(QueueFull, match="3 answers wait already"):
            engine.submit(Request([1], SamplingParams(max_tokens=2)))
        hold.set()
        assert [len(s.result(20)[0].ids) for s in streams] == [2, 2, 2]
        assert engine.stats().refused == 1 and engine.stats().requests == 3


def test_cancelling_ends_the_answer_and_frees_its_blocks() -> None:
    with Engine(small(), None, EngineConfig(max_running=2)) as engine:
        streams = [engine.submit(Request([i], SamplingParams(n=2))) for i in range(4)]  # two wait
        token = streams[0].get(20)
        assert token is not None and token.id is not None
        for s in (streams[0], streams[3]):
            s.cancel()
        assert [a.finish_reason for a in streams[3].result(20)] == ["cancelled"] * 2
        assert {a.finish_reason for a in streams[0].result(20)} <= {"cancelled", "length"}
        assert [a.finish_reason for s in streams[1:3] for a in s.result(20)] == ["length"] * 4
        assert engine.drain(20)
        assert engine.stats().blocks_used == 0 and engine.stats().finished == 4


def test_closing_cancels_and_draining_finishes() -> None:
    engine = Engine(small())
    stream = engine.submit(Request([1], SamplingParams(max_tokens=30)))
    assert engine.drain(20) and stream.result()[0].finish_reason == "length"
    with pytest.raises(TauonError, match="takes no more requests"):
        engine.submit(Request([1]))
    engine.close()
    engine.close()
    other = Engine(small())
    cut = [other.submit(Request([1], SamplingParams(max_tokens=90))) for _ in range(50)]
    other.close()
    assert all(s.done for s in cut) and not other._worker.is_alive()


def test_a_task_of_asyncio_reads_a_stream() -> None:
    async def read(engine: Engine, i: int) -> list[int | None]:
        return [token.id async for token in engine.submit(Request([i], SamplingParams(seed=i, max_tokens=20)))]

    async def both(engine: Engine) -> list[list[int | None]]:
        return await asyncio.gather(*(read(engine, i) for i in range(5)))

    model = small()
    with Engine(model) as engine:
        found = asyncio.run(both(engine))
    assert found == [answers(model, [Request([i], SamplingParams(seed=i, max_tokens=20))])[0][0][0][0] for i in range(5)]


def test_swapping_the_model_in_mid_stream_loses_nothing() -> None:
    old, new = small(seed=0), small(seed=1)
    with Engine(old) as engine:
        streams = [engine.submit(Request(prompt(5, i), SamplingParams(temperature=0, max_tokens=80))) for i in range(5)]
        for s in streams:
            s.get(20)
        engine.swap(new)
        found = [[t.id for t in s] for s in streams]
        after = engine.submit(Request(prompt(5, 9), SamplingParams(temperature=0, max_tokens=20))).result(20)[0].ids
        with pytest.raises(RequestError, match="its vocabulary is 62"):
            engine.swap(small(vocab=VOCAB + 1))
    assert [len(f) for f in found] == [79] * 5  # the first was taken by `get`
    assert after == generate(new, prompt(5, 9), max_tokens=20, sampling=Sampling(temperature=0))[0]
    for i, ids in enumerate(found):  # from some token on, what is written is the new model's continuation of the whole text
        first = generate(old, prompt(5, i), max_tokens=1, sampling=Sampling(temperature=0))[0]
        text = prompt(5, i) + first + ids
        assert text[-1] == generate(new, text[:-1], max_tokens=1, sampling=Sampling(temperature=0))[0][0]


def test_a_request_that_fails_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    excluded = SamplingParams(max_tokens=5, logit_bias=dict.fromkeys(range(VOCAB), -100.0))
    with Engine(model) as engine:
        streams = [engine.submit(Request([i], excluded if i == 2 else SamplingParams(seed=i, max_tokens=30))) for i in range(5)]
        with pytest.raises(ValueError, match="no token is left"):
            streams[2].result(20)
        assert [len(s.result(20)[0].ids) for i, s in enumerate(streams) if i != 2] == [30] * 4
        step = EngineCore.step
        calls = iter([True])
        monkeypatch.setattr(EngineCore, "step", lambda self: 1 / 0 if next(calls, False) else step(self))
        with pytest.raises(ZeroDivisionError):
            engine.submit(Request([1], SamplingParams(max_tokens=3))).result(20)
        assert len(engine.submit(Request([1], SamplingParams(max_tokens=3))).result(20)[0].ids) == 3
        assert engine.stats().blocks_used == 0


def test_a_model_that_diverged_is_named_as_such() -> None:
    model = small()
    with torch.no_grad():
        model.head.weight[3, 3] = float("nan")
    with Engine(model) as engine, pytest.raises(CheckpointError, match="training diverged"):
        engine.submit(Request([1], SamplingParams(max_tokens=3))).result(20)


def test_stop_strings_tokens_and_the_end_token() -> None:
    model, tokenizer = small(**BYTES), ByteTokenizer()
    with Engine(model, tokenizer) as engine:

        def answer(**params: Any) -> Any:
            return engine.submit(Request([65], SamplingParams(seed=4, temperature=1.0, max_tokens=60, **params))).result(20)[0]

        free = answer(ignore_eos=True, logit_bias=dict.fromkeys(range(128, 257), -100.0))
        assert len(free.ids) == 60 and free.text == bytes(free.ids).decode()
        stop = free.text[20:23]
        cut = answer(ignore_eos=True, logit_bias=dict.fromkeys(range(128, 257), -100.0), stop=("zzzz", stop))
        assert cut.text == free.text[: free.text.find(stop)] and (cut.finish_reason, cut.stop_reason) == ("stop", stop)
        token = answer(ignore_eos=True, logit_bias=dict.fromkeys(range(128, 257), -100.0), stop_token_ids=(free.ids[10],))
        at = free.ids.index(free.ids[10])
        assert token.ids == free.ids[: at + 1] and token.text == free.text[:at] and token.stop_reason == free.ids[10]
        ended = answer(logit_bias={tokenizer.eos: 100.0})
        assert (ended.ids, ended.text, ended.finish_reason, ended.stop_reason) == ([tokenizer.eos], "", "stop", None)


def test_penalties_and_bias_shape_the_text() -> None:
    model = small()
    with Engine(model) as engine:

        def ids(**params: Any) -> list[int]:
            return engine.submit(Request([5], SamplingParams(temperature=0, max_tokens=40, **params))).result(20)[0].ids

        assert set(ids(logit_bias={7: 100.0})) == {7}
        assert len(set(ids(presence_penalty=100.0))) == 40  # no token twice
        assert len(set(ids(frequency_penalty=100.0))) == 40
        repeated = ids(logit_bias={7: 100.0}, repetition_penalty=100.0)
        assert repeated[0] == 7
        assert ids(repetition_penalty=1.0) == ids()


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "gpt"])
def test_greedy_text_equals_transformers(layout: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tauon.models.pretrained.huggingface_write import write_huggingface

    model = small(layout)
    write_huggingface(tmp_path / "hf", LAYOUTS[layout], model.state_dict())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    prompts = [prompt(n, n) for n in (1, 9, 40)]
    found, _ = answers(model, [Request(p, SamplingParams(temperature=0, max_tokens=40)) for p in prompts])
    for p, ((ids, *_),) in zip(prompts, found, strict=True):
        out = theirs.generate(torch.tensor([p]), max_new_tokens=40, min_new_tokens=40, do_sample=False, pad_token_id=0)
        assert ids == out[0, len(p) :].tolist()


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe"])
def test_each_tokenizer_gives_its_own_text(kind: str) -> None:
    tokenizer = tokenizers()[kind]
    model = small(vocab=tokenizer.vocab_size)
    with Engine(model, tokenizer) as engine:
        (answer,) = engine.submit(Request(tokenizer.encode("fox").tolist(), SamplingParams(seed=1, max_tokens=50, ignore_eos=True))).result(
            20
        )
    assert answer.text == tokenizer.decode(answer.ids)
