"""A first look at a table: how it is cut, and what each column seems to be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tauon.data import inspect_table
from tauon.errors import DataError


def kinds(path: Path) -> dict[str, str]:
    return {c.name: c.kind for c in inspect_table(path).columns}


def test_each_kind_of_column_is_told_with_its_reason(tmp_path: Path) -> None:
    lines = ["nr,customer_id,age,town,since,remark,same,empty,score,zip"]
    for i in range(60):
        age = "" if i == 5 else "?" if i == 6 else str(20 + i * 7 % 41)
        remark = f"called on day {i} and asked for more"
        lines.append(
            f"{i + 1},C{i * 97:05d},{age},{('Bonn', 'Kiel', 'Ulm')[i % 3]},2020-01-{i % 28 + 1:02d},{remark},x,,{i / 7:.3f},{i % 4}"
        )
    (tmp_path / "t.csv").write_text("\n".join(lines))
    look = inspect_table(tmp_path / "t.csv")
    found = {c.name: c for c in look.columns}
    assert {n: c.kind for n, c in found.items()} == {
        "nr": "identifier", "customer_id": "identifier", "age": "number", "town": "category", "since": "date", "remark": "text",
        "same": "constant", "empty": "constant", "score": "number", "zip": "number",
    }  # fmt: skip
    assert (look.rows, look.delimiter, look.header, look.missing) == (60, ",", True, ("", "?"))
    assert (found["age"].missing, found["town"].missing, found["empty"].missing) == (2, 0, 60)
    assert (found["town"].distinct, found["town"].examples) == (3, ("Bonn", "Kiel", "Ulm"))
    assert "counting up" in found["nr"].why
    assert "if they are codes" in found["zip"].why
    assert "no row has a value" in found["empty"].why
    assert "every value is 'x'" in found["same"].why
    json.dumps(look.to_json(), allow_nan=False)


@pytest.mark.parametrize(("delimiter", "name"), [(",", ","), (";", ";"), ("\t", "\t"), ("|", "|"), ("   ", "blanks")])
def test_the_delimiter_is_found(delimiter: str, name: str, tmp_path: Path) -> None:
    rows = [["a", "b", "c"], *([str(i), f"w{i % 2}", f"{i}.5"] for i in range(9))]
    (tmp_path / "t.txt").write_text("\n".join(delimiter.join(r) for r in rows))
    look = inspect_table(tmp_path / "t.txt")
    assert (look.delimiter, look.header, [c.name for c in look.columns]) == (name, True, ["a", "b", "c"])


def test_a_file_without_header_and_packed(tmp_path: Path) -> None:
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"A11 6 good\nA12 48 bad\nA11 12 good\nA11 9 bad\n"))
    look = inspect_table(tmp_path / "t.gz")
    assert (look.header, look.rows, look.delimiter) == (False, 4, "blanks")
    assert [(c.name, c.kind) for c in look.columns] == [("c0", "category"), ("c1", "number"), ("c2", "category")]
    assert inspect_table(tmp_path / "t.gz", limit=2).rows == 2


def test_a_word_among_numbers_is_pointed_out(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{'oops' if i == 4 else i % 5},{'no' if i % 2 else 'yes'}\n" for i in range(20)))
    first = inspect_table(tmp_path / "t.csv").columns[0]
    assert first.kind == "category"
    assert "1 of 20 values are not numbers ('oops')" in first.why


def test_a_word_that_stands_for_a_missing_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "a,y\n" + "".join(f"{('unknown', 'NA')[i % 2] if i < 15 else i * 1.5},{'no' if i % 2 else 'yes'}\n" for i in range(20))
    )
    look = inspect_table(tmp_path / "t.csv")
    assert (look.columns[0].kind, look.columns[0].missing) == ("number", 15)
    assert look.missing == ("", "NA", "unknown")


def test_german_credit(mirror: Path) -> None:
    look = inspect_table(mirror / "german-credit" / "german.data")
    assert (look.rows, look.delimiter, look.header, len(look.columns)) == (1000, "blanks", False, 21)
    assert sum(c.kind == "category" for c in look.columns) == 13


@pytest.mark.parametrize(
    ("content", "says"),
    [("", "the file is empty"), ("a,b\n", "no rows below"), ("a,b\n1,2\n3\n" + "4,5\n" * 60, r"row 2 has 1 values, expected 2")],
)
def test_files_that_are_no_tables(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(DataError, match=says):
        inspect_table(tmp_path / "t.csv")


def test_measures_with_a_few_broken_values_are_no_identifier(tmp_path: Path) -> None:
    rows = [f"{i * 1.37:.2f},{i % 2}" for i in range(200)]
    rows[40], rows[90] = "ERR,1", "see note,0"
    (tmp_path / "t.csv").write_text("dose,died\n" + "\n".join(rows) + "\n")
    dose = inspect_table(tmp_path / "t.csv").columns[0]
    assert dose.kind == "category" and "2 of 200 values are not numbers ('ERR')" in dose.why
