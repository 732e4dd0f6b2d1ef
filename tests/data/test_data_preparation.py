"""`prepare`: from a recipe's section to data sets; done once, found again, never half there, never leaking."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import Config, json_schema, parse, register, unread_keys
from tauon.data import (
    DataConfig,
    DataSplits,
    Document,
    Loader,
    Normalizer,
    Shards,
    SourceConfig,
    TokenDataset,
    Tokenizer,
    prepare,
    problems_for,
)
from tauon.data.cache import obtain
from tauon.errors import ChecksumError, DataError, RecipeError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Thirty files of made-up prose, one of them twice."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = ["river", "stone", "light", "under", "quiet", "morning", "of", "the", "a", "and\n"]
    for i in range(30):
        (folder / f"{i:02d}.txt").write_text(" ".join(rng.choice(words, 120)) + f"\nnumber {i}\n")
    (folder / "copy.txt").write_text((folder / "07.txt").read_text())
    return folder


def config(**values: Any) -> DataConfig:
    return parse(DataConfig, values)


def text_config(corpus: Path, **values: Any) -> DataConfig:
    return config(source={"kind": "text", "path": str(corpus)}, **{"tokenizer": {"kind": "bpe", "vocab": 300}, "seq_len": 32} | values)


def decoded(data: Any) -> list[str]:
    assert isinstance(data, TokenDataset)
    return [data.tokenizer.decode(d) for d in data.shards.documents()]


# ---------------------------------------------------------------------------------------------- text


def test_text_becomes_parts_that_together_are_the_text(corpus: Path) -> None:
    made = prepare(text_config(corpus, split={"validation": 0.2, "test": 0.1}), seed=0, input_kind="tokens")
    parts = {"train": decoded(made.train), "validation": decoded(made.validation), "test": decoded(made.test)}
    everything = sorted(p.read_text() for p in corpus.iterdir())
    assert sorted(t for texts in parts.values() for t in texts) == everything
    assert not set(parts["train"]) & set(parts["validation"] + parts["test"])
    assert made.spec.vocab == made.tokenizer.vocab_size  # type: ignore[union-attr]
    assert made.spec.seq_len == 32
    json.dumps(made.facts, allow_nan=False)
    json.dumps(made.preprocess, allow_nan=False)
    facts = made.facts["parts"]["train"]
    joined = "".join(parts["train"])
    assert (facts["bytes"], facts["words"], facts["lines"]) == (len(joined.encode()), len(joined.split()), joined.count("\n"))
    assert made.train.batch(np.arange(2)).segments is not None


def test_done_work_is_found_again_and_equal(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepare(text_config(corpus), seed=0, input_kind="tokens")
    monkeypatch.setattr("tauon.data.kinds.tokens._build", lambda *a: pytest.fail("prepared twice"))
    two = prepare(text_config(corpus), seed=0, input_kind="tokens")
    assert (one.facts["cache"]["reused"], two.facts["cache"]["reused"]) == (False, True)
    assert one.fingerprint == two.fingerprint
    assert one.tokenizer == two.tokenizer
    assert torch.equal(one.train.batch(np.arange(5)).inputs, two.train.batch(np.arange(5)).inputs)
    longer = prepare(text_config(corpus, seq_len=48, mask_documents=False), seed=0, input_kind="tokens")  # windows are not on disk
    assert longer.facts["cache"]["reused"]
    assert longer.fingerprint != one.fingerprint
    assert longer.train.batch(np.arange(1)).segments is None


@pytest.mark.parametrize("change", ["content", "tokenizer", "split", "seed"])
def test_the_fingerprint_changes_with_whatever_changes_the_examples(corpus: Path, change: str) -> None:
    one = prepare(text_config(corpus), seed=0, input_kind="tokens")
    values: dict[str, Any] = {}
    if change == "content":
        (corpus / "00.txt").write_text("another text\n")
    elif change == "tokenizer":
        values["tokenizer"] = {"kind": "bpe", "vocab": 301}
    elif change == "split":
        values["split"] = {"seed": 1}
    two = prepare(text_config(corpus, **values), seed=int(change == "seed"), input_kind="tokens")
    assert one.fingerprint != two.fingerprint
    assert two.facts["cache"]["reused"] == (change == "seed")


def test_the_tokenizer_never_sees_held_out_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc " * 300 + "xyz " * 30)
    made = prepare(
        config(source={"kind": "text", "path": str(tmp_path / "t.txt")}, tokenizer="chars", split={"validation": 0.1}, seq_len=8),
        seed=0, input_kind="tokens",
    )  # fmt: skip
    assert made.preprocess["tokenizer"]["alphabet"] == " abc"
    assert made.facts["tokenizer"]["unknown"] == {"train": 0, "validation": 90}
    assert made.train.batch(np.arange(1)).segments is None  # one document


def test_segments_are_there_for_all_parts_or_for_none(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("the quiet river " * 50)
    made = prepare(text_config(corpus, validation={"kind": "text", "path": str(tmp_path / "v.txt")}), seed=0, input_kind="tokens")
    assert made.validation is not None
    assert made.train.batch(np.arange(1)).segments is not None
    assert made.validation.batch(np.arange(1)).segments is not None


def test_held_out_sources_of_their_own_are_used_and_cannot_leak(corpus: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    (held / "a.txt").write_text((corpus / "07.txt").read_text())  # 07 and copy are its equals
    (held / "b.txt").write_text("something of its own " * 30)
    made = prepare(text_config(corpus, validation={"kind": "text", "path": str(held)}), seed=0, input_kind="tokens")
    assert sorted(decoded(made.validation)) == sorted(p.read_text() for p in held.iterdir())
    assert len(decoded(made.train)) == 29
    assert not set(decoded(made.train)) & set(decoded(made.validation))
    assert made.facts["split"]["left_out_as_held_out"] == 2
    assert made.test is None


def test_training_text_that_is_all_held_out_is_an_error(corpus: Path) -> None:
    with pytest.raises(DataError, match="every training document is also in the validation or test source"):
        prepare(text_config(corpus, validation={"kind": "text", "path": str(corpus)}), seed=0, input_kind="tokens")


def test_the_limit_takes_the_first_documents(corpus: Path) -> None:
    made = prepare(
        config(source={"kind": "text", "path": str(corpus), "limit": 3}, tokenizer="bytes", seq_len=16), seed=0, input_kind="tokens"
    )
    assert "".join(decoded(made.train) + decoded(made.validation)) == "".join((corpus / f"0{i}.txt").read_text() for i in range(3))


@pytest.mark.parametrize(
    ("content", "values", "message"),
    [
        (b"", {}, r"source 'text' \(train\) has no text: all 1 documents are empty"),
        (b"too short", {"seq_len": 100}, r"the train part has 10 tokens \(BOS included\), fewer than one sequence of seq_len=100"),
        (b"x", {}, r"the train part is empty|the validation part is empty"),
        (b"\xffhello", {}, r"not utf-8 at byte 0"),
    ],
)
def test_wrong_text_is_named_and_leaves_nothing(tmp_path: Path, cache: Path, content: bytes, values: dict[str, Any], message: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    made = {"source": {"kind": "text", "path": str(tmp_path / "t.txt")}, "tokenizer": "bytes", "seq_len": 4} | values
    with pytest.raises(DataError, match=message):
        prepare(config(**made), seed=0, input_kind="tokens")
    left = [p for p in cache.rglob("*") if ".tmp-" in p.name]
    assert left == []


def test_a_lone_surrogate_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": "ok"}\n{"text": "a\\ud800"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl#1: character 1 is a lone surrogate"):
        prepare(config(source={"kind": "jsonl", "path": str(tmp_path / "t.jsonl")}), seed=0, input_kind="tokens")


def test_text_that_changes_while_it_is_read_is_an_error(cache: Path) -> None:
    reads = iter(range(100))

    @register("toy-growing")
    class GrowingConfig(SourceConfig):
        def documents(self) -> Iterator[Document]:
            yield Document("word " * (100 + next(reads)), "grows.txt")

        def fingerprint(self) -> str:
            return "0" * 64

    try:
        with pytest.raises(DataError, match=r"grows\.txt: the file changed while it was being prepared"):
            prepare(config(source="toy-growing", tokenizer="chars", seq_len=8), seed=0, input_kind="tokens")
        assert [p.name for p in (cache / "tokens").iterdir() if not p.name.endswith(".lock")] == []
    finally:
        del SourceConfig._members["toy-growing"]


def test_a_full_disk_is_said_and_nothing_stays(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("numpy.save", full)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\)\. Free disk space"):
            prepare(text_config(corpus), seed=0, input_kind="tokens")
    assert [p.name for p in (cache / "tokens").iterdir() if not p.name.endswith(".lock")] == []
    assert not prepare(text_config(corpus), seed=0, input_kind="tokens").facts["cache"]["reused"]


def test_a_damaged_preparation_is_refused_with_the_way_out(corpus: Path) -> None:
    made = prepare(text_config(corpus), seed=0, input_kind="tokens")
    folder = Path(made.facts["cache"]["folder"])
    path = folder / "train" / "tokens-00000.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ChecksumError, match=r"tokens-00000\.npy: has .* Delete .*prepared again"):
        prepare(text_config(corpus), seed=0, input_kind="tokens")
    other = folder / "tokenizer.json"
    whole = other.read_text()
    for text, message in (
        (whole.replace("river", "revir"), "not a tokenizer"),
        (whole.replace("number", "bumner"), "."),
        (whole[:-5], "not valid JSON"),
    ):
        other.write_text(text)
        with pytest.raises(ChecksumError, match=rf"tokenizer\.json: {message}.* Delete .*prepared again"):
            prepare(text_config(corpus), seed=0, input_kind="tokens")


def test_what_a_dead_process_left_is_cleared(corpus: Path, cache: Path) -> None:
    folder = Path(prepare(text_config(corpus), seed=0, input_kind="tokens").facts["cache"]["folder"])
    dead = folder.parent / f".{folder.name}.tmp-dead"
    folder.rename(dead)  # as kill -9 would leave it: all written, never renamed
    assert not prepare(text_config(corpus), seed=0, input_kind="tokens").facts["cache"]["reused"]
    assert not dead.exists()


def _prepare_in_child(corpus: str, queue: Any) -> None:
    made = prepare(text_config(Path(corpus)), seed=0, input_kind="tokens")
    queue.put((made.fingerprint, made.facts["cache"]["reused"]))


def test_two_processes_at_once_make_one_preparation(corpus: Path, cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    children = [context.Process(target=_prepare_in_child, args=(str(corpus), queue)) for _ in range(2)]
    for child in children:
        child.start()
    answers = [queue.get(timeout=600) for _ in children]
    for child in children:
        child.join()
    assert len({fingerprint for fingerprint, _ in answers}) == 1
    assert sorted(reused for _, reused in answers) == [False, True]
    (folder,) = (p for p in (cache / "tokens").iterdir() if p.is_dir())
    Shards(folder / "train").verify()


def test_without_locks_the_loser_uses_the_winners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks: another process finishes while we build."""
    import fcntl

    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    target = tmp_path / "thing"

    def build(temporary: Path) -> None:
        target.mkdir()
        (target / "done").write_text("winner")
        (temporary / "done").write_text("loser")

    obtain(target, "done", build)
    assert (target / "done").read_text() == "winner"
    assert sorted(os.listdir(tmp_path)) == [".thing.lock", "thing"]


