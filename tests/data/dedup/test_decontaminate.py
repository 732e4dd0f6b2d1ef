"""Held-out data is not trained on: text, texts in rows, conversations, images; and the removal of duplicates in a preparation."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tauon.config import parse
from tauon.data import DataConfig, DataSplits, DataStamp, prepare
from tauon.data.dedup import contamination
from tauon.data.dedup.contamination import COMMON, HeldOut
from tauon.data.dedup.images import copies, dhash, near_copies
from tauon.errors import DataError, RecipeError

MIRROR = Path(os.environ.get("TAUON_DATA", "/nowhere"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))


def words(seed: int, n: int = 60) -> list[str]:
    draw = random.Random(seed)
    return [f"w{draw.randrange(5000)}" for _ in range(n)]


def text(seed: int, n: int = 60) -> str:
    return " ".join(words(seed, n))


def write(path: Path, texts: list[str]) -> dict[str, Any]:
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return {"kind": "jsonl", "path": str(path)}


def prepared(kind: str = "tokens", **section: Any) -> DataSplits:
    return prepare(parse(DataConfig, section), seed=0, input_kind=kind)


def trained_on(splits: DataSplits) -> list[str]:
    tokens: Any = splits.train
    return [tokens.tokenizer.decode(ids) for ids in tokens.shards.documents()]


def rejected(splits: DataSplits, name: str) -> list[dict[str, Any]]:
    path = Path(splits.facts["cache"]["folder"]) / "rejected" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------------------- n-grams


def brute(train: list[str], held: list[str], n: int, share: float) -> dict[int, tuple[float, float]]:
    """The definition, with sets of tuples."""

    def grams(t: str) -> set[tuple[str, ...]]:
        w = t.split()
        return {tuple(w[i : i + n]) for i in range(max(1, len(w) - n + 1))}

    held_grams, train_grams = [grams(t) for t in held], [grams(t) for t in train]
    common = {g for h in held_grams for g in h if sum(g in t for t in train_grams) > COMMON}
    found = {}
    for i, mine in enumerate(train_grams):
        own = len({g for g in mine if any(g in h for h in held_grams)} - common) / len(mine)
        contains = max((len((mine & h) - common) / len(h) for h in held_grams), default=0.0)
        if own >= share or contains >= share:
            found[i] = (own, contains)
    return found


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_shares_are_those_of_sets_of_ngrams(seed: int, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if long:  # most texts are batches of their own, looked at a few words at a time
        monkeypatch.setattr(contamination, "_CHARS", 40)
        monkeypatch.setattr(contamination, "_WORDS", 3)
    draw = random.Random(seed)
    held = [text(i, draw.randint(2, 40)) for i in range(15)]
    train = []
    for i in range(60):
        mine = words(100 + i, draw.randint(1, 60))
        if draw.random() < 0.6:
            piece = draw.choice(held).split()
            at = draw.randrange(len(mine))
            mine[at:at] = piece[: draw.randint(1, len(piece))]
        train.append(" ".join(mine))
    for share in (0.2, 0.5, 1.0):
        found = HeldOut(held, 5).find(train, share)
        assert {c.text: (pytest.approx(c.share), pytest.approx(c.contains)) for c in found} == brute(train, held, 5, share)
    assert HeldOut(held, 5).find(train, 0.2)


def test_a_phrase_of_many_training_texts_is_common() -> None:
    licence = text(0, 40)
    train = [f"{licence} {text(i, 10)}" for i in range(1, COMMON + 3)]
    assert HeldOut([licence], 13).find(train, 0.5) == []
    assert len(HeldOut([licence], 13).find(train[:COMMON], 0.5)) == COMMON


def test_a_sample_of_many_ngrams_finds_the_same_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [text(i, 400) for i in range(20)]
    train = [f"{text(100 + i, 300)} {held[i] if i < 5 else text(50 + i, 300)}" for i in range(20)]
    monkeypatch.setattr("tauon.data.dedup.contamination._CHARS", 5000)
    whole = [c.text for c in HeldOut(held, 13).find(train, 0.4)]
    monkeypatch.setattr("tauon.data.dedup.contamination.MOST", 2000)
    assert [c.text for c in HeldOut(held, 13).find(train, 0.4)] == whole == [0, 1, 2, 3, 4]


# -------------------------------------------------------------------------------------------------------- running text


def test_training_documents_that_repeat_a_held_out_source_are_left_out(tmp_path: Path) -> None:
    held = [text(i) for i in range(12)]
    changed = held[3].replace(held[3].split()[30], "changed").upper() + "!"  # the same passage, spelt otherwise
    train = [*(text(i) for i in range(50, 90)), changed, f"{text(91)} {held[5]} {text(92, 300)}", held[6]]
    section: dict[str, Any] = {
        "source": write(tmp_path / "a.jsonl", train), "validation": write(tmp_path / "b.jsonl", held), "tokenizer": "bytes",
    }  # fmt: skip
    splits = prepared(**section)
    assert trained_on(splits) == train[:40]
    facts = splits.facts["decontamination"]
    assert (facts["action"], facts["found"], facts["held_out_texts"]) == ("drop", 2, 12)
    rows = rejected(splits, "decontaminate")
    assert [list(r) for r in rows] == [["part", "source", "record", "step", "rule", "reason", "of", "text", "share", "contains"]] * 2
    assert (rows[0]["source"], rows[0]["step"], rows[0]["rule"]) == ("jsonl", "decontaminate", "held_out")
    assert rows[1]["contains"] == 1.0 and rows[1]["of"].startswith("validation: ") and rows[1]["text"] == train[41][:300]
    assert splits.facts["split"]["left_out_as_held_out"] == 1
    assert "decontaminate.jsonl" in splits.facts["left_out"]["train"][0]

    reported = prepared(**section, decontaminate={"action": "report"})
    assert trained_on(reported) == train[:42] and "repeat held-out text" in reported.facts["warnings"][0]
    ignored = prepared(**section, decontaminate={"action": "none"})
    assert trained_on(ignored) == train[:42] and "decontamination" not in ignored.facts
    assert reported.fingerprint == ignored.fingerprint != splits.fingerprint


def test_parts_of_one_source_are_kept_apart_too(tmp_path: Path) -> None:
    train = [f"{text(i, 80)} end {i}" for i in range(30)] + [f"{text(i, 80)} another end {i}" for i in range(30)]
    splits = prepared(source=write(tmp_path / "a.jsonl", train), split={"validation": 0.3}, tokenizer="bytes")
    held: Any = splits.validation
    beginnings = {t[:100] for t in trained_on(splits)}
    assert len(beginnings) > 5
    assert not beginnings & {held.tokenizer.decode(ids)[:100] for ids in held.shards.documents()}
    assert splits.facts["decontamination"]["found"] > 5


def test_nothing_found_changes_nothing(tmp_path: Path) -> None:
    section: dict[str, Any] = {"source": write(tmp_path / "a.jsonl", [text(i) for i in range(30)]), "tokenizer": "bytes"}
    splits, ignored = prepared(**section), prepared(**section, decontaminate={"action": "none"})
    assert splits.fingerprint == ignored.fingerprint and splits.facts["decontamination"]["found"] == 0
    assert "left_out" not in splits.facts and "warnings" not in splits.facts


def test_a_text_that_is_cut_by_position_is_reported_on(tmp_path: Path) -> None:
    splits = prepared(source=write(tmp_path / "a.jsonl", [" ".join([text(0, 200)] * 5)]), tokenizer="bytes", seq_len=8)
    assert splits.facts["split"]["by"] == "position" and splits.facts["decontamination"]["action"] == "report"
    assert len(splits.facts["warnings"]) == 1


def test_evaluation_sets_are_not_trained_on(tmp_path: Path) -> None:
    passage, question = text(1, 80), text(2, 20)
    (tmp_path / "lambada.jsonl").write_text(json.dumps({"context": passage, "continuation": " end"}) + "\n")
    (tmp_path / "arc.jsonl").write_text(json.dumps({"query": question, "choices": ["a", "b"], "gold": 1}) + "\n")
    (tmp_path / "plain.txt").write_text(f"{text(3, 30)}\n\n{text(4, 30)}\n")
    train = [*(text(i) for i in range(50, 90)), f"It says: {passage} and more", f"{question} a", text(4, 30)]
    section: dict[str, Any] = {"source": write(tmp_path / "a.jsonl", train), "split": {"validation": 0}, "tokenizer": "bytes"}
    against = [str(tmp_path / name) for name in ("lambada.jsonl", "arc.jsonl", "plain.txt")]
    before = prepared(**section)
    splits = prepared(**section, decontaminate={"against": against, "action": "drop"})
    assert trained_on(splits) == train[:40] and len(trained_on(before)) == 43
    assert [r["of"] for r in rejected(splits, "decontaminate")] == ["lambada.jsonl:1", "arc.jsonl:1", "plain.txt:3"]

    config = parse(DataConfig, section | {"decontaminate": {"against": against, "action": "drop"}})
    stamp = DataStamp.of(config)
    (tmp_path / "plain.txt").write_text(text(5, 30))
    assert DataStamp.of(config).content != stamp.content
    assert len(trained_on(prepared(**section, decontaminate={"against": against, "action": "drop"}))) == 41
    (tmp_path / "arc.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"arc\.jsonl: line 1 is not JSON"):
        prepared(**section, decontaminate={"against": against})
    with pytest.raises(DataError, match="missing"):
        prepared(**section, decontaminate={"against": [str(tmp_path / "missing.jsonl")]})


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    held = [text(i) for i in range(12)]
    with pytest.raises(DataError, match="none is left to train on.*data.decontaminate.action: report"):
        prepared(
            source=write(tmp_path / "a.jsonl", [t + " more" for t in held]), validation=write(tmp_path / "b.jsonl", held),
            split={"by": "document"}, tokenizer="bytes",
        )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- duplicates


def test_duplicates_are_left_out_before_the_split_and_listed(tmp_path: Path) -> None:
    base = [text(i, 100) for i in range(30)]
    near = [t.replace(t.split()[50], "changed") for t in base[:8]]
    section: dict[str, Any] = {"source": write(tmp_path / "a.jsonl", base + near), "split": {"validation": 0.2}, "tokenizer": "bytes"}
    splits = prepared(**section, dedup={})
    held: Any = splits.validation
    kept = [*trained_on(splits), *(held.tokenizer.decode(ids) for ids in held.shards.documents())]
    assert sorted(kept) == sorted(base)
    facts = splits.facts["dedup"]
    assert (facts["documents"], facts["removed"], facts["cluster_sizes"]) == (38, 8, {"2": 8})
    rows = rejected(splits, "dedup")
    assert [r["text"] for r in rows] == [t[:300] for t in near] and all(0.8 <= r["similarity"] < 1 for r in rows)
    assert rows[0]["of"].endswith(":1") or rows[0]["of"] != rows[0]["record"]
    assert prepared(**section, dedup={"kind": "exact"}).facts["dedup"]["removed"] == 0
    assert prepared(**section, dedup={}).fingerprint == splits.fingerprint != prepared(**section).fingerprint


# ------------------------------------------------------------------------------------------- rows, texts, conversations


def test_texts_with_labels(tmp_path: Path) -> None:
    def rows(texts: list[str]) -> dict[str, Any]:
        path = tmp_path / f"{len(texts)}.jsonl"
        path.write_text("\n".join(json.dumps({"t": t, "y": "ab"[i % 2]}) for i, t in enumerate(texts)))
        return {"kind": "jsonl", "path": str(path), "text": "t", "label": "y"}

    held = [text(i, 30) for i in range(10)]
    section: dict[str, Any] = {
        "source": rows([*(text(i, 30) for i in range(50, 70)), held[2] + " x", held[3] + " y"]), "test": rows(held), "tokenizer": "bytes",
        "split": {"validation": 0},
    }  # fmt: skip
    splits = prepared("labelled-text", **section)
    assert len(splits.train) == 22 and splits.facts["decontamination"]["found"] == 2
    assert any("2 of 22 training examples repeat held-out ones" in w for w in splits.facts["warnings"])
    dropped = prepared("labelled-text", **section, decontaminate={"action": "drop"})
    assert len(dropped.train) == 20 and dropped.fingerprint != splits.fingerprint
    assert splits.fingerprint == prepared("labelled-text", **section, decontaminate={"action": "none"}).fingerprint


def test_conversations(tmp_path: Path) -> None:
    def chats(name: str, seeds: list[int]) -> dict[str, Any]:
        (tmp_path / name).write_text(json.dumps([{"instruction": text(s, 20), "output": text(s + 1000, 20)} for s in seeds]))
        return {"kind": "chat", "path": str(tmp_path / name)}

    section: dict[str, Any] = {
        "source": chats("a.json", [*range(20), 77]),
        "validation": chats("b.json", [76, 77, 78]),
        "tokenizer": "bytes",
    }
    assert prepared("chat", **section).facts["decontamination"]["examples"][0]["train"] == 20
    assert len(prepared("chat", **section, decontaminate={"action": "drop"}).train) == 20


def images(seed: int, n: int, side: int = 32) -> np.ndarray:
    """Smooth random images, three channels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 3, 6, 6))
    big = np.repeat(np.repeat(coarse, 6, axis=2), 6, axis=3)[:, :, :side, :side]
    return big.astype(np.uint8)


