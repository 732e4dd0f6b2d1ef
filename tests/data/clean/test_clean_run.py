"""A run with `data.clean`: the terminal, `data.json`, the report and the folder `rejected` say what was left out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import tauon
from clean_corpus import prose
from tauon.errors import RecipeError
from tauon.recipe import load_recipe


def recipe(tmp_path: Path, clean: list[Any]) -> Path:
    draw = random.Random(0)
    texts = [prose(draw) for _ in range(30)] + ["no", "x" * 40, "the end"]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    data = {"source": {"kind": "jsonl", "path": str(tmp_path / "c.jsonl")}, "clean": clean, "tokenizer": "bytes", "seq_len": 32}
    model = {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}
    values = {"name": "c", "task": "language-modelling", "data": data, "model": model, "train": {"steps": 1, "batch": 2}}
    (tmp_path / "r.yaml").write_text(json.dumps(values))
    return tmp_path / "r.yaml"


def test_what_was_rejected_is_said_in_every_place(tmp_path: Path) -> None:
    said: list[str] = []
    path = recipe(tmp_path, [{"kind": "length", "min": 20}, "gopher-quality"])
    run = tauon.run(path, root=tmp_path / "runs", on_event=lambda kind, **f: said.append(f["message"]) if kind == "note" else None)
    assert "cleaning (train): 3 of 33 documents rejected (length 2, gopher-quality 1), 0 changed" in said
    listed = [json.loads(line) for line in (run.folder / "rejected" / "train.jsonl").read_text().splitlines()]
    assert [(one["step"], one["rule"], one["text"][:3]) for one in listed] == [
        ("length", "too_short", "no"), ("gopher-quality", "too_few_words", "xxx"), ("length", "too_short", "the"),
    ]  # fmt: skip
    facts = json.loads((run.folder / "data.json").read_text())
    assert facts["clean"]["train"]["filters"][0]["rules"] == {"too_short": 2}
    page = (run.folder / "report.html").read_text()
    assert "<h3>Cleaning</h3>" in page and "Too short 2" in page and "3 of 33 documents rejected" in page


def test_settings_that_no_record_needed_are_used_all_the_same(tmp_path: Path) -> None:
    """A recipe that says every setting of its filters must not be refused for keys that nothing reads."""
    clean = [
        {"kind": "c4", "policy": False, "max_word_length": 500, "min_sentences": 1},
        {"kind": "gopher-quality", "stop_words": ["the", "of", "and"]},
    ]
    made = tauon.run(load_recipe(recipe(tmp_path, clean)), root=tmp_path / "runs")
    assert json.loads((made.folder / "data.json").read_text())["clean"]["train"]["records"] == 33


def test_private_training_refuses_filters_that_look_at_other_records(tmp_path: Path) -> None:
    path = recipe(tmp_path, ["repair", {"kind": "length", "min": 3}, "default"])
    values = json.loads(path.read_text()) | {"privacy": {"noise_multiplier": 1.0}}
    path.write_text(json.dumps(values))
    with pytest.raises(RecipeError, match=r"data.clean.2: default decides about an example by other examples") as err:
        load_recipe(path)
    assert "data.clean.0" not in str(err.value) and "data.clean.1" not in str(err.value)