def test_cache_folders_are_private(corpus: Path, cache: Path) -> None:
    folder = Path(prepare(text_config(corpus), seed=0, input_kind="tokens").facts["cache"]["folder"])
    assert {oct(p.stat().st_mode & 0o777) for p in (cache, folder, folder / "train")} == {"0o700"}


def test_the_recipes_cache_comes_before_the_environments(corpus: Path, tmp_path: Path, cache: Path) -> None:
    made = prepare(text_config(corpus, cache=str(tmp_path / "mine")), seed=0, input_kind="tokens")
    assert Path(made.facts["cache"]["folder"]).is_relative_to(tmp_path / "mine")
    assert not cache.exists()


def test_progress_is_told(corpus: Path) -> None:
    told: list[str] = []
    prepare(text_config(corpus), seed=0, input_kind="tokens", progress=lambda what, done, total: told.append(what))
    assert {"read train", "tokenizer"} <= set(told)


def test_what_is_needed_later_replays_the_tokenizer(corpus: Path) -> None:
    made = prepare(text_config(corpus), seed=0, input_kind="tokens")
    again = Tokenizer.from_json(json.loads(json.dumps(made.preprocess["tokenizer"])))
    assert again == made.tokenizer
    assert again.sha256 == made.facts["tokenizer"]["sha256"]


