"""`data.clean` in a preparation: what is left out is counted, listed and in no part; too much is an error; nothing is half-written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clean_corpus import config, decoded, prose
from tauon.data import prepare, problems_for
from tauon.errors import DataError, RecipeError

JUNK = ["too short", "buy now " * 60, "{ " + "x = 1; " * 50 + "}", "word " * 40 + "DRAFT"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))


def corpus(path: Path, good: int = 30, bad: int = 8) -> Path:
    draw = random.Random(0)
    texts = [prose(draw) for _ in range(good)] + [JUNK[i % len(JUNK)] + f" {i}" for i in range(bad)]
    draw.shuffle(texts)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def text_section(path: Path, clean: Any, **more: Any) -> dict[str, Any]:
    source = {"kind": "jsonl", "path": str(path)}
    return (
        {"source": source, "tokenizer": {"kind": "bpe", "vocab": 300}, "seq_len": 32}
        | ({"clean": clean} if clean is not None else {})
        | more
    )


def prepared(section: dict[str, Any], kind: str = "tokens") -> Any:
    return prepare(config(**section), seed=0, input_kind=kind)


def rejected(splits: Any, part: str = "train") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(splits.facts["rejected"]) / f"{part}.jsonl").read_text().splitlines()]


LIST = [
    {"kind": "length", "min": 20},
    "gopher-repetition",
    {"kind": "expression", "keep": "'DRAFT' not in text"},
    {"kind": "gopher-quality", "min_stop_words": 1},
]


def test_documents_are_rejected_before_the_split_and_listed_with_the_reason(tmp_path: Path) -> None:
    splits = prepared(text_section(corpus(tmp_path / "c.jsonl"), LIST))
    texts = [*decoded(splits.train), *decoded(splits.validation)]
    assert len(texts) == 30
    assert not [text for text in texts if any(junk in text for junk in JUNK)]
    facts = splits.facts["clean"]["train"]
    assert (facts["records"], facts["rejected"], facts["applied"]) == (38, 8, True)
    by = {one["filter"]: one for one in facts["filters"]}
    assert [one["filter"] for one in facts["filters"]] == ["length", "gopher-repetition", "expression", "gopher-quality"]
    assert (by["length"]["seen"], by["length"]["rules"]) == (38, {"too_short": 2})
    assert by["gopher-repetition"]["seen"] == 36, "a filter sees what those before it have left"
    listed = rejected(splits)
    assert len(listed) == 8 == sum(one["rejected"] for one in facts["filters"])
    short = next(one for one in listed if one["step"] == "length")
    assert short["record"].startswith("c.jsonl") or "c.jsonl" in short["record"]
    assert (short["rule"], short["text"][:9], short["part"]) == ("too_short", "too short", "train")
    assert short["reason"] == "11 characters, fewer than 20"
    assert splits.facts["notes"][0].startswith("cleaning (train): 8 of 38 documents rejected (")
    assert not (Path(splits.facts["cache"]["folder"]) / "cleaned").exists()
    again = prepared(text_section(tmp_path / "c.jsonl", LIST))
    assert again.facts["cache"]["reused"] and again.facts["clean"] == splits.facts["clean"] and again.fingerprint == splits.fingerprint


def test_without_clean_nothing_changes_and_each_setting_makes_other_data(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.jsonl")
    plain, cleaned = prepared(text_section(path, None)), prepared(text_section(path, LIST))
    assert "clean" not in plain.facts and "rejected" not in plain.facts
    other = prepared(text_section(path, [*LIST, {"kind": "length", "min": 21}]))
    assert len({plain.fingerprint, cleaned.fingerprint, other.fingerprint}) == 3


def test_default_works_on_prose(tmp_path: Path) -> None:
    pytest.importorskip("ftfy")
    splits = prepared(text_section(corpus(tmp_path / "c.jsonl", 30, 8), "default"))
    facts = splits.facts["clean"]["train"]
    assert [one["filter"] for one in facts["filters"]] == ["repair", "gopher-repetition", "gopher-quality", "c4", "fineweb-quality"]
    assert facts["rejected"] == 8 and facts["changed"] == 0


def test_changed_texts_are_what_is_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("phonenumbers")
    draw = random.Random(0)
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"text": f"{prose(draw, 1)} Write to a{i}@b.com now."}) + "\n" for i in range(20)))
    splits = prepared(text_section(path, {"kind": "pii", "find": ["email"]}))
    assert all("Write to <EMAIL> now." in text for text in decoded(splits.train))
    assert splits.facts["clean"]["train"]["changed"] == 20


def test_what_must_not_be_read_is_not_listed(tmp_path: Path) -> None:
    pytest.importorskip("phonenumbers")
    path = corpus(tmp_path / "c.jsonl", 20, 0)
    with path.open("a") as file:
        file.write(json.dumps({"text": "Write to jane@doe.org. " * 9}) + "\n")
    (listed,) = rejected(prepared(text_section(path, {"kind": "pii", "action": "drop"})))
    assert listed["reason"] == "has personal data or keys: 9 email" and "text" not in listed


def test_too_much_is_an_error_that_names_the_reasons(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.jsonl", 10, 20)
    with pytest.raises(
        DataError,
        match=r"cleaning rejects 20 of 30 documents of the train source \(67%\), more than data.clean_limit 50%. Most: .*For example .*c.jsonl",
    ):
        prepared(text_section(path, LIST))
    assert not [*(tmp_path / "cache").rglob("preparation.json")], "nothing is left half-written"
    assert prepared(text_section(path, LIST, clean_limit=0.7)).facts["clean"]["train"]["rejected"] == 20
    with pytest.raises(DataError, match="rejects 30 of 30"):
        prepared(text_section(path, {"kind": "length", "min": 10**6}, clean_limit=1))


def test_a_held_out_set_of_its_own_is_counted_and_kept(tmp_path: Path) -> None:
    train, test = corpus(tmp_path / "c.jsonl"), corpus(tmp_path / "t.jsonl", 9, 3)
    section = text_section(train, LIST, test={"kind": "jsonl", "path": str(test)})
    splits = prepared(section)
    assert len(decoded(splits.test)) == 12
    assert splits.facts["clean"]["test"]["applied"] is False and splits.facts["clean"]["test"]["rejected"] == 3
    assert "would be rejected; a held-out set of its own is kept as it is" in splits.facts["notes"][1]
    assert len(rejected(splits, "test")) == 3
    applied = prepared(section | {"clean_held_out": "apply"})
    assert len(decoded(applied.test)) == 9 and applied.fingerprint != splits.fingerprint


@pytest.mark.parametrize(
    ("clean", "kind", "source", "message"),
    [
        ([{"kind": "range", "column": "a", "low": 0}], "tokens", {"kind": "jsonl", "path": "x"}, "clean.0: range cleans table, but the data are text"),
        (["default"], "chat", {"kind": "chat", "path": "x"}, "clean: is only for text, .*but the task needs chat"),
        (["silent", "c4"], "arrays", {"kind": "csv", "path": "x", "label": "y"}, "clean.1: c4 cleans text or labelled-text, but the data are table"),
    ],
)  # fmt: skip
def test_a_filter_of_other_data_is_refused_before_reading(clean: Any, kind: str, source: Any, message: str) -> None:
    import re

    found = [f"{key}: {text}" for key, text in problems_for(config(source=source, clean=clean), kind)]
    assert any(re.search(message, line) for line in found), found


def test_settings_without_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="clean_limit: has no effect without data.clean"):
        config(source={"kind": "jsonl", "path": "x"}, clean_limit=0.2)
    with pytest.raises(RecipeError, match="no clean is called 'gofer-quality'; did you mean 'gopher-quality'"):
        config(source={"kind": "jsonl", "path": "x"}, clean=["gofer-quality"])


def test_texts_with_labels_lose_rows_of_all_fields(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [{"text": prose(draw, 1), "label": "ab"[i % 2], "who": f"g{i // 2}"} for i in range(40)]
    rows += [{"text": "x", "label": "a", "who": "g0"}, dict(rows[3])]
    path = tmp_path / "l.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {
        "source": {"kind": "jsonl", "path": str(path), "text": "text", "label": "label", "group": "who"},
        "clean": [{"kind": "length", "min": 5}, "duplicates"],
    }
    splits = prepared(section, "labelled-text")
    assert len(splits.train) + len(splits.validation) == 40
    listed = rejected(splits)
    assert [(one["step"], one["rule"]) for one in listed] == [("length", "too_short"), ("duplicates", "duplicate")]
    assert listed[0]["text"] == "x" and "l.jsonl" in listed[0]["record"] and listed[1]["reason"] == "equal to example 3"
    with pytest.raises(DataError, match="cleaning rejects all 20 examples of class 'b'"):
        kept = [row for row in rows[:40] if row["label"] == "a"] + [{**row, "text": "no"} for row in rows[:40] if row["label"] == "b"]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        prepared(section, "labelled-text")


def test_tables_are_cleaned_before_anything_is_fitted(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [f"{a:.2f},{b:.2f},{'yn'[int(a > 50)]}" for a, b in draw.uniform(0, 100, (60, 2))]
    rows += ["999,5,y", "50,,n", rows[0]]
    (tmp_path / "t.csv").write_text("age,dose,y\n" + "\n".join(rows))
    clean = [{"kind": "range", "column": "age", "low": 0, "high": 120}, {"kind": "missing", "columns": ["dose"]}, "duplicates", "outliers"]
    splits = prepared({"source": {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y"}, "clean": clean}, "arrays")
    assert len(splits.train) + len(splits.validation) == 60
    assert splits.facts["features"]["age"]["max"] <= 100
    assert [one["reason"] for one in rejected(splits)] == ["age is 999, more than 120", "dose is missing", "equal to example 0"]


KILLED = """
import os, sys
os.environ["TAUON_CACHE"] = sys.argv[2]
from tauon.config import parse
from tauon.data import DataConfig, prepare
import json
prepare(parse(DataConfig, json.loads(sys.argv[1])), seed=0, input_kind="tokens", progress=lambda what, done, total: print(what, done, flush=True))
"""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(".lock")}


def test_killed_while_cleaning_then_repeated_gives_the_same_bytes(tmp_path: Path) -> None:
    path = corpus(tmp_path / "c.jsonl", 700, 100)
    section = text_section(path, LIST)
    whole = prepared(section)
    expected = files_of(Path(whole.facts["cache"]["folder"]))
    cache = tmp_path / "other"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3] / "src"), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(section), str(cache)], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("clean train"):
                process.send_signal(signal.SIGKILL)
                break
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [*cache.rglob("preparation.json")]
    os.environ["TAUON_CACHE"] = str(cache)
    again = prepared(section)
    assert not again.facts["cache"]["reused"]
    assert files_of(Path(again.facts["cache"]["folder"])) == expected
    assert not [*cache.rglob("*.tmp-*")]
