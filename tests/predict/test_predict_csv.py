"""CSV in pieces gives, cell for cell and place for place, what the reader of training files gives from the whole."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tauon.config import parse
from tauon.data import SourceConfig
from tauon.data.sources.table_files import CsvConfig
from tauon.errors import DataError
from tauon.predict import csv_stream
from tauon.predict.csv_stream import CsvStream


def whole(path: Path, **settings: Any) -> Any:
    """(place, cells) of each row as training reads them, or the error."""
    config = parse(SourceConfig, {"kind": "csv", "path": str(path), "label": "y", **settings})
    assert isinstance(config, CsvConfig)
    try:
        return [(where, list(cells)) for where, cells in config.rows(path, config.columns(path))]
    except DataError as err:
        return str(err)


def in_pieces(path: Path, *, delimiter: str = ",", encoding: str = "utf-8", header: bool = True) -> Any:
    try:
        found = []
        for rows in CsvStream(path, delimiter, encoding, header, rows=3):
            cells = [values.to_pylist() for values in rows.columns.values()]
            found += [(rows.where(i, "a").rpartition(": column")[0], [c[i] for c in cells]) for i in range(len(rows))]
        return found
    except DataError as err:
        return str(err)


@pytest.fixture(params=[7, 64, 1 << 23])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_stream, "PIECE", request.param)


BASE = ["a,b,y", "1,x,2", "3,,4", "5,z,6"]
TEXTS = {
    "plain": BASE,
    "empty lines": ["", *BASE[:2], "", "", *BASE[2:]],
    "quotes": ["a,b,y", "", '1,"x, q",2', '3,"a\nb",4', '5,"say ""no""",6'],
    "quoted header": ['"a, too","b\nc",y', "1,x,2", '3,4,"4"'],
    "a short line": ["a,b,y", "1,x,2", "3,4", "5,z,6"],
    "a torn quote": ["a,b,y", "1,x,2", '3,"4,4'],
    "header alone": ["a,b,y"],
    "two columns of one name": ["a,a,y", "1,2,3"],
    "other scripts": ["a,b,y", "1,é ü,2", "3,日本,4"],
    "lone quotes in cells": ["a,b,y", '1,5" wide,2'],
}


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", TEXTS)
def test_pieces_are_the_whole(tmp_path: Path, name: str, end: str) -> None:
    text = end.join(TEXTS[name])
    for i, last in enumerate(("", end, end + end)):
        path = tmp_path / f"{i}.csv"
        path.write_bytes((text + last).encode())
        if not (name == "a torn quote" and last):  # the number of the last line is another matter
            assert in_pieces(path) == whole(path)


@pytest.mark.usefixtures("piece")
def test_other_ways_to_write_a_table(tmp_path: Path) -> None:
    text = "\n".join(BASE)
    path = tmp_path / "t.csv"
    for data, how in [
        (b"\xef\xbb\xbf" + text.encode(), {}), (text.encode("utf-16"), {}), (text.encode(), {"header": False}),
        (text.replace(",", ";").encode(), {"delimiter": ";"}), (text.replace("x", "é").encode("latin-1"), {"encoding": "latin-1"}),
        (b"a b y\n 1  x 2\n3 4\t5\n", {"delimiter": "blanks"}), (gzip.compress(text.encode()), {}), (b"", {}),
    ]:  # fmt: skip
        path.write_bytes(data)
        assert in_pieces(path, **how) == whole(path, **how), data  # type: ignore[arg-type]
    path.write_bytes(text.replace("x", "\xff").encode("latin-1"))
    assert "not utf-8" in in_pieces(path) and "not utf-8" in whole(path)


@given(st.lists(st.lists(st.text(alphabet='ab,"\n\r ;é1', max_size=4), min_size=2, max_size=2), max_size=8))
@settings(max_examples=60, deadline=None)
def test_whatever_is_written_is_read_alike(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("x") / "t.csv"
    path.write_bytes(("u,y\n" + "\n".join(",".join(r) for r in rows)).encode())
    ours, theirs = in_pieces(path), whole(path)
    assert (isinstance(ours, str) and isinstance(theirs, str)) or ours == theirs


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("quoted", [False, True])
def test_the_bytes_read_grow_to_the_size_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, quoted: bool) -> None:
    monkeypatch.setattr(csv_stream, "PIECE", 1 << 12)
    text = "a,b,y\n" + "".join(f'{i},"{i * 7919}",{i % 2}\n' if quoted else f"{i},{i * 7919},{i % 2}\n" for i in range(100_000))
    path = tmp_path / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    stream, seen = CsvStream(path, rows=1000), []
    for _ in stream:
        seen.append(stream.done)
    assert seen == sorted(seen) and 0 < seen[0] < seen[len(seen) // 2] < seen[-1] == path.stat().st_size
