"""Series as people have them: out of order, moments twice, Monday to Friday, irregular, without dates. Each by a stated rule, in the notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tauon.config import parse
from tauon.data import Series, SourceConfig
from tauon.data.sources.series import IncompleteSeries
from tauon.data.sources.time_grid import continued
from tauon.errors import DataError, RecipeError


def read(path: Path, rows: list[str], header: str = "date,x", **settings: Any) -> Series:
    path.write_text("\n".join([header, *rows]) + "\n")
    return parse(SourceConfig, {"kind": "series", "path": str(path)} | settings).series()


HOURS = [f"2024-01-01 {h:02d}:00,{h}" for h in range(24)]


def test_rows_out_of_order_are_refused_or_sorted(tmp_path: Path) -> None:
    mixed = [*HOURS[10:], *HOURS[:10]]
    with pytest.raises(DataError, match="out of order.*unsorted: sort"):
        read(tmp_path / "a.csv", mixed)
    series = read(tmp_path / "a.csv", mixed, unsorted="sort")
    assert series.values[:, 0].tolist() == list(range(24)) and any("sorted by date" in n for n in series.notes)


@pytest.mark.parametrize(("rule", "value"), [("mean", 12.0), ("first", 4.0), ("last", 20.0)])
def test_repeated_moments_are_merged_by_the_rule(tmp_path: Path, rule: str, value: float) -> None:
    rows = [*HOURS[:5], "2024-01-01 04:00,20", *HOURS[5:]]
    with pytest.raises(DataError, match="occurs twice.*repeated"):
        read(tmp_path / "a.csv", rows)
    series = read(tmp_path / "a.csv", rows, repeated=rule)
    assert len(series) == 24 and series.values[4, 0] == value
    assert any("1 rows repeat the moment" in n for n in series.notes)
    frame = pd.DataFrame({"t": [r.split(",")[0] for r in rows], "x": [float(r.split(",")[1]) for r in rows]})
    assert series.values[:, 0].tolist() == getattr(frame.groupby("t")["x"], rule)().tolist()


def test_repeated_moments_are_kept_as_steps_if_asked(tmp_path: Path) -> None:
    rows = [*HOURS[:5], "2024-01-01 04:00,20", *HOURS[5:]]
    series = read(tmp_path / "a.csv", rows, repeated="keep", calendar="rows")
    assert len(series) == 25 and series.filled == 0 and series.step == "1 row"
    with pytest.raises(RecipeError, match="keep makes each row a time step; set calendar: rows"):
        read(tmp_path / "a.csv", rows, repeated="keep")


def test_working_days_have_no_gaps_at_weekends_and_holidays_are_named(tmp_path: Path) -> None:
    days = pd.bdate_range("2024-01-01", periods=60)
    rows = [f"{d:%Y-%m-%d},{i}" for i, d in enumerate(days)]
    series = read(tmp_path / "a.csv", rows)
    assert (series.step, series.season, series.filled, len(series)) == ("1 weekday", 5, 0, 60)
    with pytest.raises(IncompleteSeries, match=r"1 time steps are missing, .*calendar: rows"):
        read(tmp_path / "a.csv", rows[:20] + rows[21:])
    assert len(read(tmp_path / "a.csv", rows[:20] + rows[21:], calendar="rows")) == 59
    assert read(tmp_path / "a.csv", rows, calendar="even", fill="forward").filled == 22  # 11 weekends, because it was asked
    with pytest.raises(DataError, match="is a Saturday or Sunday"):
        read(tmp_path / "a.csv", [*rows, "2024-03-23,1"], calendar="weekdays")


def test_working_days_continue_with_working_days() -> None:
    days = pd.bdate_range("2024-01-01", periods=20).to_numpy().astype("datetime64[s]")
    assert (continued(days, 40, "1 weekday") == pd.bdate_range("2024-01-01", periods=40).to_numpy().astype("datetime64[s]")).all()


def test_irregular_rows_are_steps_and_nothing_is_filled(tmp_path: Path) -> None:
    rows = [f"2024-01-01 {h:02d}:{m:02d},{h}" for h, m in [(0, 0), (0, 7), (1, 30), (2, 0), (5, 59), (6, 0)]]
    series = read(tmp_path / "a.csv", rows, calendar="rows")
    assert len(series) == 6 and series.filled == 0 and any("nothing is filled" in n for n in series.notes)


def test_a_file_without_dates_is_a_series_of_its_rows(tmp_path: Path) -> None:
    series = read(tmp_path / "a.csv", [str(i * i) for i in range(30)], header="x", date=None)
    assert not series.dated and series.step == "1 row" and series.values[-1, 0] == 841
    with pytest.raises(RecipeError, match="unsorted: has no effect without dates"):
        read(tmp_path / "a.csv", ["1"], header="x", date=None, unsorted="sort")


def test_rows_with_missing_values_are_dropped_if_asked(tmp_path: Path) -> None:
    rows = [f"2024-01-{d:02d},{'' if d == 4 else d},{d}" for d in range(1, 20)]
    with pytest.raises(IncompleteSeries, match="1 values are missing"):
        read(tmp_path / "a.csv", rows, header="date,x,y")
    series = read(tmp_path / "a.csv", rows, header="date,x,y", fill="drop", calendar="rows")
    assert len(series) == 18 and np.isfinite(series.values).all() and any("1 of 19 rows are left out" in n for n in series.notes)
