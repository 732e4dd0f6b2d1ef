"""Planted faults are where the truth says, and nowhere else; the same seed plants the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tauon.testing import Planted, plant_images, plant_table, plant_texts, topic_texts, write_images


def clean_rows(n: int = 200) -> tuple[list[dict[str, object]], list[str]]:
    rng = np.random.default_rng(0)
    return [{"age": int(rng.integers(20, 80)), "town": str(rng.choice(["Bonn", "Ulm"]))} for _ in range(n)], ["yes", "no"] * (n // 2)


def unchanged(before: list[object], after: Planted, kinds: tuple[str, ...]) -> None:
    changed = {i for kind in kinds for i in after.rows_of(kind)}
    assert changed, "something was planted"
    for i, record in enumerate(before):
        assert (after.records[i] == record) != (i in changed), i


def test_texts_are_changed_where_the_truth_says() -> None:
    texts, labels = topic_texts(400)
    planted = plant_texts(texts, labels, seed=3)
    unchanged(texts, planted, ("outlier", "encoding", "pii"))  # type: ignore[arg-type]
    flipped = {i for i, (a, b) in enumerate(zip(labels, planted.labels, strict=False)) if a != b}
    assert flipped == planted.rows_of("label")
    for i, copy in planted.faults["leak"]:
        assert (planted.parts[i], planted.parts[copy]) == ("test", "train")
    assert planted == plant_texts(texts, labels, seed=3) != plant_texts(texts, labels, seed=4)


def test_rows_are_changed_where_the_truth_says() -> None:
    rows, labels = clean_rows()
    planted = plant_table(rows, labels)
    shown = Planted([{k: r[k] for k in ("age", "town")} for r in planted.records], planted.labels, planted.parts, planted.faults)
    unchanged(rows, shown, ("outlier", "broken"))  # type: ignore[arg-type]
    assert all((r["result"] == "r1") == (label == "yes") for r, label in zip(planted.records, planted.labels, strict=True))
    assert all("@" in planted.records[i]["remark"] or "+49" in planted.records[i]["remark"] for i in planted.rows_of("pii"))


def test_images_are_changed_where_the_truth_says_and_some_files_end_early(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 200, (8, 8)).astype(np.uint8) for _ in range(100)]
    planted = plant_images(images, ["a", "b"] * 50)
    changed = planted.rows_of("outlier") | planted.rows_of("blank")
    assert {i for i in range(100) if not np.array_equal(images[i], planted.records[i])} == changed
    paths = write_images(planted, tmp_path)
    broken = set()
    for i, path in enumerate(paths):
        try:
            with image.open(path) as opened:
                assert np.array_equal(np.asarray(opened.convert("L")), planted.records[i])
        except (OSError, SyntaxError):
            broken.add((i,))
    assert broken == planted.faults["broken"] and len(broken) == 3


def test_found_places_are_scored_in_any_order() -> None:
    planted = Planted(["a"] * 4, ["x"] * 4, ["train"] * 4, {"duplicate": {(0, 1), (2, 3)}})
    assert planted.score("duplicate", {(1, 0), (0, 3)}) == (0.5, 0.5)
    assert planted.score("duplicate", set()) == (0.0, 0.0)


def test_more_faults_than_records_are_refused() -> None:
    texts, labels = topic_texts(12)
    with pytest.raises(ValueError, match="Lower the share"):
        plant_texts(texts, labels, share=0.5)
