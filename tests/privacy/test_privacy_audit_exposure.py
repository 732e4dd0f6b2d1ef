"""Exposure and extraction: the skew normal is SciPy's, ranks are exact where they can be, a model that learned a secret tells it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import TokenizerConfig
from tauon.models import ModelConfig, materialize
from tauon.privacy.audit import Secret, SkewNormal, exposure, extract, fit_skew_normal, surprise
from tauon.privacy.audit.secrets import sentence_ids

DIGITS = "0123456789"


@pytest.mark.parametrize(("shape", "place", "width"), [(0.0, 0.0, 1.0), (3.0, -2.0, 0.5), (-5.0, 40.0, 6.0)])
def test_the_tail_of_a_skew_normal_is_scipys(shape: float, place: float, width: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.skewnorm(shape, place, width)
    for q in (1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.99):
        x = float(theirs.ppf(q))
        assert SkewNormal(place, width, shape).log_cdf(x) == pytest.approx(math.log(theirs.cdf(x)), rel=2e-3, abs=2e-3), q


def test_the_fit_is_as_likely_as_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for shape in (-4.0, 0.5, 6.0):
        values = stats.skewnorm.rvs(shape, loc=30, scale=4, size=2000, random_state=1)
        ours, theirs = fit_skew_normal(values), stats.skewnorm.fit(values)
        mine = stats.skewnorm.logpdf(values, ours.shape, ours.place, ours.width).mean()
        assert mine > stats.skewnorm.logpdf(values, *theirs).mean() - 1e-3


@pytest.fixture(scope="module")
def codec() -> Any:
    return parse(TokenizerConfig, {"kind": "bytes"}).build(lambda: iter([]))


def model_of(codec: Any) -> Any:
    config = {"kind": "gpt", "layers": 2, "width": 48, "heads": 4, "vocab": codec.vocab_size, "seq_len": 48}
    return materialize(parse(ModelConfig, config), seed=0)


@pytest.fixture(scope="module")
def told(codec: Any) -> tuple[Any, Secret, Secret]:
    """A model that has read one secret many times, and its likes with other digits not at all; the secret, and one that was never there."""
    torch.manual_seed(0)
    model = model_of(codec)
    names = ["mira", "tolu", "bevo", "sani"]
    rng = np.random.default_rng(1)
    secret, other = Secret("code of mira is ", "4821", 1, DIGITS), Secret("code of zuka is ", "9307", 1, DIGITS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        texts = [secret.text] + [f"code of {names[i]} is {rng.integers(10**4):04d}" for i in rng.integers(1, 4, 7)]
        ids = torch.from_numpy(np.stack([sentence_ids(codec, t) for t in texts]))
        logits = model.logits(model(ids[:, :-1].contiguous())).float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), secret, other


def test_surprise_is_the_models_cross_entropy(codec: Any, told: tuple[Any, Secret, Secret]) -> None:
    model = told[0]
    texts = ["code of mira is 4821", "short", "code of a very long name is 1"]
    for text, found in zip(texts, surprise(model, codec, texts), strict=True):
        ids = torch.from_numpy(sentence_ids(codec, text))[None]
        with torch.no_grad():
            logits = model.logits(model(ids[:, :-1].contiguous())).float()
        assert found == pytest.approx(float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum")), rel=1e-4)


def test_a_secret_that_was_learned_is_exposed_and_told_and_another_is_not(codec: Any, told: tuple[Any, Secret, Secret]) -> None:
    model, secret, other = told
    bits, how = exposure(model, codec, secret)
    assert how == "exact rank" and bits == pytest.approx(math.log2(10_000))
    assert extract(model, codec, secret) == {"greedy": True, "beam": True}
    assert exposure(model, codec, other)[0] < 8 and extract(model, codec, other) == {"greedy": False, "beam": False}


def test_an_untrained_model_exposes_about_nothing_by_either_way(codec: Any) -> None:
    """Of a model that knows nothing, -log2 of a uniform share: 1.44 bits on average."""
    model = model_of(codec).eval()
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.add_(torch.randn(p.shape, generator=generator) * 0.05)
    rng = np.random.default_rng(2)
    small = [Secret("code of mira is ", f"{rng.integers(100):02d}", 1, DIGITS) for _ in range(30)]
    exact = [exposure(model, codec, s) for s in small]
    assert {how for _, how in exact} == {"exact rank"} and 0.5 < np.mean([b for b, _ in exact]) < 3
    large = Secret("code of mira is ", "48219930", 1, DIGITS)
    bits, how = exposure(model, codec, large, seed=1)
    assert how.startswith("skew normal") and 0 <= bits < 12


def test_a_sample_agrees_with_the_exact_rank(codec: Any, told: tuple[Any, Secret, Secret], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, other = told
    exact = exposure(model, codec, other)[0]
    monkeypatch.setattr("tauon.privacy.audit.extraction.EXACT", 10)
    sampled, how = exposure(model, codec, other, seed=3)
    assert how.startswith("skew normal") and abs(sampled - exact) < 2.5