# ---------------------------------------------------------------------------------------------- arrays


def blobs(tmp_path: Path, n: int = 200, **more: Any) -> str:
    rng = np.random.default_rng(0)
    y = np.arange(n) % 3
    np.savez(tmp_path / "blobs.npz", x=rng.normal(size=(n, 4)) + y[:, None], y=y, **more)
    return str(tmp_path / "blobs.npz")


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    made = prepare(
        config(source={"kind": "npz", "path": blobs(tmp_path)}, split={"test": 0.2}, normalize="standard"), seed=0, input_kind="arrays"
    )
    train = made.train.batch(np.arange(len(made.train))).inputs
    assert torch.allclose(train.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(train.std(0, correction=0), torch.ones(4), atol=1e-5)
    assert made.test is not None
    assert abs(float(made.test.batch(np.arange(40)).inputs.mean())) > 1e-4
    assert [len(d) for d in (made.train, made.validation, made.test)] == [140, 20, 40]  # type: ignore[arg-type]
    replay = Normalizer.from_json(json.loads(json.dumps(made.preprocess["normalize"])))
    raw = np.load(blobs(tmp_path))["x"]
    everything = {tuple(r) for r in replay(raw).tolist()}
    assert all(tuple(r) in everything for r in train.tolist())
    json.dumps(made.facts, allow_nan=False)
    assert sum(made.facts["parts"]["train"]["classes"].values()) == 140
    assert (made.spec.outputs, made.spec.input_shape, made.spec.labels) == (3, (4,), ("0", "1", "2"))


def test_auto_normalising_says_what_it_chose(tmp_path: Path) -> None:
    made = prepare(config(source={"kind": "npz", "path": blobs(tmp_path)}), seed=0, input_kind="arrays")
    assert made.facts["normalize"] == {"kind": "standard", "why": "features are not bytes"}
    np.savez(tmp_path / "b.npz", x=np.arange(40, dtype=np.uint8).reshape(20, 2), y=np.arange(20) % 2)
    bytes_ = prepare(config(source={"kind": "npz", "path": str(tmp_path / "b.npz")}), seed=0, input_kind="arrays")
    assert bytes_.facts["normalize"]["kind"] == "unit"


def test_a_files_own_parts_are_used_and_their_labels_matched_by_name(tmp_path: Path) -> None:
    x = np.arange(24.0).reshape(12, 2)
    np.savez(tmp_path / "p.npz", x_train=x, y_train=np.arange(12) % 3 + 5, x_test=x[:4] + 0.5, y_test=np.array([7, 6, 7, 6]))
    made = prepare(config(source={"kind": "npz", "path": str(tmp_path / "p.npz")}, split={"validation": 0}), seed=0, input_kind="arrays")
    assert made.spec.labels == ("5", "6", "7")
    assert made.test is not None
    assert made.test.batch(np.arange(4)).targets.tolist() == [2, 1, 2, 1]
    assert made.validation is None
    np.savez(tmp_path / "p.npz", x_train=x, y_train=np.arange(12) % 3, x_test=x[:4], y_test=np.array([0, 9, 0, 9]))
    with pytest.raises(DataError, match="test source has the label '9', which the training data does not have"):
        prepare(config(source={"kind": "npz", "path": str(tmp_path / "p.npz")}), seed=0, input_kind="arrays")


def test_parts_of_different_make_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((9, 3)) * np.arange(9)[:, None], y=np.arange(9) % 2)
    with pytest.raises(DataError, match=r"validation source has examples of shape \(3,\), but the training source has \(4,\)"):
        prepare(
            config(source={"kind": "npz", "path": blobs(tmp_path)}, validation={"kind": "npz", "path": str(tmp_path / "a.npz")}),
            seed=0, input_kind="arrays",
        )  # fmt: skip
    for name, header in (("a", "p,q,y"), ("b", "p,r,y")):
        (tmp_path / f"{name}.csv").write_text(header + "\n" + "\n".join(f"{i},{i},{i % 2}" for i in range(20)))
    sources = {k: {"kind": "csv", "path": str(tmp_path / f"{n}.csv"), "label": "y"} for k, n in (("source", "a"), ("validation", "b"))}
    with pytest.raises(DataError, match="the validation source has no column 'q', which the training source has. Its columns: p, r"):
        prepare(config(**sources), seed=0, input_kind="arrays")


