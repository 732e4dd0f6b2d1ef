"""Random draws inside an example are the example's own: one example more leaves the dropout, the dropped paths and the masks of all others."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

pytest.importorskip("dp_accounting")

from private_layouts import SGD, private

from tauon.config import parse
from tauon.distributed import Layout, Mesh, ParallelConfig
from tauon.errors import RecipeError
from tauon.models import ModelConfig, randomness
from tauon.models.norm import drop_path
from tauon.models.randomness import KeyedDropout, attention, dropout, key_layers, keyed_rows, uniform_rows
from tauon.optim import OptimConfig
from tauon.plan import Plan
from tauon.privacy.clipped import check_independent
from tauon.tasks import (
    AudioClassification,
    Classification,
    Forecasting,
    LanguageModelling,
    MaskedLanguageModelling,
    Regression,
    Task,
    TextClassification,
)
from tauon.testing import tiny_batch
from tauon.train import JobConfig, StepFunctions, TrainConfig, TrainJob, build_job
from tauon.types import Batch, DataSpec

ROWS = 9
TABLE = DataSpec(input_shape=(6,), outputs=3)
CODES = DataSpec(input_shape=(6,), outputs=1, categories=(0, 4, 0, 3, 0, 0))
IMAGES = DataSpec(input_shape=(1, 8, 8), outputs=3)
TEXT = DataSpec(vocab=51, seq_len=16)
TEXTS = DataSpec(vocab=51, seq_len=16, outputs=3)
SOUND = DataSpec(input_shape=(4000,), outputs=3, sample_rate=8000)
SERIES = DataSpec(input_shape=(48, 2), outputs=2, labels=("a", "b"), horizon=4)
BERT = {"kind": "bert", "layers": 2, "width": 16, "heads": 2, "dropout": 0.3}
GPT = {"kind": "gpt", "layers": 2, "width": 16, "heads": 2}

MODELS: dict[str, tuple[dict[str, Any], DataSpec, Task]] = {
    "mlp": ({"kind": "mlp", "hidden": [16], "dropout": 0.5, "input_dropout": 0.2}, TABLE, Classification()),
    "wide-and-deep": ({"kind": "wide-and-deep", "hidden": [16], "dropout": 0.5}, CODES, Regression()),
    "ft-transformer": ({"kind": "ft-transformer", "layers": 2, "width": 16, "heads": 2, "residual_dropout": 0.2}, CODES, Regression()),
    "tabm": ({"kind": "tabm", "members": 3, "width": 16, "dropout": 0.5}, CODES, Regression()),
    "text-bag": ({"kind": "text-bag", "buckets": 64}, TEXTS, TextClassification()),
    "text-bag, attention": ({"kind": "text-bag", "buckets": 64, "pooling": "attention"}, TEXTS, TextClassification()),
    "bert": (BERT, TEXTS, TextClassification()),
    "bert, masked": (BERT, TEXT, MaskedLanguageModelling()),
    "gpt": (GPT | {"dropout": 0.3}, TEXT, LanguageModelling()),
    "lora": (GPT | {"adapt": {"kind": "lora", "rank": 2, "dropout": 0.5}}, TEXT, LanguageModelling()),
    "cnn": ({"kind": "cnn", "channels": [8], "groups": 4, "dropout": 0.5}, IMAGES, Classification()),
    "resnet": ({"kind": "resnet20", "norm": "group", "drop_path": 0.5, "dropout": 0.2}, IMAGES, Classification()),
    "vit": ({"kind": "vit", "patch": 4, "layers": 2, "width": 16, "heads": 2, "dropout": 0.2, "drop_path": 0.5}, IMAGES, Classification()),
    "speech-cnn": ({"kind": "speech-cnn", "channels": [8, 8], "freq_masks": 2, "time_masks": 2, "dropout": 0.2}, SOUND, AudioClassification()),
    "conformer": (
        {"kind": "conformer", "layers": 1, "width": 16, "heads": 2, "kernel": 3, "freq_masks": 1, "time_masks": 1, "dropout": 0.2},
        SOUND, AudioClassification(),
    ),
    "patchtst": ({"kind": "patchtst", "layers": 1, "width": 8, "heads": 2, "head_dropout": 0.2}, SERIES, Forecasting()),
    "lstm": ({"kind": "lstm", "layers": 2, "width": 8, "dropout": 0.5}, SERIES, Forecasting()),
}  # fmt: skip


def job_of(name: str, micro: int = 64, *, checkpointing: bool = False) -> tuple[TrainJob, Batch]:
    """A private job almost without noise, weights that make every draw matter, and a batch whose rows know who they are."""
    model, spec, task = MODELS[name]
    config = parse(ModelConfig, model).resolve(spec)
    batch = tiny_batch(spec, ROWS, masked=isinstance(task, MaskedLanguageModelling))
    batch = replace(batch, draws=torch.arange(1, ROWS + 1) * 7919)
    plan = Plan(4, torch.device("cpu"), "fp32", False, micro, 1, 1, 1)
    train = TrainConfig(steps=4, batch=ROWS, activation_checkpointing=checkpointing)
    job = build_job(JobConfig(config, parse(OptimConfig, SGD), train, task, spec, 3), None, plan, mesh=Mesh(Layout()), parallel=parse(ParallelConfig, {"kind": "mesh"}))  # fmt: skip
    with torch.no_grad():
        for p in job.model.parameters():  # a head at zero would hide what lies behind it
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    job.model.train()
    return private(job, rows=1, multiplier=1e-12), batch


def picked(batch: Batch, rows: list[int]) -> Batch:
    return replace(
        batch, **{k: v[rows] for k in ("inputs", "targets", "weights", "lengths", "draws") if (v := getattr(batch, k)) is not None}
    )


def sums(job: TrainJob, batch: Batch, step: int = 0) -> Tensor:
    """The sum of clipped gradients, flat."""
    job.step = step
    job.model.zero_grad(set_to_none=True)
    job.functions.make(job, batch)
    return torch.cat([p.grad.flatten().double() for p in job.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MODELS)
def test_one_example_more_moves_the_sum_by_the_bound_at_most(name: str) -> None:
    job, batch = job_of(name)
    whole = sums(job, batch)
    for i in (0, 4, ROWS - 1):
        without = sums(job, picked(batch, [j for j in range(ROWS) if j != i]))
        assert float((whole - without).norm()) <= 1 + 1e-3, i
    assert float((whole - sums(job, batch, step=1)).norm()) > 1e-2  # the draws matter, and another step has others


@pytest.mark.parametrize("name", MODELS)
def test_draws_are_the_same_in_any_order_microbatches_and_with_checkpointing(name: str) -> None:
    job, batch = job_of(name)
    whole = sums(job, batch)
    close = {"rtol": 0.0, "atol": 2e-4}
    torch.testing.assert_close(sums(job, picked(batch, [*range(4, ROWS), *range(4)])), whole, **close)
    for micro in (4, 1):
        torch.testing.assert_close(sums(job_of(name, micro)[0], batch), whole, **close)
    again = job_of(name, 4, checkpointing=True)[0]
    torch.testing.assert_close(sums(again, batch), whole, **close)
    without = sums(again, picked(batch, list(range(1, ROWS))))
    assert float((whole - without).norm()) <= 1 + 1e-3


def test_what_another_thread_computes_again_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass of an accelerator has a thread of its own, in which checkpointed blocks are computed again."""
    job, batch = job_of("bert", checkpointing=True)
    whole = sums(job, batch)
    backward = Tensor.backward

    def elsewhere(self: Tensor) -> None:
        thread = threading.Thread(target=backward, args=(self,))
        thread.start()
        thread.join()

    monkeypatch.setattr(Tensor, "backward", elsewhere)
    torch.testing.assert_close(sums(job, batch), whole, rtol=0.0, atol=0.0)


