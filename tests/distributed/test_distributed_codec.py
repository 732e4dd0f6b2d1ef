"""Codecs against closed forms and torch; error feedback: nothing is lost; what is not finite stays visible."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse, registered
from tauon.distributed.codec import CodecConfig, Feedback, Int8, NoCodec, TopK, TruncatedFloats, payload_bytes
from tauon.errors import RecipeError

CASES: dict[str, dict[str, Any]] = {"none": {}, "bf16": {}, "int8": {"block": 64}, "top-k": {"k": 0.1}}


def numbers(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(n).astype(np.float32)


def test_every_codec_has_a_case() -> None:
    assert set(registered("codec")) >= set(CASES)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_a_payload_says_the_size_and_is_not_written_to(kind: str, size: int) -> None:
    codec, x = parse(CodecConfig, {"kind": kind, **CASES[kind]}), numbers(size)
    before = x.copy()
    payload = codec.encode(x)
    for part in payload:
        part.flags.writeable = False  # as Ray's object store gives them
    out = codec.decode(payload, size)
    assert out.dtype == np.float32 and out.shape == (size,)
    np.testing.assert_array_equal(x, before)


def test_none_is_the_identity() -> None:
    x = numbers(100)
    np.testing.assert_array_equal(NoCodec().decode(NoCodec().encode(x), 100), x)


@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_bf16_is_torch_s_rounding(values: list[float]) -> None:
    x = np.array(values, np.float32)
    ours = TruncatedFloats().decode(TruncatedFloats().encode(x), len(x))
    np.testing.assert_array_equal(ours, torch.from_numpy(x).bfloat16().float().numpy())


@pytest.mark.parametrize("size", [1, 64, 100, 640])
def test_int8_errs_by_at_most_half_a_step_of_its_block(size: int) -> None:
    codec, x = Int8(block=64), numbers(size) * np.logspace(-3, 3, size, dtype=np.float32)
    out = codec.decode(codec.encode(x), size)
    for start in range(0, size, 64):
        block = x[start : start + 64]
        assert np.abs(out[start : start + 64] - block).max() <= np.abs(block).max() / 254 * (1 + 1e-5)


def test_int8_of_nothing_is_nothing() -> None:
    codec = Int8(block=4)
    np.testing.assert_array_equal(codec.decode(codec.encode(np.zeros(10, np.float32)), 10), np.zeros(10))


def test_top_k_keeps_the_largest() -> None:
    x = np.array([0.1, -5.0, 2.0, 0.0, -3.0], np.float32)
    codec = TopK(k=2)
    np.testing.assert_array_equal(codec.decode(codec.encode(x), 5), [0, -5, 0, 0, -3])
    assert codec.count(10) == 2 and TopK(k=0.5).count(10) == 5 and TopK(k=0.001).count(10) == 1 and TopK(k=100).count(10) == 10


@pytest.mark.parametrize(("kind", "bytes_"), [("none", 40_000), ("bf16", 20_000), ("int8", 10_000 + 4 * 157), ("top-k", 8 * 1000)])
def test_payloads_take_the_bytes_that_they_should(kind: str, bytes_: int) -> None:
    assert payload_bytes(parse(CodecConfig, {"kind": kind, **CASES[kind]}).encode(numbers(10_000))) == bytes_


def test_error_feedback_what_was_sent_and_what_is_kept_is_what_was_given() -> None:
    codec = TopK(k=0.05)
    feedback = Feedback(codec, [200])
    sent, given_ = np.zeros(200), np.zeros(200)
    for step in range(50):
        x = numbers(200, step)
        given_ += x
        sent += codec.decode(feedback.encode(0, x.copy()), 200)
    np.testing.assert_allclose(sent + feedback.kept[0], given_, atol=1e-4)


def test_with_error_feedback_the_mean_of_what_is_sent_comes_to_what_is_given() -> None:
    codec, x, n = TopK(k=0.05), np.abs(numbers(100)) + 0.1, 2000
    feedback = Feedback(codec, [100])
    sent = sum(codec.decode(feedback.encode(0, x.copy()), 100).astype(np.float64) for _ in range(n))
    np.testing.assert_allclose(sent / n, x, rtol=0.1)
    assert np.abs(feedback.kept[0]).max() < 2 * 100 / 5 * x.max()  # what waits is bounded: each entry's turn comes


def test_a_step_that_is_not_finite_is_seen_and_does_not_stay() -> None:
    for kind, settings_ in CASES.items():
        codec = parse(CodecConfig, {"kind": kind, **settings_})
        for bad in (np.nan, np.inf):
            feedback = Feedback(codec, [300])
            x = numbers(300)
            x[7] = bad
            assert not np.isfinite(codec.decode(feedback.encode(0, x), 300)).all(), (kind, bad)
            assert np.isfinite(codec.decode(feedback.encode(0, numbers(300, 1)), 300)).all(), (kind, bad)


@pytest.mark.parametrize("k", [1.5, 1.0, 0, -3])
def test_a_k_that_is_no_share_and_no_number_is_refused(k: float) -> None:
    with pytest.raises(RecipeError):
        parse(CodecConfig, {"kind": "top-k", "k": k})
