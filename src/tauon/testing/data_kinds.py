"""Contract of a kind of data: prepared small examples are split cleanly, come in an order that can be resumed, and are recorded completely.
Public, as the others in `contracts.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from tauon.config import dump, parse
from tauon.data import (
    DataConfig,
    DataKind,
    DataSplits,
    Loader,
    Request,
    SourceConfig,
    data_kinds,
    keys_of_kinds,
    kind_for,
    prepare,
    problems_for,
    without_augmentation,
)
from tauon.types import Batch, Dataset

__all__ = ["DataExample", "check_data_kind"]

Kind = type[DataKind[Any]]


@dataclass(frozen=True)
class DataExample:
    """Small data of one kind, some dozens of examples."""

    data: Mapping[str, Any]
    """A `data` section whose `split` holds examples out for validation and for test."""
    other: Mapping[str, Any]
    """Another `source` with the same form and other content."""
    changes: Mapping[str, Any]
    """For keys that the kind `reads`, a value that makes other examples than `data` does."""
    scale_targets: bool = False
    """As the task asks for it (`prepare`)."""
    units: Callable[[Dataset], list[Any]] | None = None
    """Of a kind that writes `prepare` itself: what its split deals (documents, say), as a data set holds it."""


def check_data_kind(kind: Kind, *examples: DataExample) -> None:
    """Check a kind of data: parts are disjoint and cover what was read; an epoch is a permutation, and its order a pure function of (seed, step);
    a resumed stream is the same; facts and preprocess are JSON; the fingerprint changes with the content and with each key that the kind
    reads, and with nothing else; keys of other kinds are refused.
    """
    shown = {key for example in examples for key in example.changes}
    unsaid, unread = set(kind.reads) - shown - _FILES - {*_WHERE}, shown - set(kind.reads)
    assert not unsaid, f"{kind.kind_} says that it reads {sorted(unsaid)}: give an example whose `changes` name another value of each"
    assert not unread, f"{kind.kind_} does not say that it reads {sorted(unread)}: add them to its `reads`"
    for example in examples:
        config = _config(example)
        assert kind_for(kind.input_kind, config.raw_value("source")) is kind, (
            f"such a source is of kind {kind_for(kind.input_kind, config.source).kind_}"
        )
        assert config.raw_value("source").output_kind() == kind.output_kind, (
            f"the source gives {config.source.output_kind()}, and the kind is of {kind.output_kind}"
        )
        splits = _prepare(kind, config, example)
        _check_records(splits)
        _check_split(kind, config, example, splits)
        for part in _parts(splits).values():
            _check_batches(part)
        _check_order(splits.train)
        _check_plain(splits.train)
        _check_resumed(splits.train, _prepare(kind, parse(DataConfig, json.loads(json.dumps(dump(config)))), example).train)
        _check_fingerprint(kind, config, example, splits.fingerprint)
        _check_shadow_split(kind, example, splits)
    _check_refusals(kind, examples[0])


def _config(example: DataExample, **changes: Any) -> DataConfig:
    return parse(DataConfig, dict(example.data) | changes)


def _prepare(kind: Kind, config: DataConfig, example: DataExample) -> DataSplits:
    return prepare(config, seed=1, input_kind=kind.input_kind, scale_targets=example.scale_targets)


def _parts(splits: DataSplits) -> dict[str, Dataset]:
    named = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    return {name: part for name, part in named.items() if part is not None}


def _check_records(splits: DataSplits) -> None:
    for name, record in (("facts", splits.facts), ("preprocess", splits.preprocess)):
        assert json.loads(json.dumps(record, allow_nan=False)), f"{name} are empty"
        assert "kind" in record, f"{name} do not say of which kind the data is"
    assert {"sources", "split", "parts", "content"} <= set(splits.facts), "facts lack what every kind has: use `DataKind.facts`"
    assert len(splits.fingerprint) == 64, "the fingerprint is no sha256"
    assert set(splits.facts["parts"]) == set(_parts(splits)) == {"train", "validation", "test"}, "the example must hold out both parts"


def _check_split(kind: Kind, config: DataConfig, example: DataExample, splits: DataSplits) -> None:
    if kind.prepare is not DataKind.prepare:
        units = example.units
        assert units is not None, f"{kind.kind_} writes `prepare` itself: the example must say how to list what its split deals (`units`)"
        dealt = [unit for part in _parts(splits).values() for unit in units(part)]
        whole = parse(DataConfig, dump(config) | {"split": dump(config.split) | {"validation": 0, "test": 0}})
        every = units(_prepare(kind, whole, example).train)
        assert len(dealt) == len(set(dealt)), "what the split deals is in two parts"
        assert sorted(dealt) == sorted(every), "the parts do not cover what was read"
        return
    sources: dict[Any, SourceConfig] = {"train": config.source}
    request = Request(config, sources, 1, example.scale_targets)
    data = kind()
    parts, _ = data.split({part: data.read(source, part, request) for part, source in sources.items()}, request)
    rows = [i for part in parts.values() for i in part.index.tolist()]
    assert len(set(rows)) == len(rows), "an example is in two parts"
    assert sorted(rows) == [*range(data.count(parts["train"].data))], "the parts do not cover what was read"


def _tensors(batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
    for f in fields(Batch):
        value = getattr(batch, f.name)
        if value is not None:
            yield f.name, value


def _same(a: Batch, b: Batch) -> bool:
    one, two = dict(_tensors(a)), dict(_tensors(b))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _check_batches(dataset: Dataset) -> None:
    """An example does not depend on others in its batch, and matches the spec."""
    n = len(dataset)
    assert n > 1, "too few examples to check anything: give more"
    whole = dataset.batch(np.arange(n))
    assert whole.index is not None, "batches do not say the numbers of their examples (`Batch.index`)"
    assert whole.index.tolist() == [*range(n)], "batches say other numbers than were asked for"
    for i in (0, n - 1):
        mine = {name: value[i] for name, value in _tensors(whole)}
        alone = {name: value[0] for name, value in _tensors(dataset.batch(np.array([i])))}
        assert all(torch.equal(mine[name], alone[name]) for name in mine), f"example {i} depends on what else is in its batch"
    spec = dataset.spec
    if spec.input_shape is not None:
        assert tuple(whole.inputs.shape[1:]) == spec.input_shape, (
            f"inputs are {tuple(whole.inputs.shape[1:])}, and the spec says {spec.input_shape}"
        )
    if spec.vocab is not None:
        assert whole.inputs.shape[-1] == spec.seq_len, f"rows have {whole.inputs.shape[-1]} tokens, and the spec says {spec.seq_len}"
        assert 0 <= int(whole.inputs.min()) <= int(whole.inputs.max()) < spec.vocab, "a token is beyond the vocabulary of the spec"


def _check_plain(dataset: Dataset) -> None:
    """What an audit looks at: as many examples, none weighed by its class, each the same in every epoch (but for what masking hides)."""
    plain = without_augmentation(dataset)
    assert len(plain) == len(dataset), "without augmentation there are other examples"
    index = np.arange(len(plain))
    one, two = plain.batch(index, epoch=0), plain.batch(index, epoch=3)
    assert torch.equal(one.targets, two.targets), (
        "targets change from epoch to epoch though nothing is augmented: write `without_augmentation`"
    )
    masked = not torch.equal(one.weights, two.weights)
    assert masked or torch.equal(one.inputs, two.inputs), (
        "inputs change from epoch to epoch though nothing is augmented: write `without_augmentation`"
    )


def _check_order(dataset: Dataset) -> None:
    """The order depends only on (seed, step). Without its own `order`, a data set returns each example once per epoch."""
    n, size = len(dataset), max(1, len(dataset) // 3)
    steps = [*range(math.ceil(2 * n / size))]

    def order(seed: int, asked: list[int]) -> list[int]:
        loader = Loader(dataset, batch=size, seed=seed)
        at = {step: loader.examples_at(step)[1].tolist() for step in asked}
        return [example for step in steps for example in at[step]]

    seen = order(5, steps)
    assert order(5, steps[::-1]) == seen, "the order depends on what was asked for before"
    if getattr(dataset, "order", None) is not None:
        return
    for epoch in (0, 1):
        assert sorted(seen[epoch * n : (epoch + 1) * n]) == [*range(n)], f"epoch {epoch} is not a permutation of the examples"
    assert n < 4 or order(6, steps) != seen, "another seed gave the same order"


def _check_resumed(dataset: Dataset, prepared_again: Dataset) -> None:
    size = max(1, len(dataset) // 3)
    with Loader(dataset, batch=size, seed=5) as first, Loader(prepared_again, batch=size, seed=5, workers=1) as resumed:
        batches = [first.batch_at(step) for step in range(6)]
        for step in (3, 4, 5):
            assert _same(batches[step], resumed.batch_at(step)), f"step {step} is another batch when the stream begins there"


def _check_fingerprint(kind: Kind, config: DataConfig, example: DataExample, fingerprint: str) -> None:
    assert _prepare(kind, config, example).fingerprint == fingerprint, "the fingerprint changes from one preparation to the next"
    for key, value in example.changes.items():
        changed = value if isinstance(value, Mapping) and key in value else {key: value}  # a key that needs another one beside it
        made = _prepare(kind, _config(example, **changed), example)
        assert made.fingerprint != fingerprint, f"the kind says that it reads {key}, which does not change the fingerprint"
    for key, value in {"workers": 2, "cache": None, **({"processes": 2} if "processes" in kind.reads else {})}.items():
        assert _prepare(kind, _config(example, **{key: value}), example).fingerprint == fingerprint, f"{key} changes the fingerprint"
    other = _prepare(kind, _config(example, source=example.other), example)
    assert other.fingerprint != fingerprint, "other content has the same fingerprint"
    split = dump(config.split) | {"validation": 0.25}
    assert _prepare(kind, _config(example, split=split), example).fingerprint != fingerprint, "another split has the same fingerprint"


def _check_shadow_split(kind: Kind, example: DataExample, splits: DataSplits) -> None:
    """Two complementary halves, for the reference models of an audit."""
    if getattr(splits.train, "order", None) is not None:
        return
    halves = [_prepare(kind, _config(example, half={"number": n}), example) for n in (0, 1)]
    sizes = [(len(half.train), len(half.test)) for half in halves if half.test is not None]
    assert len(sizes) == 2, "a half leaves nothing to test on"
    assert sizes[0] == sizes[1][::-1], f"what half 0 leaves out is not what half 1 trains on: {sizes}"
    assert halves[0].fingerprint != halves[1].fingerprint, "both halves have one fingerprint"


_WHERE: dict[str, dict[str, Any]] = {"processes": {"processes": 2}, "cluster": {"cluster": "ray"}}
"""Keys that say where the work is done, and change no example."""
_OTHERS: dict[str, dict[str, Any]] = {
    "tokenizer": {"tokenizer": "chars"}, "seq_len": {"seq_len": 8}, "mask_documents": {"mask_documents": False}, "overlap": {"overlap": 0.25},
    "normalize": {"normalize": "standard"}, "bounds": {"bounds": {"*": [0, 1]}, "normalize": "bounds"},
    "normalize_targets": {"normalize_targets": "none"}, "augment": {"augment": [{"kind": "jitter"}]}, "scattering": {"scattering": {}},
    "mix": {"mix": {"mixup": 0.2}}, "sampling": {"sampling": "balanced"}, "class_weights": {"class_weights": "balanced"},
    "label_order": {"label_order": ["a", "b"]}, "table": {"table": {"categories": "onehot"}}, "window": {"window": {"context": 5}},
    "signal": {"signal": {"seconds": 1}}, "spec": {"spec": "spec.json"}, "chat": {"chat": {"empty_answers": "drop"}},
    **_WHERE, "dedup": {"dedup": {}}, "decontaminate": {"decontaminate": {"action": "drop"}},
}  # fmt: skip
"""Non-default values of each key that only some kinds read."""
_FILES = {"spec"}
"""Keys whose value is a file that another preparation wrote: an example may leave them out."""


def _check_refusals(kind: Kind, example: DataExample) -> None:
    mine = keys_of_kinds(kind.input_kind)
    for key in sorted({key for other in data_kinds().values() for key in other.reads} - mine):
        config = parse(DataConfig, {"source": example.data["source"], **_OTHERS[key]})
        refused = [name for name, _ in problems_for(config, kind.input_kind)]
        assert key in refused, f"{key} is for other kinds of data, and nothing refuses it"
    assert not list(problems_for(_config(example), kind.input_kind)), "the example itself is refused"
