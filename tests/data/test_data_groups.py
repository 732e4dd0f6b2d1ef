"""What belongs together is in one part, and what is later is held out: for tables, texts, images, recordings and conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import DataConfig, SourceConfig, prepare
from tauon.data.split import SplitConfig, split_rows
from tauon.errors import DataError, RecipeError
from tones import tone, write_wav


def section(tmp_path: Path, source: dict[str, Any], **more: Any) -> DataConfig:
    return parse(DataConfig, {"source": source, "cache": str(tmp_path / "cache")} | more)


@given(seed=st.integers(0, 100), groups=st.integers(6, 40), classes=st.integers(2, 4))
def test_groups_are_whole_and_each_class_that_training_can_have_is_in_training(seed: int, groups: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    whose = np.sort(np.concatenate([np.arange(groups), rng.integers(0, groups, 5 * groups)]))
    of_group = rng.integers(0, classes, groups)
    targets = of_group[whose]
    rows, facts = split_rows(targets, parse(SplitConfig, {"validation": 0.2, "test": 0.2}), ["validation", "test"], whose)
    assert sorted(np.concatenate([*rows.values()]).tolist()) == list(range(len(whose)))
    parts = [set(whose[r].tolist()) for r in rows.values()]
    assert sum(map(len, parts)) == len(set(whose.tolist())) and facts["by"] == "group"
    assert set(targets[rows["train"]].tolist()) == set(targets.tolist())


@given(seed=st.integers(0, 100), n=st.integers(30, 200))
def test_a_split_by_time_keeps_moments_together_and_in_order(seed: int, n: int) -> None:
    times = np.random.default_rng(seed).integers(0, 20, n)
    rows, _ = split_rows(np.zeros(n), parse(SplitConfig, {"validation": 0.2, "test": 0.2}), ["validation", "test"], None, times)
    train, validation, test = (times[rows[p]] for p in ("train", "validation", "test"))
    assert train.max() < validation.min() and validation.max() < test.min()
    assert len(train) + len(validation) + len(test) == n


def test_a_table_with_a_time_column_holds_out_the_last_rows(tmp_path: Path) -> None:
    rows = [f"2024-{m:02d}-{d:02d},{d},{(m + d) % 2}" for m in range(12, 0, -1) for d in range(1, 20)]
    (tmp_path / "t.csv").write_text("day,x,y\n" + "\n".join(rows))
    source = {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y", "target": "class"}
    splits = prepare(section(tmp_path, source, table={"time": "day"}, split={"test": "20%"}), seed=0, input_kind="arrays")
    spans = splits.facts["split"]["spans"]
    assert spans["train"][1] < spans["validation"][0] < spans["test"][0] and spans["test"][1].startswith("2024-12-19")
    assert splits.preprocess["features"] == ["x"]
    with pytest.raises(DataError, match="folds would train on rows from after"):
        prepare(section(tmp_path, source, table={"time": "day"}, split={"folds": 3, "validation": 0}), seed=0, input_kind="arrays")
    with pytest.raises(RecipeError, match="cannot be combined with group"):
        section(tmp_path, source, table={"time": "day", "group": "x"})


def test_texts_of_one_author_are_in_one_part_and_later_texts_can_be_held_out(tmp_path: Path) -> None:
    rows = [
        {"who": f"a{i % 15}", "day": f"2024-01-{i % 28 + 1:02d}", "text": f"text number {i}", "y": ["u", "v"][i % 2]} for i in range(150)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"kind": "jsonl", "path": str(tmp_path / "t.jsonl"), "text": "text", "label": "y"}
    tokenizer = {"kind": "bpe", "vocab": 300}
    grouped = prepare(section(tmp_path, source | {"group": "who"}, tokenizer=tokenizer), seed=0, input_kind="labelled-text")
    authors = [{rows[int(t.split()[-1])]["who"] for t in part.texts} for part in (grouped.train, grouped.validation)]  # type: ignore[union-attr]
    assert not authors[0] & authors[1] and len(grouped.train.groups) == len(grouped.train)  # type: ignore[attr-defined]
    timed = prepare(section(tmp_path, source | {"time": "day"}, tokenizer=tokenizer), seed=0, input_kind="labelled-text")
    days = [{rows[int(t.split()[-1])]["day"] for t in part.texts} for part in (timed.train, timed.validation)]  # type: ignore[union-attr]
    assert max(days[0]) < min(days[1])
    with pytest.raises(RecipeError, match="for features set data.table.group"):
        parse(SourceConfig, {k: v for k, v in source.items() if k != "text"} | {"group": "who"})


def test_images_have_class_and_track_in_their_names(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    for i in range(60):
        image.new("L", (8, 8), i).save(tmp_path / f"{'ab'[i % 2]}_t{i // 4}_{i}.png")
    source = {"kind": "folder", "path": str(tmp_path), "pattern": "{label}_{track}_{frame}", "group": "track"}
    read = parse(SourceConfig, source).arrays()
    assert read.label_names == ("a", "b") and len(set(read.groups)) == 15
    splits = prepare(section(tmp_path / "x", source), seed=0, input_kind="arrays")
    assert not set(splits.train.groups) & set(splits.validation.groups)  # type: ignore[attr-defined,union-attr]
    with pytest.raises(RecipeError, match="'speaker' is not a part of pattern"):
        parse(SourceConfig, source | {"group": "speaker"})
    with pytest.raises(RecipeError, match="group: is the label"):
        parse(SourceConfig, source | {"group": "label"})


def test_leaf_folders_can_be_the_classes(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    for i in range(12):
        folder = tmp_path / "xy"[i % 2] / ["cat", "fern", "dog", "rose"][i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        image.new("L", (8, 8), i).save(folder / f"{i}.png")
    assert parse(SourceConfig, {"kind": "folder", "path": str(tmp_path)}).arrays().label_names == ("x", "y")
    leaves = parse(SourceConfig, {"kind": "folder", "path": str(tmp_path), "level": "leaf"}).arrays()
    assert set(leaves.label_names) == {"cat", "fern", "dog", "rose"} and len(leaves) == 12


def test_recordings_of_one_speaker_are_in_one_part(tmp_path: Path) -> None:
    for i in range(40):
        write_wav(tmp_path / f"{'ab'[i % 2]}_s{i // 4}_{i}.wav", tone(300 + 300 * (i % 2), 0.05, 8000, i), 8000)
    source = {"kind": "wav", "path": str(tmp_path), "pattern": "{label}_{speaker}_{take}", "group": "speaker"}
    splits = prepare(section(tmp_path / "x", source), seed=0, input_kind="signals")
    assert len(set(splits.train.groups)) == 9 and not set(splits.train.groups) & set(splits.validation.groups)  # type: ignore[attr-defined,union-attr]


def test_folders_of_texts_are_classes_with_parts_and_groups(tmp_path: Path) -> None:
    for i in range(60):
        folder = tmp_path / ("test" if i % 6 == 5 else "train") / ("extra" if i % 10 == 0 else ["neg", "pos"][i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"w{i % 7}_{i}.txt").write_text(f"text number {i}")
    source = {"kind": "text-folder", "path": str(tmp_path), "drop": ["extra"], "pattern": "{label}/{writer}_{n}", "group": "writer"}
    found = parse(SourceConfig, source).labelled_texts()
    assert found.label_names == ("neg", "pos") and set(found.groups) <= {f"w{i}" for i in range(7)}
    splits = prepare(section(tmp_path / "x", source, tokenizer={"kind": "bpe", "vocab": 300}), seed=0, input_kind="labelled-text")
    assert splits.test is not None and splits.facts["split"]["own_parts"] == ["test"]


def test_conversations_have_other_keys_and_groups(tmp_path: Path) -> None:
    rows = [{"user": i % 12, "question": f"What is {i}?", "answer": f"It is {i}."} for i in range(60)]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    source = {"kind": "chat", "path": str(tmp_path / "c.json"), "fields": {"prompt": "question", "completion": "answer"}, "group": "user"}
    found = parse(SourceConfig, source).conversations()
    assert [m.content for m in found[3].messages] == ["What is 3?", "It is 3."] and found[3].group == "3" and not found[3].ignored
    splits = prepare(section(tmp_path, source, tokenizer={"kind": "bpe", "vocab": 300}, seq_len=64), seed=0, input_kind="chat")
    assert splits.facts["split"]["by"] == "group" and splits.facts["split"]["groups"] == 12
    with pytest.raises(RecipeError, match="is not a key of a conversation"):
        parse(SourceConfig, source | {"fields": {"promt": "question"}})


def test_conversations_that_lose_their_beginning_are_a_warning_with_the_length_that_keeps_them(tmp_path: Path) -> None:
    rows = [{"prompt": f"Read this: {'word ' * (40 if i % 10 == 0 else 3)}{i}", "completion": f"It is {i}."} for i in range(60)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {"kind": "chat", "path": str(tmp_path / "c.jsonl")}
    config = {"tokenizer": {"kind": "bpe", "vocab": 264}, "split": {"validation": "10%"}}
    cut = prepare(section(tmp_path, source, seq_len=64, **config), seed=0, input_kind="chat").facts
    (warning,) = cut["warnings"]
    assert "conversations lose their beginning" in warning and "data.seq_len 64" in warning
    enough = cut["parts"]["train"]["lengths_to_keep"]["all"]
    assert f"data.seq_len: {enough:,} keeps all" in warning
    assert not prepare(section(tmp_path, source, seq_len=enough, **config), seed=0, input_kind="chat").facts["warnings"]
    assert prepare(section(tmp_path, source, seq_len=enough - 1, **config), seed=0, input_kind="chat").facts["warnings"]


def test_a_list_of_json_is_read_like_lines(tmp_path: Path) -> None:
    rows = [{"text": f"text number {i}", "y": i % 2} for i in range(40)]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    a, b = (
        parse(SourceConfig, {"kind": "jsonl", "path": str(tmp_path / f"a.{s}"), "text": "text", "label": "y"}).labelled_texts()
        for s in ("json", "jsonl")
    )
    assert list(a.texts) == list(b.texts) and a.targets.tolist() == b.targets.tolist()
