"""TF-IDF over n-grams of tokens and its logistic regression, compared with scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tauon.models import TextLinearConfig, load_weights, materialize
from tauon.models.families.tfidf import _Rows
from tauon.types import Batch, DataSpec

VOCAB, T, C = 60, 14, 3
SPEC = DataSpec(vocab=VOCAB, seq_len=T, outputs=C, labels=("a", "b", "c"))


def texts(n: int, seed: int = 0) -> Batch:
    """Texts of 3 to T tokens; a class prefers its own third of the vocabulary."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, C, n)
    own = rng.integers(0, VOCAB // C, (n, T)) + y[:, None] * (VOCAB // C)
    tokens = np.where(rng.random((n, T)) < 0.35, own, rng.integers(0, VOCAB, (n, T)))
    segments = np.where(np.arange(T) < rng.integers(3, T + 1, n)[:, None], 0, -1)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(y), torch.ones(n), torch.from_numpy(segments.astype(np.int32)))


def words(batch: Batch) -> list[str]:
    assert batch.segments is not None
    return [
        " ".join(f"w{t}" for t, s in zip(row, there, strict=True) if s >= 0)
        for row, there in zip(batch.inputs, batch.segments, strict=True)
    ]


def theirs(sublinear: bool) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 3), sublinear_tf=sublinear, token_pattern=r"\S+")


@pytest.mark.parametrize("sublinear", [True, False])
def test_predictions_equal_scikit_learns(sublinear: bool) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    train, test = texts(300), texts(80, seed=1)
    config = TextLinearConfig(strength=4.0, buckets=2**22, sublinear=sublinear).resolve(SPEC)  # so many that hardly two runs share a place
    vectors = theirs(sublinear)
    peer = LogisticRegression(C=4.0, max_iter=2000, tol=1e-8).fit(vectors.fit_transform(words(train)), train.targets.numpy())
    model = materialize(config, seed=0).eval()
    load_weights(model, config.fit(train, None, family="classification", seed=0).tensors)
    with torch.no_grad():
        ours = model(test.inputs, test.segments).double().softmax(1)
    off = np.abs(ours.numpy() - peer.predict_proba(vectors.transform(words(test))))
    assert off.max() < 0.03  # of a text whose runs share a place with another
    assert np.median(off) < 3e-4


def test_weights_of_ngrams_equal_scikit_learns() -> None:
    pytest.importorskip("sklearn")
    batch = texts(50)
    model = TextLinearConfig(buckets=2**20).resolve(SPEC).build()
    model.idf.fill_(1)
    rows = _Rows.of(model, batch, None)
    documents = torch.bincount(rows.places, minlength=len(model.idf)).double()
    model.idf.copy_(torch.log((1 + len(batch)) / (1 + documents)) + 1)
    ours = np.sort(rows.weighted(model).matrix.to_dense().numpy(), axis=1)[:, ::-1]
    peer = np.sort(theirs(True).fit_transform(words(batch)).toarray(), axis=1)[:, ::-1]
    width = min(ours.shape[1], peer.shape[1])
    np.testing.assert_allclose(ours[:, :width], peer[:, :width], atol=1e-6)


def test_the_penalty_is_chosen_by_held_out_texts() -> None:
    train = texts(300)
    noise = Batch(
        train.inputs, train.targets[torch.randperm(300, generator=torch.Generator().manual_seed(0))], train.weights, train.segments
    )
    config = TextLinearConfig(buckets=997).resolve(SPEC)
    assert "C = 0.5" in config.fit(noise, texts(200, seed=2), family="classification", seed=0).note
    assert "a tenth" in config.fit(train, None, family="classification", seed=0).note


def test_padding_does_not_count() -> None:
    config = TextLinearConfig(buckets=997).resolve(SPEC)
    model = materialize(config, seed=0).eval()
    load_weights(model, config.fit(texts(100), None, family="classification", seed=0).tensors)
    tokens, segments = torch.tensor([[5, 9, 30, 1, 2]]), torch.tensor([[0, 0, 0, -1, -1]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, segments), model(tokens[:, :3]))