def test_units_of_several_rows_keep_their_draws() -> None:
    """Also in a layer without a rule, which runs unit by unit."""
    for drop in (Scaled(lambda x: dropout(x, 0.5)), lambda x: dropout(x, 0.5)):
        job, batch = own_job(drop, rows_per_unit=3)
        whole = sums(job, batch)
        for unit in range(3):
            without = sums(job, picked(batch, [j for j in range(ROWS) if j // 3 != unit]))
            assert 0.05 < float((whole - without).norm()) <= 1 + 1e-3


class Own(nn.Module):
    """A plug-in's model: what it drops is a function that a test gives."""

    def __init__(self, drop: Any) -> None:
        super().__init__()
        self.inner, self.head, self.drop = nn.Linear(6, 32), nn.Linear(32, 3), drop

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(torch.tanh(self.inner(x))))
        return out


class Scaled(nn.Module):
    """A layer without a rule of its own."""

    def __init__(self, drop: Any) -> None:
        super().__init__()
        self.weight, self.drop = nn.Parameter(torch.ones(32)), drop

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(x * self.weight)
        return out


def own_job(drop: Any, rows_per_unit: int = 1) -> tuple[TrainJob, Batch]:
    job, batch = job_of("mlp")
    torch.manual_seed(0)
    plain = replace(job, model=Own(drop).train(), functions=StepFunctions())
    return private(plain, rows=rows_per_unit, multiplier=1e-12, rows_per_unit=rows_per_unit), batch


def by_hand(x: Tensor) -> Tensor:
    return x * (torch.rand(x.shape) > 0.3)


def in_attention(x: Tensor) -> Tensor:
    q = x[:, None, :, None]
    return F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)[:, 0, :, 0]


@pytest.mark.parametrize("drop", [lambda x: F.dropout(x, 0.5), by_hand, in_attention, Scaled(lambda x: F.dropout(x, 0.5))])
def test_draws_by_the_place_in_the_batch_are_refused(drop: Any) -> None:
    job, batch = own_job(drop)
    with pytest.raises(RecipeError, match=r"example 0 was taken away.*mixes examples"):
        check_independent(job.model, job.task, replace(batch, draws=None))
    with pytest.raises(RecipeError, match=r"draws random numbers itself .* Use dropout, attention and uniform_rows"):
        job.functions.make(job, batch)


@pytest.mark.parametrize("drop", [nn.Dropout(0.5), lambda x: dropout(x, 0.5), Scaled(lambda x: dropout(x, 0.5))])
def test_dropout_of_a_plugin_is_keyed(drop: Any) -> None:
    job, batch = own_job(drop)
    check_independent(job.model, job.task, replace(batch, draws=None))
    whole = sums(job, batch)
    assert float((whole - sums(job, batch, step=1)).norm()) > 1e-2
    for i in (0, 5):
        assert float((whole - sums(job, picked(batch, [j for j in range(ROWS) if j != i]))).norm()) <= 1 + 1e-3
    torch.testing.assert_close(sums(job, picked(batch, list(reversed(range(ROWS))))), whole, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(
    "layer", [nn.LSTM(6, 32, 2, dropout=0.5), nn.MultiheadAttention(32, 2, dropout=0.1), nn.Dropout2d(0.2), nn.AlphaDropout(0.1)]
)
def test_layers_that_draw_by_themselves_are_refused_by_name(layer: nn.Module) -> None:
    with pytest.raises(RecipeError, match=rf"drop is a {type(layer).__name__} with .*Set it to 0"):
        own_job(layer)


def test_a_batch_that_does_not_say_which_examples_it_has_cannot_be_dropped_from() -> None:
    job, batch = job_of("mlp")
    with pytest.raises(RecipeError, match=r"does not say which examples its rows are.*Batch\.draws or Batch\.index"):
        job.functions.make(job, replace(batch, draws=None))
    known = replace(batch, draws=None, index=torch.arange(ROWS))
    whole = sums(job, known)
    assert float((whole - sums(job, known.rows(1, ROWS))).norm()) <= 1 + 1e-3


# ------------------------------------------------------------------------------------------------ the draws themselves


def test_outside_private_steps_they_are_torchs_own_bit_for_bit() -> None:
    x = torch.randn(6, 5, 4)

    def both(ours: Any, theirs: Any) -> None:
        found = []
        for call in (ours, theirs):
            torch.manual_seed(5)
            found.append(call())
        assert torch.equal(*found)

    both(lambda: dropout(x, 0.3), lambda: F.dropout(x, 0.3))
    both(lambda: dropout(x, 0.3, False), lambda: x)
    both(lambda: KeyedDropout(0.3)(x), lambda: nn.Dropout(0.3)(x))
    both(lambda: uniform_rows(6, x.device), lambda: torch.rand(6))
    q = x[:, None]
    both(lambda: attention(q, q, q, dropout_p=0.5), lambda: F.scaled_dot_product_attention(q, q, q, dropout_p=0.5))
    both(lambda: drop_path(x, 0.5, True), lambda: x * ((torch.rand([6, 1, 1]) >= 0.5).to(x.dtype) / 0.5))


@settings(max_examples=30, deadline=None)
@given(
    p=st.floats(0.01, 0.99),
    shape=st.lists(st.integers(1, 5), max_size=3),
    B=st.integers(1, 6),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_mask_is_its_examples_whatever_rows_are_there(p: float, shape: list[int], B: int, groups: int, seed: int) -> None:
    x = torch.ones(B, groups, *shape)
    seeds = torch.arange(B) + 1000 * seed

    def of(rows: Tensor) -> Tensor:
        with keyed_rows(seeds[rows], 3) as draws:
            y = dropout(x[rows].flatten(0, 1), p).view(len(rows), *x.shape[1:])
            draws.refuse_others()
            return y

    whole = of(torch.arange(B))
    assert bool(((whole == 0) | ((whole * (1 - p) - 1).abs() < 1e-2)).all())
    for rows in (torch.tensor([B - 1]), torch.arange(B).flip(0), torch.arange(1, B) if B > 1 else torch.tensor([0])):
        assert torch.equal(of(rows), whole[rows])


def test_keyed_masks_have_dropouts_law() -> None:
    """Share, independence within a row, between rows, steps and calls, and the fourth moment of sums: all within five standard errors."""
    B, n, p = 64, 4096, 0.3
    x = torch.ones(B, n)
    masks = []
    for step in range(4):
        with keyed_rows(torch.arange(B), step):
            masks += [(dropout(x, p) == 0).double() - p for _ in range(2)]
    z = torch.stack(masks) / math.sqrt(p * (1 - p))
    each = 5 / math.sqrt(z.numel())
    assert abs(float(z.mean())) < each
    for product in (z[:, :, :-1] * z[:, :, 1:], z[:, :, :-4] * z[:, :, 4:], z[:, :-1] * z[:, 1:], z[:-1] * z[1:], z[:-2] * z[2:]):
        assert abs(float(product.mean())) < 1.1 * each
    means = z.mean(2).flatten() * math.sqrt(n)
    assert float(means.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * len(means)))
    assert float((z.view(8, B, -1, 8).sum(3) / math.sqrt(8)).pow(4).mean()) == pytest.approx(
        3 - 2 / 8 + (1 - 6 * p * (1 - p)) / (p * (1 - p)) / 8 + 2 / 8, abs=0.1
    )
    with keyed_rows(torch.arange(10_000), 1):
        u = uniform_rows(10_000, x.device).double()
    assert float(u.min()) >= 0 and float(u.max()) < 1 and abs(float(u.mean()) - 0.5) < 5 / math.sqrt(12e4)


def test_keyed_attention_has_the_law_of_torchs() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8).expand(4000, -1, -1, -1) for _ in range(3))
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    bias = torch.zeros(5, 5).masked_fill(~mask, -1e9)
    for given_mask in (mask, bias, None):
        plain = F.scaled_dot_product_attention(q, k, v, attn_mask=given_mask)
        theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=given_mask, dropout_p=0.4)
        with keyed_rows(torch.arange(4000), 0):
            ours = attention(q, k, v, attn_mask=given_mask, dropout_p=0.4)
            torch.testing.assert_close(attention(q, k, v, attn_mask=given_mask), plain)
        torch.testing.assert_close(ours.mean(0), plain[0], rtol=0.0, atol=0.1)
        torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.1, atol=0.02)


def test_dropout_of_what_is_not_the_batchs_rows_is_refused() -> None:
    with keyed_rows(torch.arange(4), 0), pytest.raises(RecipeError, match="6 rows for 4 examples"):
        dropout(torch.ones(6, 2), 0.5)
    assert randomness.seeds_of_rows() is None


def test_layers_of_torch_are_left_alone_where_they_draw_nothing() -> None:
    model = nn.Sequential(nn.LSTM(4, 4, 1, dropout=0.0), nn.Dropout2d(0.0), nn.Dropout(0.2))
    key_layers(model)
    assert isinstance(model[2], KeyedDropout)
