"""Contracts of every registered model, optimizer and data source. Public, so that your own package can check its parts: call the
function for the family in a test; it raises `AssertionError` naming the violated contract.

    from tauon.testing import check_model
    def test_my_model(): check_model(MyConfig(width=16), DataSpec(vocab=50, seq_len=16))
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tauon.config import dump
from tauon.data import Arrays, DataConfig, Request, Series, SourceConfig, Table, data_kinds
from tauon.models import Model, ModelConfig, from_record, load_weights, materialize
from tauon.optim import OptimConfig, load_optimizer, optimizer_tensors
from tauon.tasks import AudioClassification, Classification, Forecasting, LanguageModelling, MaskedLanguageModelling, Regression, Task
from tauon.types import Batch, DataSpec

__all__ = ["check_model", "check_optimizer", "check_source", "tiny_batch"]


def tiny_batch(spec: DataSpec, rows: int = 4, seed: int = 0, *, masked: bool = False) -> Batch:
    """Random examples of a kind: tokens where the spec has a vocabulary (with classes where it has outputs, some of them hidden where
    `masked`), classes or values otherwise.
    """
    g = torch.Generator().manual_seed(seed)
    if spec.vocab is not None and spec.seq_len is not None:
        tokens = torch.randint(0, spec.vocab, (rows, spec.seq_len + 1), generator=g)
        if spec.outputs is not None:  # texts with labels
            return Batch(tokens[:, 1:], torch.randint(0, spec.outputs, (rows,), generator=g), torch.ones(rows))
        if masked:
            hidden = torch.rand(rows, spec.seq_len, generator=g) < 0.3
            hidden[:, 0] = True
            return Batch(torch.where(hidden, spec.vocab - 1, tokens[:, 1:]), tokens[:, 1:], hidden.float())
        return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(rows, spec.seq_len))
    assert spec.input_shape is not None, "a spec needs tokens or an input shape"
    assert spec.outputs is not None, "a spec of arrays needs outputs"
    x = torch.randn(rows, *spec.input_shape, generator=g)
    if spec.sample_rate is not None:
        lengths = torch.linspace(spec.input_shape[0] // 2, spec.input_shape[0], rows).long()
        return Batch(x, torch.randint(0, spec.outputs, (rows,), generator=g), torch.ones(rows), lengths=lengths)
    if spec.horizon is not None:
        return Batch(x, torch.randn(rows, spec.horizon, len(spec.labels), generator=g), torch.ones(rows))
    for column, codes in enumerate(spec.categories):
        if codes:
            x[:, column] = torch.randint(0, codes, (rows,), generator=g).float()
    y = torch.randint(0, spec.outputs, (rows,), generator=g) if spec.outputs > 1 else torch.randn(rows, 1, generator=g)
    return Batch(x, y, torch.ones(rows))


def _task(spec: DataSpec, masked: bool = False) -> Task:
    if spec.vocab is not None and spec.outputs is None:
        return MaskedLanguageModelling() if masked else LanguageModelling()
    if spec.horizon is not None:
        return Forecasting() if spec.outputs == len(spec.labels) else Forecasting(loss_kind="quantile")
    if spec.sample_rate is not None:
        return AudioClassification()
    return Classification() if spec.outputs != 1 else Regression()


def check_model(config: ModelConfig, spec: DataSpec, *, steps: int = 150) -> None:
    """Check a model: builds on meta; is initialized from (seed, name) only; its shard plan names all parameters; its record round-trips;
    the output of an example does not depend on others in the batch; it overfits four examples.
    """
    config = config.resolve(spec)
    with torch.device("meta"):
        bare = config.build()
    assert isinstance(bare, Model), f"{type(bare).__name__} must derive from tauon.models.Model"
    assert all(p.is_meta for p in bare.parameters()), "a parameter is not on the meta device: build it with plain constructors"

    plan: dict[str, Any] = dict(bare.shard_plan)
    for name, _ in bare.named_parameters():
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in plan), f"the shard plan does not name {name}"
    assert set(plan.values()) <= {"colwise", "rowwise", "vocab", "replicate", "per-head"}, f"unknown shard in {plan}"

    model, again, other = (materialize(config, seed=s) for s in (1, 1, 2))
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), f"{name}: the same seed gave other weights"
        assert torch.isfinite(p).all(), f"{name} is initialized with non-finite values"
    weights = [(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True) if p.ndim >= 2 and p.abs().sum() > 0]
    assert not weights or any(not torch.equal(p, q) for p, q in weights), "another seed gave the same weights"

    record = json.loads(json.dumps(dump(config)))
    copy = materialize(from_record(record), seed=9)
    load_weights(copy, dict(model.state_dict()))
    masked = "masked-tokens" in config.input_kind and spec.outputs is None
    batch, task = tiny_batch(spec, masked=masked), _task(spec, masked)
    for m in (model, copy):
        m.eval()
    with torch.no_grad():
        torch.testing.assert_close(_outputs(task, model, batch), _outputs(task, copy, batch), rtol=0, atol=0)
        for i in range(len(batch)):
            torch.testing.assert_close(
                _outputs(task, model, batch)[i], _outputs(task, model, batch.rows(i, i + 1))[0], rtol=1e-4, atol=1e-5
            )
    assert bare.flops_per_example(spec) > 0
    assert bare.activations_per_example(spec) > 0

    off: dict[str, Any] = dict.fromkeys(type(config).random_fields(), 0)
    steady = materialize(config.model_copy(update=off), seed=1).train()
    with torch.no_grad():
        first, second = (_outputs(task, steady, batch) for _ in range(2))
    assert torch.equal(first, second), "training draws at random with every one of random_fields at 0: name the field there"

    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        torch.manual_seed(0)
        total, weight = task.loss(model, batch)
        loss = total / weight
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0], f"four examples were not learned: loss {losses[0]:.3f} -> {losses[-1]:.3f} in {steps} steps"


def _outputs(task: Task, model: nn.Module, batch: Batch) -> Tensor:
    return task.losses(model, batch)[0]


class _Bowl(nn.Module):
    """||A W - B||^2 + ||v - c||^2: a matrix and a vector, so that optimizers which tell them apart do."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(6, 4, generator=g))
        self.bias = nn.Parameter(torch.randn(4, generator=g))
        self.a, self.b, self.c = torch.randn(12, 6, generator=g), torch.randn(12, 4, generator=g), torch.randn(4, generator=g)
        solved = torch.linalg.lstsq(self.a, self.b).solution
        self.least = float(((self.a @ solved - self.b) ** 2).mean())

    def forward(self) -> Tensor:
        return ((self.a @ self.weight - self.b) ** 2).mean() + ((self.bias - self.c) ** 2).mean() - self.least


