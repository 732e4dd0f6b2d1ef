"""Every kind of data becomes cases whose outputs are the model's own; a model is left as it was found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tauon.explain import cases_of, untouched
from tauon.models import ModelConfig, from_record, materialize
from tauon.testing.contracts import tiny_batch
from tauon.types import Batch, DataSpec

LABELS = ("a", "b", "c")
IMAGES = DataSpec(input_shape=(1, 8, 8), outputs=3, labels=LABELS)
TABLE = DataSpec(input_shape=(5,), outputs=3, labels=LABELS)
CODES = DataSpec(input_shape=(3,), outputs=3, labels=LABELS, categories=(0, 4, 3))
TEXTS = DataSpec(vocab=20, seq_len=6, outputs=3, labels=LABELS)
TOKENS = DataSpec(vocab=20, seq_len=6)
SIGNALS = DataSpec(input_shape=(800,), sample_rate=8000, outputs=3, labels=LABELS)
SERIES = DataSpec(input_shape=(12, 2), horizon=3, outputs=2, labels=("x", "y"))

KINDS: dict[str, tuple[dict[str, Any], DataSpec, str]] = {
    "resnet": ({"kind": "resnet20", "width": 4}, IMAGES, "arrays"),
    "vit": ({"kind": "vit", "patch": 4, "layers": 2, "width": 8, "heads": 2}, IMAGES, "arrays"),
    "mlp": ({"kind": "mlp", "hidden": [8]}, TABLE, "arrays"),
    "codes": ({"kind": "wide-and-deep", "hidden": [8]}, CODES, "arrays"),
    "bert": ({"kind": "bert", "layers": 2, "width": 8, "heads": 2}, TEXTS, "labelled-text"),
    "bag": ({"kind": "text-bag", "width": 4, "ngrams": 2, "buckets": 64, "pooling": "attention"}, TEXTS, "labelled-text"),
    "gpt": ({"kind": "gpt", "layers": 2, "width": 8, "heads": 2}, TOKENS, "tokens"),
    "speech": ({"kind": "speech-cnn", "channels": [8, 8], "mels": 8}, SIGNALS, "signals"),
    "conformer": ({"kind": "conformer", "layers": 1, "width": 16, "heads": 2, "mels": 8, "kernel": 5}, SIGNALS, "signals"),
    "dlinear": ({"kind": "dlinear"}, SERIES, "series"),
}


def stirred(config: ModelConfig, seed: int = 0) -> Any:
    """A model whose heads are not zero."""
    model = materialize(config, seed=seed).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g) * 0.2)
    return model


def made(name: str) -> tuple[Any, str, DataSpec, Batch]:
    tree, spec, kind = KINDS[name]
    return stirred(from_record(tree).resolve(spec)), kind, spec, tiny_batch(spec)


def plain_outputs(model: Any, kind: str, batch: Batch) -> torch.Tensor:
    if kind == "signals":
        return model(batch.inputs, batch.lengths)
    if kind == "tokens":
        return model.logits(model(batch.inputs)[:, -1])
    return model(batch.inputs).mean(1) if kind == "series" else model(batch.inputs)


@pytest.mark.parametrize("name", KINDS)
def test_cases_have_the_outputs_of_the_model(name: str) -> None:
    model, kind, spec, batch = made(name)
    cases = cases_of(model, kind, spec, batch)
    with torch.no_grad():
        torch.testing.assert_close(cases.outputs(cases.inputs, torch.arange(4)), plain_outputs(model, kind, batch), rtol=1e-4, atol=1e-5)
    assert cases.per_feature(torch.ones_like(cases.inputs)).shape == (4, cases.n_features)
    assert cases.differentiable == (name not in ("codes", "bag"))


@pytest.mark.parametrize("name", KINDS)
def test_hiding_nothing_changes_nothing_and_hiding_all_gives_the_baseline(name: str) -> None:
    model, kind, spec, batch = made(name)
    cases, rows = cases_of(model, kind, spec, batch), torch.arange(4)
    assert torch.equal(cases.masked(torch.ones(4, cases.n_features, dtype=torch.bool), rows), cases.inputs)
    assert torch.equal(cases.masked(torch.zeros(4, cases.n_features, dtype=torch.bool), rows), cases.baseline(rows).expand_as(cases.inputs))


def test_a_hidden_token_of_a_bag_is_deleted() -> None:
    model, kind, spec, batch = made("bag")
    cases = cases_of(model, kind, spec, batch)
    keep = torch.ones(4, 6, dtype=torch.bool)
    keep[:, 2] = False
    with torch.no_grad():
        shorter = model(batch.inputs[:, [0, 1, 3, 4, 5]])
        torch.testing.assert_close(cases.outputs(cases.masked(keep, torch.arange(4)), torch.arange(4)), shorter, rtol=1e-5, atol=1e-6)


def test_a_model_is_left_as_it_was_found() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.ones(3, 3)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    with untouched(model):
        assert not model.training
        model.train()
        model(torch.randn(4, 3))
        model[0].register_forward_hook(lambda *_: None)
        model[0].kept = 1
    assert all(m.training for m in model.modules())
    assert [p.requires_grad for p in model[0].parameters()] == [True, False]
    assert model[0].weight.grad is not None
    assert not model[0]._forward_hooks and not hasattr(model[0], "kept")
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
