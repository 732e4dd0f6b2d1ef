"""Tables of many columns: the same numbers as pandas and scikit-learn, and (slow) within the promised time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    pytest.importorskip("pandas")
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import wide_table

    monkeypatch.setattr(sys, "argv", ["wide_table", "--quick", *flags])
    wide_table.main()  # asserts that both read the same
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_a_wide_table_is_read_as_pandas_and_scikit_learn_read_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(monkeypatch, capsys, "--columns", "400")["claim"] == "wide_table"


@pytest.mark.slow
def test_twenty_thousand_columns_take_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(monkeypatch, capsys)
    assert result["ratio"] >= result["floor"]


def test_the_cells_are_looked_at_once_not_once_for_each_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """names.count for each name was quadratic: here a name counts how often it is compared."""
    from tauon.data.sources.separated import column_names

    compared = 0

    class Name(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [Name(f"g{i}") for i in range(2000)]
    assert len(column_names(names, "x.csv")) == len(names)
    assert compared < 10 * len(names)
    assert np.all([a == b for a, b in zip(column_names(names, ""), names, strict=True)])
