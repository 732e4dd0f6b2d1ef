"""Inputs of a model of tables and columns that a person reads are two spellings of the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import Encoder, Normalizer
from tauon.data.columns import ColumnsConfig
from tauon.explain.readable import MISSING, ReadableTable

NUMBERS = st.one_of(st.none(), st.integers(-1000, 1000).map(lambda i: i / 8))
WORDS = st.one_of(st.none(), st.sampled_from(["a", "b", "ä", "=", "x=y", "a missing", "<b>", "0"]))


def readable(columns: dict[str, list[Any]], encoding: str, scaling: str, indicators: bool) -> tuple[ReadableTable, np.ndarray]:
    config = parse(ColumnsConfig, {"categories": encoding, "impute": "median", "indicators": indicators})
    given = {
        name: np.array([np.nan if v is None else v for v in values], float) if name.startswith("n") else values
        for name, values in columns.items()
    }
    n = len(next(iter(columns.values())))
    encoder, raw = Encoder.fit(
        given, np.arange(n) % 2, config, declared=[c for c in columns if c.startswith("w")], classes=2, where=lambda i, c: f"{c} {i}"
    )
    normalizer = Normalizer.fit(raw, scaling, encoder.scaled)  # type: ignore[arg-type]
    preprocess = {"kind": "table", "columns": encoder.to_json(), "normalize": normalizer.to_json()}
    return ReadableTable.of(preprocess, raw.shape[1]), normalizer(raw)


@pytest.mark.parametrize("encoding", ["codes", "onehot", "ordinal", "target"])
@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(NUMBERS, NUMBERS, WORDS, WORDS), min_size=8, max_size=30), scaling=st.sampled_from(["standard", "robust", "minmax", "none"]),
    indicators=st.booleans(),
)  # fmt: skip
def test_reading_and_writing_are_inverses(encoding: str, rows: list[Any], scaling: str, indicators: bool) -> None:
    fixed = [(0.5, 1.25, "a", "b"), (3.0, -4.0, "b", "ä"), (7.75, 2.0, "ä", "a")]
    first, second, third, fourth = (list(c) for c in zip(*fixed, *fixed, *rows, strict=True))
    table, inputs = readable({"n1": first, "n2": second, "w1": third, "w2": fourth}, encoding, scaling, indicators)
    read = table.read(inputs)
    np.testing.assert_allclose(table.inputs(read), inputs, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(table.read(table.inputs(read)), read)
    known = np.array([v is not None for v in first])
    np.testing.assert_allclose(read[known, 0], np.array([v for v in first if v is not None]), rtol=1e-5, atol=1e-3)
    assert len(set(table.names)) == len(table.names) == read.shape[1] and len(table.groups) == inputs.shape[1]
    if encoding != "target":
        k = table.names.index("w1")
        names = table.sources[k].categories
        assert names[0] == MISSING
        for code, value in zip(read[:, k].astype(int), third, strict=True):
            assert names[code] in (MISSING, value) if value is not None else True
    assert [f.name for f in table.features(read)] == list(table.names)


def test_columns_whose_names_meet_stay_apart() -> None:
    table, inputs = readable({"n": [1.0, None, 3.0, 4.0], "n missing": [1.0, 2.0, 3.0, 5.0]}, "onehot", "standard", indicators=True)
    assert len(set(table.names)) == inputs.shape[1] == 3


def test_quantile_scaling_is_undone() -> None:
    rng = np.random.default_rng(0)
    table, inputs = readable({"n1": rng.normal(size=200).tolist(), "n2": rng.integers(0, 4, 200).tolist()}, "onehot", "quantile", False)
    np.testing.assert_allclose(table.inputs(table.read(inputs)), inputs, atol=2e-3)