class _Logistic(nn.Module):
    """Mean logistic loss of 40 separable points."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.zeros(2, 5))
        self.bias = nn.Parameter(torch.zeros(2))
        self.x = torch.randn(40, 5, generator=g)
        self.y = (self.x @ torch.randn(5, generator=g) > 0).long()

    def forward(self) -> Tensor:
        return nn.functional.cross_entropy(self.x @ self.weight.t() + self.bias, self.y)


def _descend(config: OptimConfig, problem: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int, total: int) -> list[float]:
    losses = []
    for step in range(start, stop):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * config.schedule.factor(step, total)
        loss = problem()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def check_optimizer(config: OptimConfig, *, steps: int = 300, fall: float = 0.2) -> None:
    """Check an optimizer: two convex functions fall below `fall` times their initial value; saving its state as tensors and numbers and
    resuming in a new process gives the same weights bit for bit; every group has its peak rate.
    """
    for make in (_Bowl, _Logistic):
        problem = make(0)
        optimizer = config.build(problem)
        assert all("peak_lr" in g for g in optimizer.param_groups), "each parameter group must hold peak_lr"
        held = [id(p) for g in optimizer.param_groups for p in g["params"]]
        assert sorted(held) == sorted(id(p) for p in problem.parameters()), "each parameter must be in exactly one group"
        losses = _descend(config, problem, optimizer, 0, steps, steps)
        assert losses[-1] < fall * losses[0], f"{make.__name__}: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {steps} steps"

        half = make(0)
        first = config.build(half)
        _descend(config, half, first, 0, steps // 2, steps)
        tensors, numbers = optimizer_tensors(first, half)
        saved = {k: v.clone() for k, v in tensors.items()}, json.loads(json.dumps(numbers))
        resumed = make(0)
        resumed.load_state_dict(half.state_dict())
        second = config.build(resumed)
        load_optimizer(second, resumed, *saved)
        _descend(config, resumed, second, steps // 2, steps, steps)
        for (name, p), q in zip(problem.named_parameters(), resumed.parameters(), strict=True):
            assert torch.equal(p, q), f"{make.__name__}.{name}: resuming in the middle gave other weights"


def check_source(config: SourceConfig) -> None:
    """Check a data source: returns the declared kind of data, with the same content and fingerprint each time."""
    output_kind = config.output_kind()
    known = {kind.output_kind: kind for kind in reversed(data_kinds().values())}
    assert output_kind in known, f"output kind {output_kind!r} is unknown; expected one of: {', '.join(known)}"
    assert config.fingerprint() == config.fingerprint(), "the fingerprint changes"
    json.dumps(config.describe())
    check = "table" if config.tabular() else output_kind
    if check in _SOURCE_CHECKS:
        _SOURCE_CHECKS[check](config)
        return
    request = Request(DataConfig(source=config), {"train": config}, seed=0)
    first, second = (known[output_kind]().read(config, "train", request) for _ in range(2))
    assert _same(first, second), "what is read differs from one reading to the next"


def _same(a: Any, b: Any) -> bool:
    """Whether two values that were read are exactly equal."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if is_dataclass(a):
        return type(a) is type(b) and all(_same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


def _check_documents(config: SourceConfig) -> None:
    first, second = list(config.documents()), list(config.documents())
    assert first, "no document"
    assert first == second, "documents differ from one reading to the next"
    assert all(isinstance(d.text, str) and d.name for d in first), "each document needs a text and a name"


def _check_series(config: SourceConfig) -> None:
    a, b = config.series(), config.series()
    assert isinstance(a, Series), f"series() gave {type(a).__name__}"
    assert len(a) > 0, "no moment"
    assert a.values.shape == (len(a), len(a.names)), "values must be moments x columns, each with a name"
    assert 0 < a.targets <= len(a.names), "the columns to predict come first, and there is at least one"
    assert (np.diff(a.times.astype(np.int64)) > 0).all(), "moments must be in order, each once"
    assert np.isfinite(a.values).all(), "values must be finite"
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.times, b.times)


