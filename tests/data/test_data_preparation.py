"""`prepare` for text: from a recipe's section to data sets; done once, found again, never half there, never leaking."""

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
from preparation_samples import config, decoded, text_config, write_corpus

from tauon.config import register
from tauon.data import (
    Document,
    Shards,
    SourceConfig,
    Tokenizer,
    prepare,
)
from tauon.data.cache import obtain
from tauon.errors import ChecksumError, DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus")


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
    with pytest.raises(DataError, match=r"t\.jsonl, line 2: character 1 is a lone surrogate"):
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
        patch.setattr("tauon.data.npy_file.NpyFile.append", full)
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
