"""Series: read and checked, cut into windows by time, scaled by the training part alone, the same again from records."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tauon.config import parse
from tauon.data import DataConfig, DataSplits, SourceConfig, inputs_from_records, outputs_in_units, prepare
from tauon.data.series import seasonal_naive_scale
from tauon.data.window import calendar_columns
from tauon.errors import DataError, RecipeError

START = datetime(2020, 2, 28, 22)


def write(folder: Path, n: int = 200, *, step: timedelta = timedelta(hours=1), change: dict[int, str | None] | None = None) -> Path:
    """Rows date,a,b; `change` replaces whole lines by row number (None drops one)."""
    rng = np.random.default_rng(0)
    lines: list[str | None] = [
        f"{START + i * step},{np.sin(i / 4) + rng.normal() / 5:.6f},{100 + 10 * np.cos(i / 9):.6f}" for i in range(n)
    ]
    for i, line in (change or {}).items():
        lines[i] = line
    path = folder / "s.csv"
    path.write_text("\n".join(["date,a,b", *(x for x in lines if x is not None)]))
    return path


def series(path: Path, **values: Any) -> Any:
    return parse(SourceConfig, {"kind": "series", "path": str(path)} | values).series()


def made(path: Path, **data: Any) -> DataSplits:
    source = {"kind": "series", "path": str(path)} | data.pop("source", {})
    base = {"source": source, "split": {"validation": 0.2, "test": 0.2}, "window": {"context": 12, "horizon": 4}}
    return prepare(parse(DataConfig, base | data), seed=0, input_kind="series")


def every(splits: DataSplits, part: str = "train") -> Any:
    data = getattr(splits, part)
    return data.batch(np.arange(len(data)))


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("step", "words", "season"),
    [
        (timedelta(minutes=15), "15 min", 96),
        (timedelta(hours=1), "1 h", 24),
        (timedelta(days=1), "1 d", 7),
        (timedelta(weeks=1), "1 week", 52),
    ],
)
def test_the_step_and_its_usual_season_are_found(step: timedelta, words: str, season: int, tmp_path: Path) -> None:
    found = series(write(tmp_path, 30, step=step))
    assert (found.step, found.season, len(found), found.targets, found.names) == (words, season, 30, 2, ("a", "b"))
    assert series(write(tmp_path, 30, step=step), season=5).season == 5


@pytest.mark.parametrize(("day", "months"), [(1, 1), (31, 1), (15, 3)])
def test_months_are_even_though_they_differ_in_length(day: int, months: int, tmp_path: Path) -> None:
    last = {1: 31, 2: 29, 3: 31, 4: 30, 5: 31, 6: 30, 7: 31, 8: 31, 9: 30, 10: 31, 11: 30, 12: 31}
    dates = [f"2020-{m:02d}-{min(day, last[m]):02d}" for m in range(1, 13, months)]
    (tmp_path / "m.csv").write_text("date,a\n" + "".join(f"{d},{i}\n" for i, d in enumerate(dates)))
    found = series(tmp_path / "m.csv")
    assert (found.step, found.season) == (("1 month", 12) if months == 1 else ("3 months", 4))
    (tmp_path / "m.csv").write_text("date,a\n" + "".join(f"{d},{i}\n" for i, d in enumerate(dates) if i != 1))
    with pytest.raises(DataError, match="1 time steps are missing"):
        series(tmp_path / "m.csv")


def test_dates_in_other_forms_and_zones(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("day;x\n" + "".join(f"{i:02d}.03.2021;{i}\n" for i in range(1, 20)))
    found = series(tmp_path / "a.csv", date="day", date_format="%d.%m.%Y", delimiter=";")
    assert str(found.times[0]) == "2021-03-01T00:00:00"
    (tmp_path / "b.csv").write_text("date,x\n" + "".join(f"2021-03-01T{i:02d}:00:00+02:00,{i}\n" for i in range(20)))
    assert str(series(tmp_path / "b.csv").times[0]) == "2021-02-28T22:00:00"


def test_what_is_missing_is_filled_with_what_came_before(tmp_path: Path) -> None:
    path = write(tmp_path, 20, change={7: None, 8: None, 12: f"{START + timedelta(hours=12)},,5"})
    found = series(path, fill="forward")
    assert len(found) == 20
    assert found.filled == 3
    assert found.values[7].tolist() == found.values[8].tolist() == found.values[6].tolist()
    assert found.values[12, 0] == found.values[11, 0]
    assert (np.diff(found.times.astype(np.int64)) == 3600).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({5: f"{START},1,2"}, r"dates out of order: 2020-02-28T22:00:00 \(row 5\) comes after 2020-02-29T02:00:00\. Sort the rows"),
        ({5: f"{START + timedelta(hours=4)},1,2"}, r"the date 2020-02-29T02:00:00 occurs twice \(rows 4 and 5\)"),
        ({5: None, 6: None}, r"2 time steps are missing, the first after 2020-02-29T02:00:00.*fill: forward"),
        ({5: f"{START + timedelta(hours=4, minutes=20)},1,2"}, r"not evenly spaced: 2020-02-29T02:20:00 \(row 5\).*usual step of 1 h"),
        ({5: f"{START + timedelta(hours=5)},,2"}, r"1 values are missing, the first in column 'a' at 2020-02-29T03:00:00"),
        ({5: f"{START + timedelta(hours=5)},x,2"}, r"column 'a': 'x' in row 5 is not a number"),
        ({5: f"{START + timedelta(hours=5)},inf,2"}, r"column 'a': 'inf' in row 5 is not a number"),
        ({5: "tomorrow,1,2"}, r"column 'date': 'tomorrow' in row 5 is not a date"),
        ({5: f"{START + timedelta(hours=5)},1"}, r"line 7: 2 values, expected 3"),
    ],
)
def test_wrong_series_are_named(change: dict[int, str | None], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        series(write(tmp_path, 20, change=change))


def test_columns_that_are_not_there_and_columns_without_values(tmp_path: Path) -> None:
    path = write(tmp_path, 20)
    with pytest.raises(DataError, match="no column 'datum'; did you mean 'date'"):
        series(path, date="datum")
    with pytest.raises(DataError, match="no column 'c'"):
        series(path, inputs=["c"])
    (tmp_path / "e.csv").write_text("date,a\n2020-01-01,\n2020-01-02,\n")
    with pytest.raises(DataError, match="column 'a' has no values"):
        series(tmp_path / "e.csv")
    (tmp_path / "e.csv").write_text("date,a\n2020-01-01,\n2020-01-02,3\n")
    with pytest.raises(DataError, match="starts with a missing value"):
        series(tmp_path / "e.csv", fill="forward")
    with pytest.raises(RecipeError, match="'a' is also in targets"):
        series(path, inputs=["a"], targets=["a", "b"])


# ------------------------------------------------------------------------------------------------ windows


def test_windows_are_slices_of_the_series_and_held_out_contexts_reach_back(tmp_path: Path) -> None:
    path = write(tmp_path)
    splits = made(path)
    raw = series(path).values.astype(np.float64)
    scaled = (raw - raw[:120].mean(0)) / raw[:120].std(0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (120 - 15, 40 - 3, 40 - 3)  # type: ignore[arg-type]
    for part, first in (("train", 12), ("validation", 120), ("test", 160)):
        batch = every(splits, part)
        for i in range(len(batch)):
            np.testing.assert_allclose(batch.inputs[i], scaled[first + i - 12 : first + i], atol=2e-5)
            np.testing.assert_allclose(batch.targets[i], scaled[first + i : first + i + 4], atol=2e-5)
        assert getattr(splits, part).origin(0) == str(np.datetime64(START + timedelta(hours=first), "s"))
    assert splits.spec.input_shape == (12, 2)
    assert (splits.spec.outputs, splits.spec.horizon, splits.spec.labels) == (2, 4, ("a", "b"))
    json.dumps([splits.facts, splits.preprocess], allow_nan=False)


def test_the_literatures_split_of_etth1(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAUON_DATA", str(mirror))
    source = {"kind": "public", "name": "etth1", "limit": 14400}
    config = {"source": source, "split": {"validation": 0.2, "test": 0.2}, "window": {"context": 96, "horizon": 96}}
    splits = prepare(parse(DataConfig, config), seed=0, input_kind="series")
    sizes = [len(getattr(splits, p)) for p in ("train", "validation", "test")]
    assert sizes == [8449, 2785, 2785]  # Dataset_ETT_hour of Informer and its heirs: border - seq_len - pred_len + 1
    # means and deviations of the first 8,640 rows, by pandas: what its StandardScaler holds
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(mirror / "ett" / "ETTh1.csv.gz").iloc[:8640, 1:]
    np.testing.assert_allclose(splits.preprocess["normalize"]["center"], frame.mean().to_numpy(), rtol=1e-5)
    np.testing.assert_allclose(splits.preprocess["normalize"]["scale"], frame.std(ddof=0).to_numpy(), rtol=1e-5)


def test_what_is_held_out_changes_nothing_in_training(tmp_path: Path) -> None:
    before = made(write(tmp_path))
    after = made(write(tmp_path, change={i: f"{START + timedelta(hours=i)},{i},{-i}" for i in range(120, 200)}))
    assert after.preprocess == before.preprocess
    assert torch.equal(every(after).inputs, every(before).inputs)
    assert torch.equal(every(after).targets, every(before).targets)
    assert not torch.equal(every(after, "test").targets, every(before, "test").targets)
    assert after.fingerprint != before.fingerprint


def test_strides_inputs_and_the_calendar(tmp_path: Path) -> None:
    path = write(tmp_path)
    splits = made(
        path,
        source={"targets": ["b"], "inputs": ["a"]},
        window={"context": 12, "horizon": 4, "stride": 5, "origins": 7, "calendar": ["hour"]},
    )
    assert (len(splits.train), len(splits.test)) == (21, 6)  # type: ignore[arg-type]
    batch = every(splits, "test")
    assert batch.inputs.shape == (6, 12, 3)
    assert batch.targets.shape == (6, 4, 1)
    hours = [(START + timedelta(hours=160 - 12 + i)).hour / 23 - 0.5 for i in range(12)]
    np.testing.assert_allclose(batch.inputs[0, :, 2], hours, atol=1e-6)
    plain = every(made(path), "test")
    np.testing.assert_array_equal(batch.inputs[0, :, :2], plain.inputs[0].flip(1))
    assert splits.spec.labels == ("b",)


def test_the_calendar_is_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    times = np.array([START + timedelta(minutes=12_347 * i) for i in range(60)], "datetime64[s]")
    theirs = pandas.DatetimeIndex(times)
    spans = {"minute": 59, "hour": 23, "weekday": 6, "day": 30, "yearday": 365, "month": 11}
    values = [theirs.minute, theirs.hour, theirs.day_of_week, theirs.day - 1, theirs.day_of_year - 1, theirs.month - 1]
    expected = np.stack([v / s - 0.5 for v, s in zip(values, spans.values(), strict=True)], axis=1)
    np.testing.assert_allclose(calendar_columns(times, tuple(spans)), expected, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("normalize", ["standard", "robust", "minmax", "none"])
def test_records_give_the_very_window_and_forecasts_come_back_in_units(normalize: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    splits = made(path, normalize=normalize, window={"context": 12, "horizon": 4, "calendar": ["hour", "weekday"]})
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    records = [{"date": d, "a": float(a), "b": float(b)} for d, a, b in lines[140:172]]  # more than the context: the last count
    batch = every(splits, "test")
    preprocess = json.loads(json.dumps(splits.preprocess))
    np.testing.assert_array_equal(inputs_from_records(preprocess, records)[0], batch.inputs[12])
    truth = [[float(a), float(b)] for _, a, b in lines[172:176]]
    np.testing.assert_allclose(outputs_in_units(preprocess, batch.targets[12:13].numpy())[0], truth, atol=1e-4)
    quantiles = batch.targets[12:13, :, :, None].expand(-1, -1, -1, 3).numpy()
    np.testing.assert_allclose(outputs_in_units(preprocess, quantiles)[0, ..., 2], truth, atol=1e-4)
    with pytest.raises(DataError, match="got 11 records, but the model reads the last 12"):
        inputs_from_records(preprocess, records[:11])
    with pytest.raises(DataError, match="not in order of time"):
        inputs_from_records(preprocess, records[::-1])


def test_the_seasonal_naive_scale_is_a_mean_absolute_difference() -> None:
    y = np.array([[1.0, 0], [2, 0], [4, 0], [8, 0], [16, 0]], np.float32)
    assert seasonal_naive_scale(y, 2) == [pytest.approx((3 + 6 + 12) / 3), None]
    assert seasonal_naive_scale(y, 5) == [None, None]


# ------------------------------------------------------------------------------------------------ augmentation


@pytest.mark.parametrize("step", ["jitter", "scaling", "window-slice"])
def test_augmentation_is_a_function_of_seed_epoch_and_index(step: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    plain, changed = made(path), made(path, augment=[step])
    index = np.array([3, 50, 7])
    one, again, alone = (changed.train.batch(i, epoch=2) for i in (index, index, index[1:2]))
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.inputs[1:2], alone.inputs)
    assert torch.equal(one.targets[1:2], alone.targets)
    assert not torch.equal(one.inputs, changed.train.batch(index, epoch=3).inputs)
    assert not torch.equal(one.inputs, plain.train.batch(index).inputs)
    assert torch.equal(every(changed, "test").inputs, every(plain, "test").inputs)  # training examples only


def test_what_each_augmentation_does(tmp_path: Path) -> None:
    path = write(tmp_path)
    window = {"context": 12, "horizon": 4, "calendar": ["hour"]}
    plain = every(made(path, window=window))
    noisy = every(made(path, window=window, augment=[{"kind": "jitter", "std": 0.5}]))
    assert torch.equal(noisy.targets, plain.targets)
    assert (noisy.inputs - plain.inputs)[:, :, :2].std() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noisy.inputs[:, :, 2], plain.inputs[:, :, 2])  # the calendar stays
    scaled = every(made(path, window=window, augment=[{"kind": "scaling", "std": 0.2}]))
    before, after = (torch.cat([b.inputs[:, :, :2], b.targets], 1) for b in (plain, scaled))
    factor = (after / before)[:, :1]
    torch.testing.assert_close(after, before * factor, rtol=1e-4, atol=1e-5)
    assert factor.std() == pytest.approx(0.2, rel=0.2)
    sliced = every(made(path, window=window, augment=[{"kind": "window-slice", "keep": 0.75, "share": 1.0}]))
    whole = torch.cat([sliced.inputs[:, :, :2], sliced.targets], 1)
    for i in (0, 11):  # numpy's interpolation of one of the slices
        options = [
            np.stack([np.interp(start + np.arange(16) * 11 / 15, np.arange(16), before[i, :, c]) for c in range(2)], 1)
            for start in range(5)
        ]
        assert min(np.abs(o - whole[i].numpy()).max() for o in options) < 1e-5


# ------------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (
            {"window": {"context": 150, "horizon": 4}},
            DataError,
            r"the train part has 120 of the series' 200 time steps, fewer than a window of 150",
        ),
        ({"window": {"context": 12, "horizon": 50}}, DataError, r"the validation part has 40 .* fewer than a horizon of 50 steps"),
        ({"augment": ["flip"]}, DataError, "flip is not for time series. Use jitter, scaling"),
        ({"split": {"folds": 5}}, RecipeError, "split.folds: would train on data from after"),
        ({"split": {"by": "row"}}, RecipeError, "split.by: row would train on data from after"),
        ({"normalize": "quantile"}, RecipeError, "normalize: quantile cannot be inverted"),
        ({"table": {"impute": "mean"}}, RecipeError, "table: is only for arrays, but the task needs series"),
    ],
)
def test_settings_that_cannot_work(data: dict[str, Any], error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(
        error, match=says.replace("split.", r"data\.split.").replace("normalize:", "data.normalize:") if error is RecipeError else says
    ):
        made(write(tmp_path), **data)


def test_a_column_that_never_moves_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, change={i: f"{START + timedelta(hours=i)},{i % 5},3" for i in range(120)})
    with pytest.raises(DataError, match=r"column 'b' is 3 at all 120 training time steps"):
        made(path)


def test_series_steps_are_not_for_tables(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(DataError, match="jitter is only for time series"):
        prepare(parse(DataConfig, {"source": {"kind": "sklearn", "name": "iris"}, "augment": ["jitter"]}), seed=0, input_kind="arrays")


# ------------------------------------------------------------------------------------------------ as people have them


def test_values_far_from_zero_keep_their_digits(tmp_path: Path) -> None:
    wave = np.sin(np.arange(200) / 7)
    (tmp_path / "s.csv").write_text(
        "date,a\n" + "".join(f"{START + timedelta(hours=i)},{2e9 + v!r}\n" for i, v in enumerate(wave.tolist()))
    )
    splits = made(tmp_path / "s.csv")
    training = wave[:120]
    theirs = (wave - training.mean()) / training.std()
    seen = every(splits)
    np.testing.assert_allclose(seen.inputs[0, :, 0], theirs[:12], atol=1e-5)
    records = [{"a": 2e9 + v} for v in wave[:12].tolist()]
    assert np.array_equal(inputs_from_records(splits.preprocess, records)[0], seen.inputs[0].numpy())
    np.testing.assert_allclose(outputs_in_units(splits.preprocess, seen.targets[:1].numpy())[0, :, 0], 2e9 + wave[12:16], atol=1e-4)


@pytest.mark.parametrize(
    ("spelt", "format_", "zoned"),
    [
        (lambda t: t.strftime("%d.%m.%Y %H:%M +0200"), "%d.%m.%Y %H:%M %z", True),
        (lambda t: t.strftime("%Y-%m-%dT%H:%M:%S.000+02:00"), None, True),
        (lambda t: (t - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S.000Z"), None, True),
        (lambda t: (t - timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S.000000"), None, False),
        (lambda t: (t - timedelta(hours=2)).strftime("%d/%m/%y %H:%M:%S.%f"), "%d/%m/%y %H:%M:%S.%f", False),
    ],
)
def test_zones_are_brought_to_utc_and_said(spelt: Any, format_: str | None, zoned: bool, tmp_path: Path) -> None:
    times = [START + timedelta(hours=i) for i in range(60)]
    (tmp_path / "s.csv").write_text("date,a\n" + "".join(f"{spelt(t)},{i % 7}\n" for i, t in enumerate(times)))
    found = series(tmp_path / "s.csv", **({} if format_ is None else {"date_format": format_}))
    assert [str(t) for t in found.times] == [(t - timedelta(hours=2)).isoformat() for t in times]
    assert (found.step, found.season) == ("1 h", 24)
    source = {} if format_ is None else {"date_format": format_}
    splits = made(tmp_path / "s.csv", source=source, window={"context": 12, "horizon": 4, "calendar": ["hour"]})
    assert splits.facts.get("zone") == ("UTC" if zoned else None)
    assert bool(splits.facts.get("notes")) == zoned
    records = [{"date": spelt(t), "a": i % 7} for i, t in enumerate(times[:12])]
    assert np.array_equal(inputs_from_records(splits.preprocess, records)[0], every(splits).inputs[0].numpy())
    if format_ is None:
        other = [r | {"date": "2024-01-01" if zoned else "2024-01-01T00:00:00Z"} for r in records]
        with pytest.raises(DataError, match="the training data has (one|none)"):
            inputs_from_records(splits.preprocess, other)


@pytest.mark.parametrize(("step", "words"), [(timedelta(milliseconds=250), "250 ms"), (timedelta(microseconds=40), "40 us")])
def test_steps_finer_than_a_second(step: timedelta, words: str, tmp_path: Path) -> None:
    times = [START + i * step for i in range(60)]
    lines = [f"{t.isoformat(sep=' ', timespec='microseconds')},{i % 7}" for i, t in enumerate(times)]
    (tmp_path / "s.csv").write_text("\n".join(["date,a", *lines]))
    found = series(tmp_path / "s.csv")
    assert (found.step, found.season, found.filled) == (words, 1, 0)
    assert (np.diff(found.times.astype("datetime64[us]").astype(np.int64)) == step / timedelta(microseconds=1)).all()
    (tmp_path / "s.csv").write_text("\n".join(["date,a", *(x for i, x in enumerate(lines) if i not in (20, 21))]))
    with pytest.raises(DataError, match=f"2 time steps are missing.*the step is {words}"):
        series(tmp_path / "s.csv")
    filled = series(tmp_path / "s.csv", fill="forward")
    assert np.array_equal(filled.times, found.times)
    assert calendar_columns(found.times, ("hour",))[:, 0].tolist() == [np.float32(22 / 23 - 0.5)] * 60


def test_dates_with_and_without_a_zone_do_not_go_together_and_names_of_zones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("date,a\n2024-01-01T00:00:00Z,1\n2024-01-01T01:00:00Z,2\n2024-01-01T02:00:00,3\n")
    with pytest.raises(DataError, match="in row 0 is with a time zone, but '2024-01-01T02:00:00' in row 2 without"):
        series(tmp_path / "s.csv")
    with pytest.raises(RecipeError, match=r"names of time zones \(%Z\) are ambiguous"):
        series(tmp_path / "s.csv", date_format="%Y-%m-%d %Z")


def test_a_series_from_a_german_spreadsheet(tmp_path: Path) -> None:
    lines = [f"{i};{(START + timedelta(hours=i)):%d.%m.%Y %H:%M};{1000 + i:,d}".replace(",", ".") + f",{i % 10}5;{i}%" for i in range(40)]
    (tmp_path / "s.csv").write_bytes("\n".join([";Zeit;Last;Anteil", *lines]).encode("utf-8-sig"))
    found = series(tmp_path / "s.csv", date="Zeit", date_format="%d.%m.%Y %H:%M", delimiter=";")
    assert found.names == ("Last", "Anteil")
    np.testing.assert_allclose(found.values[:, 0], [1000 + i + (i % 10) / 10 + 0.05 for i in range(40)])
    np.testing.assert_allclose(found.values[:, 1], np.arange(40) / 100)
    assert "numbers the rows" in found.left_out[0]
    assert any("decimal ',', thousands '.'" in note for note in found.notes)
    with pytest.raises(
        DataError, match=r"'NA' in row 3 is not a number. If it means a missing value, set data.source.missing: \['', 'NA'\]"
    ):
        series(write(tmp_path, 20, change={3: f"{START + timedelta(hours=3)},NA,2"}))