def test_images_that_equal_or_nearly_equal_held_out_ones(tmp_path: Path) -> None:
    held = images(0, 20)
    noise = np.random.default_rng(1).normal(0, 2, held[:3].shape)
    near = np.clip(held[:3] + noise, 0, 255).astype(np.uint8)
    train = np.concatenate([images(2, 50), held[10:12], near])
    np.savez(tmp_path / "a.npz", x_train=train, y_train=np.arange(55) % 2, x_test=held, y_test=np.arange(20) % 2)
    section: dict[str, Any] = {"source": {"kind": "npz", "path": str(tmp_path / "a.npz")}, "split": {"validation": 0}}
    splits = prepared("arrays", **section)
    found = splits.facts["decontamination"]["test"]
    assert found["exact"]["examples"] == [[50, 10], [51, 11]] and found["near"]["examples"] == [[52, 0], [53, 1], [54, 2]]
    assert len(splits.train) == 55 and "5 of 55 training examples repeat held-out ones" in splits.facts["warnings"][0]
    assert len(prepared("arrays", **section, decontaminate={"action": "drop"}).train) == 50


def test_near_copies_are_those_of_all_pairs_compared() -> None:
    from tauon.data.dedup.images import BITS, RMS, thumbnails

    draw = np.random.default_rng(0)
    held = images(0, 60)
    train = np.clip(held[draw.integers(0, 60, 300)] + draw.normal(0, 1, (300, 1, 1, 1)) * 6 + draw.normal(0, 6, (300, 3, 32, 32)), 0, 255)
    train = train.astype(np.uint8)
    bits = np.bitwise_count(dhash(train)[:, None] ^ dhash(held)) <= BITS
    rms = np.sqrt(((thumbnails(train)[:, None] - thumbnails(held)) ** 2).mean(2)) <= RMS
    expected = np.flatnonzero((bits & rms).any(1))
    assert 30 < len(expected) < 300
    assert near_copies(train, held).train.tolist() == expected.tolist()


