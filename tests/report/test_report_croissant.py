"""The data card is Croissant that `mlcroissant` reads, and says what the records say; the model card has the same facts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import tauon
from tauon.cli.data_card import card_command
from tauon.explain.card import model_card
from tauon.explain.config import CardConfig
from tauon.report import Records
from tauon.report.croissant import data_card
from tauon.report.origins import origins

CLEAN = [{"kind": "length", "min": 20}]


def prepared(folder: Path, **more: Any) -> Path:
    """A run of running text: 30 documents, two too short, one that repeats another."""
    texts = [f"document {i} " + " ".join(str(i * 31 + k) for k in range(20)) for i in range(30)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in [*texts, "short", "no", texts[3]]))
    source = {"kind": "jsonl", "path": str(folder / "a.jsonl"), "licence": "CC0-1.0", "origin": "https://example.org/a"}
    data = {"source": source, "clean": CLEAN, "dedup": {}, "decontaminate": {"action": "none"}, "tokenizer": "bytes", "seq_len": 16}
    model = {"kind": "gpt", "layers": 1, "width": 16, "heads": 2}
    values = {"name": "a.card", "task": "language-modelling", "data": data, "model": model, "train": {"steps": 1, "batch": 2}} | more
    (folder / "r.yaml").write_text(json.dumps(values))
    return tauon.run(folder / "r.yaml", root=folder / "runs", stages=("prepare",)).folder


def rows(card: dict[str, Any], name: str) -> list[dict[str, Any]]:
    found = next(one for one in card["recordSet"] if one["@id"] == name)
    return [{key.split("/")[1]: value for key, value in row.items()} for row in found["data"]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib")
def test_the_card_of_a_run_is_read_by_mlcroissant(tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    card = json.loads((prepared(tmp_path) / "croissant.json").read_text())
    read = mlcroissant.Dataset(jsonld=card)
    assert not read.metadata.ctx.issues.errors
    assert read.metadata.license == ["CC0-1.0"] and read.metadata.name == "a-card"
    assert [(f.content_url, f.sha256) for f in read.metadata.file_objects] == [
        ("https://example.org/a", hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest())
    ]
    dropped = [{key.split("/")[1]: value for key, value in row.items()} for row in read.records("dropped")]
    assert dropped == [
        {"part": "train", "step": "length", "rule": "too_short", "records": 2},
        {"part": "train", "step": "dedup", "rule": "near", "records": 1},
    ]
    assert sum(row["splits/records"] for row in read.records("splits")) == 30
    assert {row["sources/origin"] for row in read.records("sources")} == {"https://example.org/a"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib")
def test_a_table_has_its_columns(tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(f"{i},{'xy'[i % 2]},{['no', 'yes'][i % 3 > 0]}\n" for i in range(40)))
    values = {
        "name": "t", "task": "classification", "model": {"kind": "mlp"}, "train": {"steps": 1},
        "data": {"source": {"kind": "csv", "path": str(tmp_path / "t.csv"), "label": "y"}},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(values))
    run = tauon.run(tmp_path / "r.yaml", root=tmp_path / "runs", stages=("prepare",))
    card = json.loads((run.folder / "croissant.json").read_text())
    assert not mlcroissant.Dataset(jsonld=card).metadata.ctx.issues.errors
    assert [(row["column"], row["kind"]) for row in rows(card, "columns")] == [("a", "number"), ("b", "category")]
    assert "Licence not stated for: t.csv." in card["description"] and "license" not in card
    assert [one["@id"] for one in card["recordSet"]] == ["sources", "splits", "columns"]


def test_the_command_prints_and_writes_it(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    said = CliRunner().invoke(card_command, [str(run)])
    assert json.loads(said.output) == json.loads((run / "croissant.json").read_text())
    CliRunner().invoke(card_command, [str(run), "--to", str(tmp_path / "c.json")])
    assert (tmp_path / "c.json").read_bytes() == (run / "croissant.json").read_bytes()


def test_the_model_card_has_the_same_facts(tmp_path: Path) -> None:
    text = model_card(Records.read(prepared(tmp_path)), CardConfig())
    assert "- source of train: a.jsonl, licence CC0-1.0, from https://example.org/a\n" in text
    assert "- left out of train by length: Too short, 2 records\n- left out of train by dedup: Near, 1 records\n" in text


def test_cards_of_a_private_run_count_nothing_and_hash_no_own_file(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(
        recipe + "\nprivacy: {noise_multiplier: 1.0}\n"
        if "privacy: null" not in recipe
        else recipe.replace("privacy: null", "privacy: {noise_multiplier: 1.0}")
    )
    records = Records.read(run)
    card = data_card(records)
    assert card is not None and card["distribution"] == [] and "identifier" not in card
    assert [one["@id"] for one in card["recordSet"]] == ["sources", "splits"]
    text = model_card(records, CardConfig())
    assert "- left out of train by length: Not counted\n" in text and "Too short" not in text and "fingerprint of" not in text


def test_files_are_hashed_up_to_a_size(tmp_path: Path) -> None:
    records = Records.read(prepared(tmp_path))
    size = (tmp_path / "a.jsonl").stat().st_size
    assert data_card(records, size) is not None and data_card(records, size - 1) is None


def test_sources_of_a_mixture_are_told_apart(tmp_path: Path) -> None:
    mixed = [
        {"name": "web", "kind": "jsonl", "paths": ["/x/w.jsonl"], "files": 1},
        {"name": "wiki", "kind": "public", "licence": "CC BY-SA 3.0"},
    ]
    (tmp_path / "recipe.yaml").write_text("name: m\n")
    (tmp_path / "data.json").write_text(json.dumps({"sources": {"train": {"kind": "mixture", "sources": mixed}}}))
    found = origins(Records.read(tmp_path))
    assert [(one.name, one.licence) for one in found] == [("web", None), ("wiki", "CC BY-SA 3.0")]
