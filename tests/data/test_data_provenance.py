"""Every token leads back to its record: source, file and line, character, licence; and texts are found in the tokens."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparation_samples import config

from tauon.data import prepare
from tauon.data.shards import FORMAT_PAGE, Shards, ShardWriter
from tauon.data.tokenizer import ByteTokenizer
from tauon.data.trace import Trail
from tauon.errors import DataError

WORDS = ["river", "stone", "Zürich", "light", "under", "quiet", "日本語", "morning", "of", "the", "a", "\n", "😀"]
TOKENIZERS: dict[str, Any] = {"bytes": "bytes", "chars": "chars", "bpe": {"kind": "bpe", "vocab": 400}}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))


def records(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(5, 60))) for i in range(n)]


def traced(folder: Path, **values: Any) -> Trail:
    made = prepare(config(**values), seed=0, input_kind="tokens")
    folder.mkdir(exist_ok=True)
    (folder / "data.json").write_text(json.dumps(made.facts))
    return Trail(folder)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("by", ["document", "position"])
def test_every_token_stands_at_its_offset_in_its_record(tmp_path: Path, tokenizer: str, by: str) -> None:
    texts = records(24)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps({"text": t}) + "\n" for t in texts[:15]))
    (tmp_path / "b.jsonl").write_text("\n" + "".join(json.dumps({"text": t}) + "\n\n" for t in texts[15:]))  # blank lines are no records
    source = {"kind": "jsonl", "path": str(tmp_path / "*.jsonl*"), "licence": "CC0-1.0", "origin": "a test"}
    trail = traced(tmp_path / "run", source=source, tokenizer=TOKENIZERS[tokenizer], seq_len=8, split={"by": by, "test": 0.2})
    seen: dict[int, str] = {}
    for part in ("train", "validation", "test"):
        shards = trail.shards(part)
        pieces: dict[int, list[tuple[int, str]]] = {}
        for position in range(len(shards) - 1):
            found = trail.token(position, part, shards=shards)
            record = texts[found.record]
            line = found.record + 1 if found.record < 15 else 2 * (found.record - 15) + 2
            assert found.name.split("/")[-1] == (f"a.jsonl.gz, line {line}" if found.record < 15 else f"b.jsonl, line {line}")
            assert (found.source, found.licence, found.origin) == ("jsonl", "CC0-1.0", "a test")
            if found.text.strip("\ufffd") == found.text:  # a whole number of characters
                assert record[found.offset : found.offset + len(found.text)] == found.text
            if found.text == "":
                pieces.setdefault(found.record, []).append((found.offset, trail.tokenizer.decode(next_document(shards, found.document))))
        for number, cuts in pieces.items():
            seen[number] = (
                seen.get(number, "") + "".join(text for _, text in sorted(cuts)) if part != "train" else "".join(t for _, t in cuts)
            )
            assert all(texts[number][offset:].startswith(text) for offset, text in cuts)
    if tokenizer != "chars":
        assert {number: seen[number] for number in sorted(seen)} == dict(enumerate(texts))


def next_document(shards: Shards, document: int) -> np.ndarray:
    return shards.read(int(shards.starts[document]) + 1, shards.end_of(document))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("pieces", [False, True])
def test_a_text_is_found_wherever_it_stands(tmp_path: Path, tokenizer: str, pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if pieces:  # a match may lie across two pieces of the search
        monkeypatch.setattr("tauon.data.trace._PIECE", 50)
    texts = records(40, seed=1)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    trail = traced(
        tmp_path / "run", source={"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}, tokenizer=TOKENIZERS[tokenizer], seq_len=8
    )
    decode = trail.tokenizer.decode
    train = [decode(d) for d in trail.shards("train").documents()]
    rng = random.Random(2)
    for length in (1, 3, 8, 30, 70):
        for _ in range(4):
            text = rng.choice(train)
            a = rng.randrange(max(1, len(text) - length))
            wanted = text[a : a + length]
            found = trail.find(wanted, most=10**6)
            expected = sum(sum(t.startswith(wanted, i) for i in range(len(t))) for t in train)
            assert len(found) == expected, wanted
            for place in found:
                record = texts[place.record]
                begin = record.find(wanted, place.offset)
                assert place.offset <= begin < place.offset + max(1, len(place.text)), (wanted, place)
    assert trail.find("no such text anywhere here") == []


def test_names_are_stored_once_per_file_and_come_back_exactly(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    names = [
        *(f"data.jsonl, line {i}" for i in range(1, 2000)), "007", "7", "x007", "x0", "", "é/日本.txt", "b-00", "v1.5", "123456789012345678901"
    ]  # fmt: skip
    writer = ShardWriter(tmp_path / "s", vocab=257, bos=256)
    for i, name in enumerate(names):
        writer.add(name, tokenizer.encode("x" * 200), n_bytes=200, n_words=1, n_lines=0, record=10**6 + i, offset=3 * i)
    writer.finish()
    shards = Shards(tmp_path / "s")
    shards.verify()
    assert list(shards.names) == names
    assert [(shards.origin(i).record, shards.origin(i).offset) for i in (0, 5)] == [(10**6, 0), (10**6 + 5, 15)]
    assert shards.provenance_bytes() < 13 * len(names) + 1000
    assert (tmp_path / "s" / "README.md").read_text() == FORMAT_PAGE == (Path(__file__).parents[2] / "docs" / "shards.md").read_text()
    assert not (tmp_path / "s" / "documents.tmp").exists()


def test_more_documents_than_are_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tauon.data.shards._SPILL", 3)
    writer = ShardWriter(tmp_path / "s", vocab=257, bos=256)
    for i in range(10):
        writer.add(f"d{i}", np.full(i, i), n_bytes=i, n_words=2 * i, n_lines=3 * i, source=i // 4)
    writer.finish(sources=[{"name": n} for n in "abc"])
    shards = Shards(tmp_path / "s")
    assert shards.counts == {"documents": 10, "tokens": 45, "bytes": 45, "words": 90, "lines": 135}
    assert [shards.origin(i).source for i in range(10)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert shards.ranges == [(0, 0, 10), (1, 10, 36), (2, 36, 55)]
    assert [d.tolist() for d in shards.documents()] == [[i] * i for i in range(10)]
    assert len(shards) == 56


def test_sources_out_of_order_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "s", vocab=257, bos=256)
    writer.add("a", np.array([1]), n_bytes=1, n_words=1, n_lines=0, source=1)
    with pytest.raises(DataError, match="write sources in order"):
        writer.add("b", np.array([1]), n_bytes=1, n_words=1, n_lines=0, source=0)


def test_what_cannot_be_traced_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prepared data is recorded here .* tauon prepare"):
        Trail(tmp_path)
    (tmp_path / "a.txt").write_text("some words " * 50)
    trail = traced(tmp_path / "run", source={"kind": "text", "path": str(tmp_path / "a.txt")}, tokenizer="bytes", seq_len=8)
    with pytest.raises(DataError, match=r"token 10,000 does not exist: the train part has tokens 0 to 4\d\d"):
        trail.token(10_000)
    with pytest.raises(DataError, match="there is no test part. Available: train, validation"):
        trail.token(0, "test")
    with pytest.raises(DataError, match="the text to find is empty"):
        trail.find("")
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    (tmp_path / "run" / "data.json").write_text(json.dumps(facts | {"cache": {"folder": str(tmp_path / "gone")}}))
    with pytest.raises(DataError, match="gone from the cache"):
        Trail(tmp_path / "run")
    (tmp_path / "run" / "data.json").write_text(json.dumps(facts | {"kind": "tables"}))
    with pytest.raises(DataError, match="only tokens of running text can be traced"):
        Trail(tmp_path / "run")


def test_licence_and_origin_are_recorded_and_change_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words " * 50)
    source = {"kind": "text", "path": str(tmp_path / "a.txt")}
    plain, stated = (
        prepare(config(source=source | more, tokenizer="bytes", seq_len=8), seed=0, input_kind="tokens")
        for more in ({}, {"licence": "MIT", "origin": "https://example.org"})
    )
    assert plain.fingerprint == stated.fingerprint and stated.facts["cache"]["reused"]
    assert (stated.facts["sources"]["train"]["licence"], stated.facts["sources"]["train"]["origin"]) == ("MIT", "https://example.org")
    assert "licence" not in plain.facts["sources"]["train"]


def cleaned_run(tmp_path: Path, **more: Any) -> tuple[Trail, list[str]]:
    """A run whose cleaning masks every third record, rejects one, and whose deduplication leaves out another."""
    pytest.importorskip("phonenumbers")
    texts = [t.replace("\n", " ") + (f" write to a{i}@b.com now" if i % 3 == 0 else " and no more") for i, t in enumerate(records(24))]
    texts = [f"{t} {' '.join(random.Random(i).choices(WORDS[:4], k=30))}" for i, t in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts, "too short é", texts[5]]))
    clean = [{"kind": "length", "min": 30}, {"kind": "pii", "find": ["email"]}]
    source = {"kind": "jsonl", "path": str(tmp_path / "a.jsonl")}
    values = {"source": source, "clean": clean, "dedup": {}, "tokenizer": "bytes", "seq_len": 8} | more
    return traced(tmp_path / "run", **values), texts


def test_the_verdicts_of_each_filter_on_a_record(tmp_path: Path) -> None:
    trail, _ = cleaned_run(tmp_path)
    for part in ("train", "validation"):
        shards = trail.shards(part)
        for start in shards.starts[: len(shards.starts)].tolist():
            found = trail.token(start, part, shards=shards)
            changed = "changed by pii" if found.record % 3 == 0 else "unchanged"
            assert found.verdicts["clean"] == f"kept by length, pii; {changed}", found.record
            assert found.verdicts["dedup"] == "kept: no earlier record that was kept is alike at 80%"
            assert ("decontaminate" in found.verdicts) == (part == "train")


def test_a_held_out_set_of_its_own_is_not_said_to_be_cleaned(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in records(5, seed=9)))
    trail, _ = cleaned_run(tmp_path, validation={"kind": "jsonl", "path": str(tmp_path / "v.jsonl")})
    assert trail.token(0, "validation").verdicts == {"clean": "as it was read: a held-out set of its own is not cleaned"}


def test_a_rejected_text_is_found_with_its_reason(tmp_path: Path) -> None:
    trail, texts = cleaned_run(tmp_path)
    (short,) = trail.rejected("too  short")
    assert list(short) == ["part", "source", "record", "step", "rule", "reason", "text"]
    assert (short["step"], short["reason"], short["text"]) == ("length", "11 characters, fewer than 30", "too short é")
    (twice,) = trail.rejected(texts[5])  # longer than what is written down
    assert (twice["step"], twice["rule"], twice["source"]) == ("dedup", "near", "jsonl") and twice["of"].endswith("line 6")
    assert not trail.rejected("river stone nowhere") and not trail.rejected("too short", "validation") and not trail.rejected(" ")


def test_trace_says_why_a_text_is_not_there(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from tauon.cli.trace import trace_command

    cleaned_run(tmp_path)
    said = CliRunner().invoke(trace_command, [str(tmp_path / "run"), "--text", "too short"])
    assert said.exit_code == 0 and said.output.startswith("not in the train part\n\nrejected, not in the train part:\n  source   jsonl\n")
    assert "  reason   11 characters, fewer than 30\n" in said.output
    listed = CliRunner().invoke(trace_command, [str(tmp_path / "run"), "--text", "too short", "--json"])
    assert json.loads(listed.output)["rejected"]["rule"] == "too_short"