def test_difference_hash_agrees_with_imagehash() -> None:
    imagehash, image = pytest.importorskip("imagehash"), pytest.importorskip("PIL.Image")
    made = images(3, 40)
    ours = np.unpackbits(dhash(made).astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(bool)
    theirs = np.array([imagehash.dhash(image.fromarray(m.transpose(1, 2, 0))).hash.flatten() for m in made])
    assert (ours == theirs).mean() > 0.9  # imagehash reduces with another filter


def test_blank_images_are_not_near_copies() -> None:
    blank = np.zeros((4, 1, 28, 28), np.uint8)
    assert len(near_copies(blank, blank[:1]).train) == 0 and len(copies(blank, blank[:1]).train) == 4


def test_the_images_of_pneumoniamnist_that_are_in_two_parts() -> None:
    if not (MIRROR / "medmnist").is_dir():
        pytest.skip("the data mirror is not here (TAUON_DATA)")
    splits = prepared("arrays", source={"kind": "npz", "path": str(MIRROR / "medmnist" / "pneumoniamnist.npz")})
    found = splits.facts["decontamination"]
    assert found["validation"]["exact"]["held_out"] == 8 and found["test"]["exact"]["held_out"] == 0


def test_what_has_no_repeats_refuses_the_key(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "\n".join(f"{i},{i % 2}" for i in range(30)))
    with pytest.raises(RecipeError, match="decontaminate"):
        prepared("arrays", source={"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y"}, decontaminate={"action": "drop"})
    with pytest.raises(RecipeError, match="dedup"):
        prepared("arrays", source={"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y"}, dedup={})
