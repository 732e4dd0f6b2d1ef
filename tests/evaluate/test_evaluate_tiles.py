"""The same score to the last bit for every batch size, with real models; weights, flags and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tauon.config import parse
from tauon.errors import DataError, RecipeError
from tauon.evaluate import EvaluateConfig, evaluate, predict_all
from tauon.tasks import Classification, LanguageModelling, Regression, Task
from tauon.types import Batch, DataSpec


class Arrays:
    """N rows of features with class indices or values."""

    def __init__(self, x, y, weights=None, labels=()):
        self.x, self.y = x, y
        self.weights = torch.ones(len(x)) if weights is None else weights
        self.spec, self.facts = DataSpec(labels=labels), {}
        self.reads = []

    def __len__(self):
        return len(self.x)

    def batch(self, index, *, epoch=0):
        self.reads.append(len(index))
        i = torch.from_numpy(index)
        return Batch(self.x[i], self.y[i], self.weights[i], index=i)


class Tokens(Arrays):
    def batch(self, index, *, epoch=0):
        i = torch.from_numpy(index)
        return Batch(self.x[i, :-1], self.x[i, 1:], self.weights[i], segments=torch.zeros_like(self.x[i, :-1], dtype=torch.int32), index=i)


class Classify(Classification):
    def predict(self, model, batch):
        return {"scores": model(batch.inputs).float().softmax(-1), "targets": batch.targets}


class Regress(Regression):
    def predict(self, model, batch):
        return {"predictions": model(batch.inputs)[:, 0].float(), "targets": batch.targets}


class Speak(LanguageModelling):
    def predict(self, model, batch):
        log_p = model(batch.inputs).float().log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
        counted = (batch.weights > 0).double()
        return {"nll": -(log_p.double() * counted).sum(1), "tokens": counted.sum(1).long(), "bytes": counted.sum(1).long() * 3}


class Transformer(nn.Module):
    def __init__(self, vocab=50, width=32):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.block = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, vocab)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.block(self.embed(x), src_mask=mask, is_causal=True))


@pytest.fixture
def arrays():
    g = torch.Generator().manual_seed(0)
    return torch.randn(203, 37, generator=g), torch.randint(0, 5, (203,), generator=g)


@pytest.fixture
def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(37, 129), nn.ReLU(), nn.Dropout(0.5), nn.Linear(129, 5))


def config(batch, **more):
    return EvaluateConfig(batch=batch, resamples=100, **more)


@pytest.mark.parametrize("context", [None, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("batches", [(1, 7, 64, 203, 1000)])
def test_an_mlp_scores_the_same_to_the_last_bit_for_every_batch_size(arrays, mlp, context, batches):
    found = [evaluate(mlp, Classify(), Arrays(*arrays), config(b), seed=5, context=context).to_json() for b in batches]
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("context", [None, lambda: torch.autocast("cpu", torch.bfloat16)], ids=["fp32", "bf16"])
def test_a_transformer_scores_the_same_to_the_last_bit_for_every_batch_size(context):
    torch.manual_seed(2)
    model = Transformer()
    x = torch.randint(0, 50, (29, 25))
    data = Tokens(x, x, torch.ones(29, 24))
    found = [evaluate(model, Speak(), data, config(b), seed=5, context=context).to_json() for b in (1, 7, 64)]
    assert found[0] == found[1] == found[2]


def test_without_tiles_the_last_bits_do_change(arrays, mlp):
    """The trap that tiles are there for: if kernels ever stop depending on the shape, tiles may go."""
    mlp.eval()
    x = torch.randn(203, 512, generator=torch.Generator().manual_seed(3))
    deep = nn.Sequential(nn.Linear(512, 333), nn.Linear(333, 5)).eval()
    with torch.no_grad():
        whole = deep(x)
        each = torch.cat([deep(row[None]) for row in x])
    torch.testing.assert_close(whole, each)
    if torch.equal(whole, each):
        pytest.skip("this machine's kernels give the same bits for one row and for 203")
    assert not torch.equal(whole, each)


def test_an_example_has_the_same_bits_in_a_shorter_data_set(arrays, mlp):
    """Padding fills the last tile, so that its shape never changes."""
    x, y = arrays
    whole, _ = predict_all(mlp, Classify(), Arrays(x, y), batch=16)
    part, _ = predict_all(mlp, Classify(), Arrays(x[:70], y[:70]), batch=16)
    np.testing.assert_array_equal(whole["scores"][:70], part["scores"])


def test_the_model_sees_one_shape_and_the_data_set_is_read_by_batch(arrays, mlp):
    shapes = set()
    mlp.register_forward_pre_hook(lambda m, a: shapes.add(tuple(a[0].shape)))
    data = Arrays(*arrays)
    evaluate(mlp, Classify(), data, config(7), seed=0)
    assert shapes == {(64, 37)}
    assert set(data.reads) == {7}


def test_values_equal_the_plain_computation(arrays, mlp):
    x, y = arrays
    found = evaluate(mlp, Classify(), Arrays(x, y, labels=tuple("abcde")), config(64), seed=5, split="test")
    with torch.no_grad():
        right = mlp.eval()(x).argmax(1) == y
    assert found.metrics["accuracy"].value == pytest.approx(right.float().mean().item())
    assert (found.split, found.n, found.confusion["labels"]) == ("test", 203, list("abcde"))


def test_examples_of_weight_zero_count_nowhere(arrays, mlp):
    x, y = arrays
    keep = torch.arange(203) % 3 > 0
    poisoned = x.clone()
    poisoned[~keep] = 1e3
    some = evaluate(mlp, Classify(), Arrays(poisoned, y, weights=keep.float() * 2), config(10), seed=5)
    kept = evaluate(mlp, Classify(), Arrays(x[keep], y[keep]), config(10), seed=5)
    assert some.n == int(keep.sum())
    assert some.confusion == kept.confusion
    assert any("weight zero" in note for note in some.notes)
    assert any("other than 0 and 1" in note for note in some.notes)


def test_tokens_of_weight_zero_count_nowhere():
    torch.manual_seed(2)
    model = Transformer()
    x = torch.randint(0, 50, (10, 25))
    weights = torch.ones(10, 24)
    weights[3, 10:] = 0
    weights[7] = 0
    found = evaluate(model, Speak(), Tokens(x, x, weights), config(4), seed=5)
    assert found.n == 9
    assert found.counts["tokens"] == 9 * 24 - 14


def test_regression_runs_end_to_end(arrays):
    x, _ = arrays
    torch.manual_seed(0)
    model = nn.Linear(37, 1)
    y = x[:, 0] * 2
    found = [evaluate(model, Regress(), Arrays(x, y), config(b), seed=5).to_json() for b in (1, 7, 64)]
    assert found[0] == found[1] == found[2]
    with torch.no_grad():
        assert found[0]["metrics"]["mae"]["value"] == pytest.approx((model(x)[:, 0] - y).abs().mean().item(), rel=1e-5)


def test_training_flags_come_back_one_by_one_even_after_an_error(arrays, mlp):
    mlp.train()
    mlp[2].eval()  # a part that was frozen on purpose
    flags = [m.training for m in mlp.modules()]
    evaluate(mlp, Classify(), Arrays(*arrays), config(64), seed=0)
    assert [m.training for m in mlp.modules()] == flags
    with pytest.raises(RuntimeError):
        evaluate(mlp, Classify(), Arrays(arrays[0][:, :3], arrays[1]), config(64), seed=0)
    assert [m.training for m in mlp.modules()] == flags


def test_dropout_is_off_and_no_gradient_is_kept(arrays, mlp):
    mlp.train()
    a = evaluate(mlp, Classify(), Arrays(*arrays), config(64), seed=0)
    assert a == evaluate(mlp, Classify(), Arrays(*arrays), config(64), seed=0)
    assert all(p.grad is None for p in mlp.parameters())


def test_progress_is_told_up_to_the_end(arrays, mlp):
    told = []
    evaluate(mlp, Classify(), Arrays(*arrays), config(50), seed=0, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (203, 203)
    assert [d for d, _ in told] == sorted(d for d, _ in told)


def test_nothing_to_evaluate_on_is_refused(arrays, mlp):
    x, y = arrays
    with pytest.raises(DataError, match="is empty"):
        evaluate(mlp, Classify(), Arrays(x[:0], y[:0]), config(5), seed=0)
    with pytest.raises(DataError, match="weight zero"):
        evaluate(mlp, Classify(), Arrays(x, y, weights=torch.zeros(203)), config(5), seed=0)
    with pytest.raises(DataError, match="negative"):
        evaluate(mlp, Classify(), Arrays(x, y, weights=-torch.ones(203)), config(5), seed=0)


def test_a_family_without_metrics_is_refused(arrays, mlp):
    class Divine(Task):
        family = "divination"
        predict = Classify.predict

    with pytest.raises(DataError, match="divination"):
        evaluate(mlp, Divine(), Arrays(*arrays), config(64), seed=0)


def test_a_task_that_breaks_its_contract_is_named(arrays, mlp):
    class Short(Classify):
        def predict(self, model, batch):
            return {"scores": model(batch.inputs)[:3]}

    class Silent(Classify):
        def predict(self, model, batch):
            return {"targets": batch.targets}

    with pytest.raises(TypeError, match="expected 64 as the first dimension"):
        evaluate(mlp, Short(), Arrays(*arrays), config(64), seed=0)
    with pytest.raises(TypeError, match="'scores'"):
        evaluate(mlp, Silent(), Arrays(*arrays), config(64), seed=0)


def test_the_seed_moves_bootstrap_intervals_and_nothing_else(arrays, mlp):
    a, b = (evaluate(mlp, Classify(), Arrays(*arrays), config(64), seed=s).metrics for s in (1, 2))
    assert {k: m.value for k, m in a.items()} == {k: m.value for k, m in b.items()}
    assert a["f1_macro"].low != b["f1_macro"].low
    assert a["accuracy"] == b["accuracy"]


def test_config_refuses_what_cannot_work_all_at_once():
    with pytest.raises(RecipeError) as caught:
        parse(EvaluateConfig, {"batch": 0, "resamples": 5, "confidence": "100%"})
    assert {p.path for p in caught.value.problems} == {"batch", "resamples", "confidence"}
    assert parse(EvaluateConfig, {"confidence": "90%", "batch": "1k"}).confidence == pytest.approx(0.9)