def _check_labelled_texts(config: SourceConfig) -> None:
    read, reread = config.labelled_texts(), config.labelled_texts()
    assert len(read) > 0, "no text"
    assert list(read.texts) == list(reread.texts), "texts differ from one reading to the next"
    assert len(read.texts) == len(read.targets) == len(read.places), "each text needs a class and a place"
    assert int(read.targets.max()) < len(read.label_names), "a class has no name"
    np.testing.assert_array_equal(read.targets, reread.targets)


def _check_dialogues(config: SourceConfig) -> None:
    rows, same_rows = (config.conversations() if config.output_kind() == "chat" else config.pairs() for _ in range(2))
    assert rows, "no row"
    assert rows == same_rows, "rows differ from one reading to the next"
    assert all(r.place for r in rows), "each row needs a place, for messages"


def _check_table(config: SourceConfig) -> None:
    x, y = config.table(), config.table()
    assert isinstance(x, Table), f"table() gave {type(x).__name__}"
    assert len(x) > 0, "no row"
    assert all(len(values) == len(x) for values in x.columns.values()), "every column needs a value, or None, in each row"
    assert y is not None
    assert x.columns == y.columns, "columns differ from one reading to the next"
    np.testing.assert_array_equal(x.targets, y.targets)
    if x.classes:
        assert int(x.targets.max()) < len(x.label_names), "a class has no name"


def _check_signals(config: SourceConfig) -> None:
    heard, again = config.signals(), config.signals()
    assert len(heard) > 0, "no recording"
    assert heard.rate == again.rate, "another sampling rate from one reading to the next"
    assert list(heard.names) == list(again.names), "recordings differ from one reading to the next"
    for wave, same in zip(heard.waves, again.waves, strict=True):
        np.testing.assert_array_equal(wave, same)
    assert (heard.targets is None) == bool(heard.transcripts), "each recording needs a class, or a transcript"


def _check_arrays(config: SourceConfig) -> None:
    one, two = config.arrays(), config.arrays()
    assert isinstance(one, Arrays), f"arrays() gave {type(one).__name__}"
    assert len(one) > 0, "no row"
    assert len(one.features) == len(one.targets), "features and targets differ in number"
    np.testing.assert_array_equal(one.features, two.features)
    np.testing.assert_array_equal(one.targets, two.targets)
    if one.classes and one.label_names:
        assert int(one.targets.max()) < len(one.label_names), "a class has no name"


_SOURCE_CHECKS: dict[str, Callable[[SourceConfig], None]] = {
    "text": _check_documents, "series": _check_series, "labelled-text": _check_labelled_texts, "chat": _check_dialogues,
    "pairs": _check_dialogues, "table": _check_table, "signals": _check_signals, "arrays": _check_arrays,
}  # fmt: skip
"""Output kinds of Tauon's own kinds of data; sources of others are read by their kind."""