def test_array_fingerprints_follow_what_decides_the_examples(tmp_path: Path) -> None:
    def of(seed: int = 0, **values: Any) -> str:
        return prepare(
            config(source={"kind": "npz", "path": blobs(tmp_path)} | values.pop("src", {}), **values), seed=seed, input_kind="arrays"
        ).fingerprint

    prints = [
        of(), of(seed=1), of(src={"limit": 100}), of(split={"seed": 3}), of(normalize="minmax"),
        of(augment=[{"kind": "noise", "std": 0.1}]),
        of(augment=[{"kind": "noise", "std": 0.2}]),
    ]  # fmt: skip
    assert len(set(prints)) == len(prints)
    assert of() == prints[0]


def test_held_out_rows_that_training_has_too_are_counted(tmp_path: Path) -> None:
    x = np.arange(40.0).reshape(20, 2)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.arange(20) % 2, x_test=np.concatenate([x[:3], x[:2] + 0.5]), y_test=[0, 1, 0, 1, 0])
    made = prepare(config(source={"kind": "npz", "path": str(tmp_path / "d.npz")}, split={"validation": 0}), seed=0, input_kind="arrays")
    assert made.facts["split"]["rows_also_in_train"] == {"test": 3}


def test_only_training_examples_are_augmented(tmp_path: Path) -> None:
    made = prepare(config(source={"kind": "npz", "path": blobs(tmp_path)}, augment=["noise"]), seed=0, input_kind="arrays")
    assert made.validation is not None
    assert not torch.equal(made.train.batch(np.arange(3), epoch=0).inputs, made.train.batch(np.arange(3), epoch=1).inputs)
    assert torch.equal(made.validation.batch(np.arange(3), epoch=0).inputs, made.validation.batch(np.arange(3), epoch=1).inputs)


def test_five_folds_test_every_row_once() -> None:
    pytest.importorskip("sklearn")
    tested = []
    for fold in range(5):
        made = prepare(
            config(source={"kind": "sklearn", "name": "iris"}, split={"folds": 5, "fold": fold, "validation": 0}),
            seed=0,
            input_kind="arrays",
        )
        assert made.test is not None
        assert made.facts["parts"]["test"]["classes"] == {"setosa": 10, "versicolor": 10, "virginica": 10}
        tested += made.test._rows.tolist()  # type: ignore[attr-defined]
    assert sorted(tested) == list(range(150))


# ---------------------------------------------------------------------------------------------- recipes


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
