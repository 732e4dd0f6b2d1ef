"""`prepare` and the keys of its section: refused where they do not fit, all of them read, documented; the whole way to batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from preparation_samples import blobs, config, decoded, text_config, write_corpus

from tauon.config import Config, json_schema, parse, register, unread_keys
from tauon.data import (
    DataConfig,
    DataSplits,
    Document,
    Loader,
    SourceConfig,
    prepare,
    problems_for,
)
from tauon.errors import RecipeError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("values", "input_kind", "key"),
    [
        ({"source": "python-stdlib"}, "arrays", "source"),
        ({"source": {"kind": "sklearn", "name": "iris"}}, "tokens", "source"),
        ({"source": {"kind": "sklearn", "name": "iris"}, "tokenizer": "bytes"}, "arrays", "tokenizer"),
        ({"source": {"kind": "sklearn", "name": "iris"}, "seq_len": 3}, "arrays", "seq_len"),
        ({"source": "python-stdlib", "normalize": "unit"}, "tokens", "normalize"),
        ({"source": "python-stdlib", "augment": ["flip"]}, "tokens", "augment"),
        ({"source": "python-stdlib", "split": {"by": "row"}}, "tokens", "split.by"),
        ({"source": {"kind": "sklearn", "name": "iris"}, "split": {"by": "document"}}, "arrays", "split.by"),
    ],
)
def test_settings_that_do_not_fit_the_task_are_refused(values: dict[str, Any], input_kind: Any, key: str) -> None:
    tree = config(**values)
    assert [k for k, _ in problems_for(tree, input_kind)] == [key]
    with pytest.raises(RecipeError, match=f"data.{key}: "):
        prepare(tree, seed=0, input_kind=input_kind)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation": "python-stdlib", "split": {"validation": 0.2}}, r"split\.validation: has no effect"),
        ({"test": "python-stdlib", "split": {"folds": 3}}, r"test: has no effect with split\.folds"),
        ({"validation": {"kind": "sklearn", "name": "iris"}}, r"validation: provides arrays, but data\.source provides text"),
        ({"overlap": 1.0}, "overlap"),
        ({"seq_len": 0}, "seq_len"),
    ],
)
def test_impossible_sections_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        config(source="python-stdlib", **values)


def test_every_key_that_was_set_is_consumed_also_when_found_done(corpus: Path, tmp_path: Path) -> None:
    def fresh() -> DataConfig:
        return config(
            source={"kind": "text", "path": str(corpus), "pattern": "*.txt", "encoding": "utf-8", "document_start": "^number", "limit": 50},
            split={"validation": 0.2, "by": "document", "seed": 3, "test": 0.1},
            tokenizer={"kind": "bpe", "vocab": 280, "pattern": "gpt2", "sample": "1MB", "min_count": 3},
            seq_len=16, mask_documents=True, overlap=0.5, cache=str(tmp_path / "mine"),
        )  # fmt: skip

    for _ in range(2):
        tree = fresh()
        assert unread_keys(tree)
        prepare(tree, seed=0, input_kind="tokens")
        assert unread_keys(tree) == []


def test_keys_of_arrays_are_consumed(tmp_path: Path) -> None:
    tree = config(
        source={"kind": "npz", "path": blobs(tmp_path), "split": "auto", "features": "x", "targets": "y", "target": "class", "limit": 90},
        split={"folds": 3, "fold": 1, "validation": 0.1, "seed": 2, "by": "row"}, normalize="standard",
        augment=[{"kind": "noise", "std": 0.3}],
    )  # fmt: skip
    prepare(tree, seed=0, input_kind="arrays")  # augmentation is read here, though it acts on batches that are drawn later
    assert set(unread_keys(tree)) <= {"source.split"}


def test_a_source_from_another_package_needs_one_class(cache: Path) -> None:
    @register("toy-primes")
    class ToyConfig(SourceConfig):
        upto: int = 2000

        def documents(self) -> Iterator[Document]:
            yield Document(" ".join(str(n) for n in range(2, self.upto) if all(n % d for d in range(2, n))), "primes")

    try:
        tree = config(source={"kind": "toy-primes", "upto": 500}, tokenizer="chars", seq_len=32)
        made = prepare(tree, seed=0, input_kind="tokens")
        assert decoded(made.train)[0].startswith("2 3 5 7 11 13")
        assert unread_keys(tree) == []
        assert prepare(tree, seed=0, input_kind="tokens").facts["cache"]["reused"]
        assert not prepare(
            config(source={"kind": "toy-primes", "upto": 600}, tokenizer="chars", seq_len=32), seed=0, input_kind="tokens"
        ).facts["cache"]["reused"]
        assert "toy-primes" in json.dumps(json_schema(DataConfig))
    finally:
        del SourceConfig._members["toy-primes"]


def test_a_section_comes_back_from_its_own_dump(corpus: Path) -> None:
    from tauon.config import dump

    tree = text_config(corpus, augment=[])
    again = parse(DataConfig, json.loads(json.dumps(dump(tree))))
    assert again == tree


def test_every_node_documents_its_fields() -> None:
    def undocumented(node: dict[str, Any], at: str) -> Iterator[str]:
        for name, value in node.get("properties", {}).items():
            if name != "kind" and "description" not in value and "$ref" not in value:
                yield f"{at}.{name}"

    schema = json_schema(DataConfig)
    missing = [m for name, node in schema["$defs"].items() for m in undocumented(node, name)]
    assert [m for m in missing if m.split(".")[0] in {"source", "tokenizer", "augment", "SplitConfig"}] == []


def test_the_whole_way_gives_batches_for_any_world(corpus: Path) -> None:
    made: DataSplits = prepare(text_config(corpus), seed=7, input_kind="tokens")
    one = Loader(made.train, batch=4, seed=7)
    two = [Loader(made.train, batch=4, seed=7, rank=r, world=2) for r in range(2)]
    for s in range(2 * one.steps_per_epoch):
        whole, parts = one.batch_at(s), [loader.batch_at(s) for loader in two]
        for name in ("inputs", "targets", "weights", "segments", "index"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))


def test_configs_are_nodes_of_the_tree() -> None:
    assert issubclass(DataConfig, Config)
