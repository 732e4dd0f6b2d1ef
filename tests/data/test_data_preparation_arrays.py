"""`prepare` for arrays: statistics of the training rows, parts of files, fingerprints, augmentation, folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from preparation_samples import blobs, config

from tauon.data import (
    Normalizer,
    prepare,
)
from tauon.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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
