"""Common preprocessing: the files of sites, merged, are what one place with all rows fits; data are read by them; a run without rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.artifacts import read_json
from tauon.config import parse
from tauon.data import DataConfig, DataSplits, prepare
from tauon.data.arrays import Normalizer
from tauon.data.spec_file import read_spec
from tauon.errors import DataError
from tauon.federated.spec import merge_specs, write_site_spec

RNG = np.random.default_rng(0)
NONE = {"validation": 0, "test": 0}


def prepared(source: dict[str, Any], **more: Any) -> DataSplits:
    task = more.pop("scale_targets", False)
    if source["kind"] == "csv":
        more["table"] = {"impute": "median"} | more.get("table", {})
    return prepare(parse(DataConfig, {"source": source, "split": NONE} | more), seed=0, input_kind="arrays", scale_targets=task)


def table(path: Path, rows: list[str]) -> dict[str, Any]:
    path.write_text("age,dose,ward,y\n" + "\n".join(rows) + "\n")
    return {"kind": "csv", "path": str(path), "label": "y"}


def rows_of(seed: int, count: int, wards: str, labels: str = "ab", lost: float = 0.2) -> list[str]:
    rng = np.random.default_rng(seed)
    return [
        f"{rng.normal(50, 9):.4f},{'' if rng.random() < lost else f'{rng.gamma(2) + 1:.4f}'},{rng.choice([*wards])},{rng.choice([*labels])}"
        for _ in range(count)
    ]


SITES = [rows_of(1, 60, "xy"), rows_of(2, 25, "yz", lost=0.0), rows_of(3, 40, "xz", labels="bc")]


def merged(tmp_path: Path, **more: Any) -> tuple[Path, list[Path]]:
    files = []
    for i, rows in enumerate(SITES):
        files.append(tmp_path / f"site{i}.json")
        write_site_spec(prepared(table(tmp_path / f"{i}.csv", rows), **more), files[-1])
    merge_specs(files, tmp_path / "spec.json")
    return tmp_path / "spec.json", files


@pytest.mark.parametrize("categories", ["codes", "onehot"])
def test_merged_preprocessing_is_that_of_all_rows_in_one_place(tmp_path: Path, categories: str) -> None:
    settings = {"table": {"categories": categories, "impute": "mean"}}
    path, _ = merged(tmp_path, **settings)
    whole = prepared(table(tmp_path / "all.csv", [r for rows in SITES for r in rows]), **settings)
    spec, pre, _ = read_spec(path)
    assert spec == whole.spec and pre["labels"] == ["a", "b", "c"] and pre["features"] == whole.preprocess["features"]
    ours, theirs = Normalizer.from_json(pre["normalize"]), Normalizer.from_json(whole.preprocess["normalize"])
    np.testing.assert_allclose(ours.center, theirs.center, rtol=1e-6)
    np.testing.assert_allclose(ours.scale, theirs.scale, rtol=1e-6)
    fills = [{c["name"]: c["fill"] for c in p["columns"]["columns"]} for p in (pre, whole.preprocess)]
    assert fills[0]["dose"] == pytest.approx(fills[1]["dose"])
    at = 0
    for i, rows in enumerate(SITES):
        mine = prepared(table(tmp_path / f"{i}.csv", rows), spec=str(path), **settings)
        assert json.loads(json.dumps(mine.preprocess)) == pre and mine.spec == spec
        index = np.arange(len(rows))
        batch, same = mine.train.batch(index), whole.train.batch(index + at)
        assert torch.allclose(batch.inputs, same.inputs, atol=1e-5) and torch.equal(batch.targets, same.targets)
        at += len(rows)


def test_the_merged_file_has_no_figure_of_a_single_site(tmp_path: Path) -> None:
    path, files = merged(tmp_path)
    assert "site" in read_json(files[0]) and set(read_json(path)) == {"format", "spec", "preprocess"}
    columns = read_json(path)["preprocess"]["columns"]
    assert all(c["missing"] == 0 and c["why"] == "" for c in columns["columns"])
    with pytest.raises(DataError, match="was merged before"):
        merge_specs([path], tmp_path / "again.json")


def test_pictures_and_regression_targets_are_scaled_by_all_sites(tmp_path: Path) -> None:
    every_x, every_y, files = [], [], []
    for i, count in enumerate((30, 12)):
        x, y = RNG.normal(i, 1 + i, (count, 2, 6, 6)).astype(np.float32), RNG.normal(5 * i, 2, count)
        np.savez(tmp_path / f"{i}.npz", x=x, y=y)
        every_x.append(x)
        every_y.append(y)
        files.append(tmp_path / f"{i}.json")
        source = {"kind": "npz", "path": str(tmp_path / f"{i}.npz")}
        write_site_spec(prepared(source, normalize="standard", scale_targets=True), files[-1])
    merge_specs(files, tmp_path / "spec.json")
    np.savez(tmp_path / "all.npz", x=np.concatenate(every_x), y=np.concatenate(every_y))
    whole = prepared({"kind": "npz", "path": str(tmp_path / "all.npz")}, normalize="standard", scale_targets=True)
    _, pre, _ = read_spec(tmp_path / "spec.json")
    for key in ("normalize", "target_scale"):
        for name in ("center", "scale"):
            np.testing.assert_allclose(pre[key][name], whole.preprocess[key][name], rtol=1e-5)
    mine = prepared({"kind": "npz", "path": str(tmp_path / "1.npz")}, spec=str(tmp_path / "spec.json"), scale_targets=True)
    batch, same = mine.train.batch(np.arange(12)), whole.train.batch(np.arange(30, 42))
    assert torch.allclose(batch.inputs, same.inputs, atol=1e-4) and torch.allclose(batch.targets, same.targets, atol=1e-4)


def test_bounds_are_kept_by_the_names_of_columns(tmp_path: Path) -> None:
    settings = {"normalize": "bounds", "bounds": {"age": [0, 100], "dose": [0, 20]}, "table": {"categories": "onehot"}}
    path, _ = merged(tmp_path, **settings)
    _, pre, _ = read_spec(path)
    whole = prepared(table(tmp_path / "all.csv", [r for rows in SITES for r in rows]), **settings)
    assert pre["normalize"] == whole.preprocess["normalize"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalize": "quantile"}, "quantile cannot be fitted over sites"),
        ({"normalize": "standard", "bounds": {"*": [0, 100]}}, "bounds with normalize: standard"),
        ({"table": {"categories": "target"}}, "fitted to the labels"),
    ],
)
def test_what_cannot_be_merged_is_refused_at_the_site(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_site_spec(prepared(table(tmp_path / "0.csv", SITES[0]), **settings), tmp_path / "x.json")


def test_sites_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    _, files = merged(tmp_path)
    constant = [r.replace(r.split(",")[0], "40.0") for r in SITES[0]]
    write_site_spec(prepared(table(tmp_path / "c.csv", constant)), tmp_path / "constant.json")
    with pytest.raises(DataError, match=r"column 'age' of .*site0.* is not used at .*constant.*is 40 in every"):
        merge_specs([files[0], tmp_path / "constant.json"], tmp_path / "no.json")
    write_site_spec(prepared(table(tmp_path / "d.csv", SITES[0]), normalize="none"), tmp_path / "other.json")
    with pytest.raises(DataError, match="data.normalize is 'standard'"):
        merge_specs([files[0], tmp_path / "other.json"], tmp_path / "no.json")


def test_data_that_do_not_fit_the_file_are_refused(tmp_path: Path) -> None:
    path, _ = merged(tmp_path)
    with pytest.raises(DataError, match="label 'q'"):
        prepared(table(tmp_path / "q.csv", rows_of(4, 30, "xy", labels="aq")), spec=str(path))
    (tmp_path / "short.csv").write_text("age,ward,y\n" + "\n".join(f"{i},x,{'ab'[i % 2]}" for i in range(20)) + "\n")
    with pytest.raises(DataError, match="no column 'dose'"):
        prepared({"kind": "csv", "path": str(tmp_path / "short.csv"), "label": "y"}, spec=str(path))
    (tmp_path / "bad.json").write_text('{"format": "other"}')
    with pytest.raises(DataError, match="is not a file of `tauon federate spec`"):
        prepared(table(tmp_path / "0.csv", SITES[0]), spec=str(tmp_path / "bad.json"))


def test_without_rows_only_the_file_is_read(tmp_path: Path) -> None:
    path, _ = merged(tmp_path)
    empty = prepared({"kind": "csv", "path": str(tmp_path / "not-here.csv"), "label": "y"}, spec=str(path), rows=False)
    spec, pre, _ = read_spec(path)
    assert empty.spec == spec and empty.preprocess == pre and empty.validation is None and empty.test is None
    with pytest.raises(Exception, match="rows: false"):
        prepared({"kind": "csv", "path": "x.csv", "label": "y"}, rows=False)
