"""Planted faults of texts and images are found, clean data gives no warnings, and damaged files end no look."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quality_views import patients, view_of_planted

from tauon.config import parse
from tauon.data import DataConfig
from tauon.data.dedup.images import near_pairs
from tauon.data.quality import DataView, Quality, examine, view_of
from tauon.data.quality.leave_one_out import leave_one_out
from tauon.testing import Planted, plant_images, plant_table, plant_texts, topic_texts, write_images

FINDINGS = {
    "label": ["label errors"], "duplicate": ["duplicates", "near duplicates"], "leak": ["leaks", "near leaks"], "outlier": ["outliers"],
    "blank": ["blank images"], "encoding": ["encoding"], "pii": ["personal data"],
}  # fmt: skip
SEEDS = [1, 2, 3]
MIRROR = Path(os.environ.get("TAUON_DATA", "/nowhere"))


def check(planted: Planted, quality: Quality, faults: set[str]) -> None:
    for fault in faults:
        found = {place for name in FINDINGS[fault] if (f := quality.of(name)) is not None for place in f.rows}
        recall, precision = planted.score(fault, found)
        assert recall >= 0.9 and precision >= 0.8, (fault, recall, precision)


def digits() -> tuple[list[Any], list[str]]:
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    images = [np.kron(image, np.ones((4, 4))).clip(0, 16) * (255 / 16) for image in found.images]
    return [i.astype(np.uint8) for i in images], [str(t) for t in found.target]


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_faults_of_texts_are_found(seed: int) -> None:
    for module in ("sklearn", "ftfy", "phonenumbers", "stdnum"):
        pytest.importorskip(module)
    planted = plant_texts(*topic_texts(600, seed=seed), seed=seed)
    check(planted, examine(view_of_planted(planted, "texts")), {"label", "duplicate", "leak", "outlier", "encoding", "pii"})


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_faults_of_images_are_found(seed: int) -> None:
    planted = plant_images(*digits(), seed=seed)
    check(planted, examine(view_of_planted(planted, "images")), {"label", "duplicate", "leak", "outlier", "blank"})


@pytest.mark.parametrize("seed", SEEDS)
def test_wrong_labels_and_personal_data_of_a_table_are_found(seed: int) -> None:
    for module in ("sklearn", "phonenumbers", "stdnum"):
        pytest.importorskip(module)
    planted = plant_table(*patients(seed=seed), seed=seed)
    check(planted, examine(view_of_planted(planted, "table"), ["label-errors", "personal-data"]), {"label", "pii"})


@pytest.mark.skipif(not (MIRROR / "ag_news").is_dir(), reason="needs the data mirror")
def test_planted_faults_of_news_are_found() -> None:
    config = parse(DataConfig, {"source": {"kind": "public", "name": "ag-news", "limit": 1500}})
    news = view_of(config, input_kind="labelled-text")
    planted = plant_texts(list(news.texts)[:1500], ["a", "b"] * 750, seed=1)
    view = view_of_planted(planted, "texts")
    checks = ["equal-records", "near-duplicates", "text-outliers", "encoding", "personal-data"]
    check(planted, examine(view, checks), {"duplicate", "leak", "outlier", "encoding", "pii"})


def worth_a_look(quality: Quality) -> list[str]:
    return [f.check for f in quality.findings if f.severity != "note"]


def test_clean_texts_and_images_give_no_warnings() -> None:
    texts, labels = topic_texts(600, seed=5)
    clean = Planted(texts, labels, ["train"] * 480 + ["test"] * 120)
    assert worth_a_look(examine(view_of_planted(clean, "texts"))) == []
    images, names = digits()
    clean = Planted(images, names, ["train" if i % 5 else "test" for i in range(len(images))])
    assert worth_a_look(examine(view_of_planted(clean, "images"))) == []


def test_files_that_end_in_the_middle_are_named_and_the_others_looked_at(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    images, labels = digits()
    planted = plant_images(images[:300], labels[:300], seed=1)
    paths = write_images(planted, tmp_path / "scans", broken=3)
    view = view_of(parse(DataConfig, {"source": {"kind": "folder", "path": str(tmp_path / "scans" / "train")}}), input_kind="arrays")
    told = " ".join(view.left_out)
    assert all(paths[i].name in told for (i,) in planted.faults["broken"]), told
    assert examine(view, ["blank-images"]).of("left out") is not None


def test_personal_data_is_masked_in_the_examples() -> None:
    for module in ("phonenumbers", "stdnum"):
        pytest.importorskip(module)
    texts = ["All is well today."] * 60 + ["Write to anna.miller@example.org, she has card 4111 1111 1111 1111."]
    finding = examine(DataView("texts", np.array(["train"] * 61), str, texts=texts), ["personal-data"]).of("personal data")
    assert finding is not None and finding.rows == ((60,),)
    assert "<EMAIL>" in finding.examples[0].text and "anna" not in finding.examples[0].text and "4111" not in finding.examples[0].text


def test_leave_one_out_scores_equal_fits_without_the_record() -> None:
    kernel_ridge, rng = pytest.importorskip("sklearn.kernel_ridge"), np.random.default_rng(0)
    x, y, groups = rng.normal(size=(30, 4)).astype(np.float32), np.arange(30) % 3, np.arange(30) // 2
    ours = leave_one_out(x, y, radial=False, ridge=0.5, groups_N=groups)
    targets, centred = (y[:, None] == np.arange(3)).astype(float), x - x.mean(0)
    mean = targets.mean(0)
    for group in range(15):
        mine = groups == group
        model = kernel_ridge.KernelRidge(alpha=0.5, kernel="linear").fit(centred[~mine], targets[~mine] - mean)
        assert ours[mine] == pytest.approx(model.predict(centred[mine]) + mean, abs=1e-4)


def test_near_pairs_are_copies_with_another_exposure_and_not_other_images() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 1, 8, 8)).repeat(4, 2).repeat(4, 3).astype(np.uint8)
    images[7] = np.clip(images[2] * 0.9 + rng.normal(0, 2, images[2].shape), 0, 255)
    images[9], images[11] = 255 - images[3], 0
    images[12] = 0
    assert near_pairs(images).tolist() == [[2, 7]]


def recordings(n: int = 80) -> list[Any]:
    """Ten tones each, that rise and fall, of 0.9 to 1.1 s."""
    rng, waves = np.random.default_rng(0), []
    for _ in range(n):
        seconds = np.arange(int(rng.integers(7200, 8800))) / 8000
        peaks, tones = rng.uniform(0.1, 0.9, 10), rng.uniform(100, 3000, 10)
        waves.append(sum(np.exp(-(((seconds - p) * 8) ** 2)) * np.sin(2 * np.pi * f * seconds) for p, f in zip(peaks, tones, strict=True)))
    return [(0.1 * wave + rng.normal(0, 1e-3, len(wave))).astype(np.float32) for wave in waves]


def test_faults_of_recordings_are_found() -> None:
    waves = recordings()
    waves[3] = waves[3] * np.float32(1e-5)
    waves[5] = np.clip(waves[5] * 20, -1, 1)
    waves[8] = waves[8] + np.float32(0.3)
    waves[11] = np.tile(waves[11], 9)
    waves[70] = (waves[20] * 0.7 + np.random.default_rng(1).normal(0, 1e-4, len(waves[20]))).astype(np.float32)
    parts = np.array(["train"] * 60 + ["test"] * 20)
    quality = examine(DataView("recordings", parts, str, waves=waves, rate=8000))
    expected = {"silent recordings": (3,), "clipped recordings": (5,), "offset recordings": (8,), "outliers": (11,), "near leaks": (70, 20)}
    assert {f.check: f.rows for f in quality.findings if f.check != "drift"} == {name: (place,) for name, place in expected.items()}
    assert worth_a_look(examine(DataView("recordings", parts, str, waves=recordings(), rate=8000))) == []


def test_stuck_sensors_and_jumps_of_a_series_are_found() -> None:
    hours = np.arange(2000)
    level = np.sin(hours / 24 * 2 * np.pi) + np.random.default_rng(0).normal(0, 0.1, 2000)
    faulty = level.copy()
    faulty[300:340], faulty[900] = 0.5, 40.0
    moments = np.datetime64("2024-01-01T00") + hours
    view = DataView("series", np.array(["train"] * 2000), lambda i: str(moments[i]), columns={"a": level, "b": faulty}, moments=moments)
    quality = examine(view)
    stuck, jumps = quality.of("stuck values"), quality.of("jumps")
    assert stuck is not None and stuck.rows == ((300, 339),) and stuck.columns == ("b",)
    assert jumps is not None and jumps.rows == ((900,),) and jumps.columns == ("b",)


def test_a_long_document_is_looked_at_in_passages(tmp_path: Path) -> None:
    lines = [" ".join(f"word{(i * 31 + j * 7) % 9973}" for j in range(12)) + ".\n" for i in range(800)]
    (tmp_path / "book.txt").write_text("".join(lines[:400]) + "anna caf\u00c3\u00a9 bert\n" + "".join(lines[400:]))
    view = view_of(parse(DataConfig, {"source": {"kind": "text", "path": str(tmp_path / "book.txt")}}), input_kind="tokens")
    assert len(view) > 10 and "".join(view.texts).count("anna") == 1 and ", characters " in view.place(3)
    row = next(i for i, t in enumerate(view.texts) if "anna" in t)
    start = int(view.place(row).rpartition("characters ")[2].split(" to ")[0].replace(",", ""))
    assert view.texts[row] == (tmp_path / "book.txt").read_text()[start : start + len(view.texts[row])]
