"""Filters of tables, images, recordings and series find what is planted, and leave the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clean_corpus import config
from tauon.config import parse
from tauon.data import Arrays, Series, Signals, Table, prepare
from tauon.data.clean import FilterConfig, RowFilter, RowVerdicts
from tauon.data.dedup.images import dhash
from tauon.errors import DataError, RecipeError


def apply(data: Any, kind: str, **values: Any) -> RowVerdicts:
    made = parse(FilterConfig, {"kind": kind, **values})
    assert isinstance(made, RowFilter)
    return made.apply(data)


def table(**columns: Any) -> Table:
    n = len(next(iter(columns.values())))
    return Table(columns, np.arange(n) % 2, ("a", "b"))


def reasons(verdicts: RowVerdicts) -> dict[int, str]:
    return {row: why.reason for row, why in verdicts.rejected.items()}


def test_ranges_types_and_missing_values_of_a_table() -> None:
    data = table(age=["3", "-1", None, "130", "x"], since=["2020-01-31", "soon", None, "2021-02-03", "2021-02-03"])
    assert reasons(apply(data, "range", column="age", low=0, high=120)) == {1: "age is -1, less than 0", 3: "age is 130, more than 120"}
    assert reasons(apply(data, "types", columns={"age": "whole", "since": "date"})) == {
        4: "age is 'x', not a whole", 1: "since is 'soon', not a date",
    }  # fmt: skip
    assert reasons(apply(data, "missing", columns=["age"])) == {2: "age is missing"}
    assert reasons(apply(data, "missing", max_share=0.9)) == {2: "2 of 2 values are missing, more than 90%"}
    with pytest.raises(DataError, match="there is no column 'agee'. Columns: age, since"):
        apply(data, "range", column="agee", low=0)
    with pytest.raises(RecipeError, match="low: is missing, and so is high"):
        apply(data, "range", column="age")


@pytest.mark.parametrize("method", ["robust-z", "iqr"])
def test_outliers_are_those_far_from_the_median(method: str) -> None:
    values = np.random.default_rng(0).normal(10, 1, 500)
    values[[3, 77]] = [40, -30]
    data = Arrays(np.stack([values, np.full(500, 2.0)], 1), np.zeros(500, np.int64), ("v", "still"), ("a",))
    found = apply(data, "outliers", method=method, action="drop")
    assert set(found.rejected) == {3, 77} and "v is 40," in reasons(found)[3]
    told = apply(data, "outliers", method=method)
    assert not told.rejected and told.notes == ["column 'v': 2 outliers (-30, 40); leave them out with action: drop"]


def test_robust_z_equals_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).standard_t(2, 300)
    expected = np.abs(values - np.median(values)) / stats.median_abs_deviation(values, scale="normal") > 4
    found = apply(Arrays(values[:, None], np.zeros(300, np.int64)), "outliers", threshold=4, action="drop")
    assert sorted(found.rejected) == np.flatnonzero(expected).tolist()


def test_units_become_one() -> None:
    data = table(weight=["70 kg", "154 lb", "12 stone", None, "80"])
    found = apply(data, "units", column="weight", units={"kg": 1, "lb": 0.5, "": 1})
    assert found.data.columns["weight"] == [70.0, 77.0, "12 stone", None, 80.0]
    assert reasons(found) == {2: "weight is '12 stone', in none of the units kg, lb, "} and found.changed == 2
    assert data.columns["weight"][0] == "70 kg", "the data given are not modified"


def test_equal_rows_are_duplicates_and_another_target_is_reported() -> None:
    data = table(a=["1", "2", "1", "1"], b=["x", "y", "x", "x"])
    found = apply(data, "duplicates")
    assert reasons(found) == {2: "equal to example 0"}
    assert found.notes == ["1 examples have the features of another one and another target: one of each two is wrong"]


def pictures(n: int = 60) -> np.ndarray:
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 256, (n, 3, 6, 6)).astype(np.uint8)
    return coarse.repeat(5, 2).repeat(5, 3)


def test_blank_and_nearly_equal_images_are_found() -> None:
    x = pictures()
    x[7] = 200
    x[9] = np.clip(x[4].astype(int) + 3, 0, 255)  # brighter
    x[11] = x[5]
    x[11, 0, 0, 0] ^= 255
    data = Arrays(x, np.zeros(60, np.int64), (), ("a",))
    assert set(apply(data, "blank").rejected) == {7}
    found = apply(data, "near-duplicates")
    assert set(found.rejected) == {9, 11} and "from example 4, no more than 2" in reasons(found)[9]
    brute = {
        int(j) for j in range(60) for i in range(j) if (int(dhash(x)[i]) ^ int(dhash(x)[j])).bit_count() <= 2
    }  # fmt: skip
    assert set(found.rejected) == brute
    assert not apply(data, "duplicates").rejected, "11 differs from 5 in one pixel"


def test_hashes_are_those_of_pillow_shrinking() -> None:
    image = pytest.importorskip("PIL.Image")
    noise = np.random.default_rng(2).integers(0, 256, (20, 3, 32, 36)).astype(np.uint8)
    for picture, value in zip(noise, dhash(noise).tolist(), strict=True):
        grey = np.tensordot([0.299, 0.587, 0.114], picture, axes=(0, 0)).astype(np.float32)
        small = np.asarray(image.fromarray(grey).resize((9, 8), image.Resampling.BOX))
        bits = (small[:, 1:] > small[:, :-1] + 1e-3).ravel()
        assert (int("".join("01"[b] for b in bits.astype(int)), 2) ^ value).bit_count() <= 1


def test_recordings_that_are_silent_clipped_short_or_twice() -> None:
    draw = np.random.default_rng(0)
    waves = [(0.3 * np.sin(np.arange(4000) / (5 + i))).astype(np.float32) for i in range(8)]
    waves[1] = (1e-5 * draw.normal(size=4000)).astype(np.float32)
    waves[2] = np.clip(5 * waves[2], -1, 1)
    waves[3] = waves[3][:300]
    waves[6] = waves[5].copy()
    data = Signals(waves, 8000, [f"{i}.wav" for i in range(8)], np.zeros(8, np.int64), ("a",))
    assert set(apply(data, "silent").rejected) == {1}
    assert set(apply(data, "clipped").rejected) == {2}
    assert reasons(apply(data, "duration")) == {3: "0.037 s, less than 0.1 s"}
    assert reasons(apply(data, "duplicates")) == {6: "equal to example 5"}


def test_a_stuck_sensor_is_reported_or_filled() -> None:
    values = np.random.default_rng(0).normal(size=(200, 2))
    values[50:90, 1] = values[50, 1]
    values[100:140, 0] = 0
    times = np.arange(200).astype("datetime64[h]").astype("datetime64[s]")
    data = Series(times, values, ("a", "b"), 2, "1 h", 24)
    told = apply(data, "stuck")
    assert told.data is None and len(told.notes) == 1
    assert told.notes[0].startswith("column 'b' repeats one value 1 times for 24 steps or more (40 of 200 steps), first from 1970-01-03T02")
    filled = apply(data, "stuck", action="interpolate", zeros=True)
    assert np.allclose(np.diff(filled.data.values[50:91, 1]), (values[90, 1] - values[50, 1]) / 40)
    assert filled.changed == 39 + 39 and np.array_equal(data.values, values)


def test_images_and_recordings_in_a_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_CACHE", str(tmp_path / "cache"))
    x, y = pictures(), np.arange(60) % 3
    x[[10, 20]] = 0
    x[31], y[31] = x[30], y[30]
    np.savez(tmp_path / "a.npz", x=x, y=y)
    splits = prepare(config(source={"kind": "npz", "path": str(tmp_path / "a.npz")}, clean="default"), seed=0, input_kind="arrays")
    assert len(splits.train) + len(splits.validation) == 57  # type: ignore[arg-type]
    facts = splits.facts["clean"]["train"]
    assert [(one["filter"], one["rejected"]) for one in facts["filters"]] == [("blank", 2), ("duplicates", 1)]
    listed = (Path(splits.facts["rejected"]) / "train.jsonl").read_text()
    assert listed.startswith('{"part": "train", "source": "npz", "record": "row 10", "step": "blank"')
    again = prepare(config(source={"kind": "npz", "path": str(tmp_path / "a.npz")}, clean="default"), seed=0, input_kind="arrays")
    assert again.fingerprint == splits.fingerprint and again.facts["rejected"] == splits.facts["rejected"]
    with pytest.raises(RecipeError, match=r"data.clean.0: range cleans table, but the data are images"):
        prepare(
            config(source={"kind": "npz", "path": str(tmp_path / "a.npz")}, clean={"kind": "range", "column": "x0", "low": 0}),
            seed=0,
            input_kind="arrays",
        )
